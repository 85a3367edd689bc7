"""HTTP by hand, for requests that no client library would send."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from urllib.parse import urlsplit

import httpx


@contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as opened:
        yield opened


def head(method: str, path: str, key: str, *headers: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: test", f"Authorization: Bearer {key}", *headers, "", "")
    return "\r\n".join(lines).encode("latin-1")


def answer(opened: socket.socket) -> httpx.Response:
    """The next answer on the connection."""
    with HTTPResponse(opened) as read:
        read.begin()
        return httpx.Response(read.status, headers=read.getheaders(), content=read.read())


def exchange(url: str, request: bytes) -> httpx.Response:
    with connection(url) as opened:
        opened.sendall(request)
        return answer(opened)
