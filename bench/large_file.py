"""A picture with a long tail: a JPEG, and behind its end bytes that no decoder reads and custody keeps."""

import json
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.fleet import Fleet
from bench.pictures import distinct, tiny
from custody.volume import blob_path

MIB = 1 << 20
ROOM = {"WHARF_MAX_FILE_BYTES": str(1 << 40)}
"""A broker's settings."""

ANSWER_SECONDS = 300


class LargeFile:
    """`path`: `bytes` of noise, written once. Each upload has another picture before it."""

    def __init__(self, path: Path, bytes: int) -> None:
        self.path = path
        self.bytes = bytes
        self._pictures = distinct(tiny())
        block = os.urandom(MIB)
        with path.open("wb") as file:
            for start in range(0, bytes, MIB):
                file.write(block[: bytes - start])

    def upload(self, fleet: Fleet) -> float:
        """From the first byte to the answer, in seconds. The kernel sends the file: the client costs next to nothing.
        What was stored is unlinked afterwards, and its rows stay."""
        place = urlsplit(fleet.url)
        picture = next(self._pictures)
        head = (
            "POST /v1/files HTTP/1.1",
            f"Host: {place.netloc}",
            f"Authorization: Bearer {fleet.service.key}",
            "Content-Type: image/jpeg",
            f"Content-Length: {len(picture) + self.bytes}",
            "Connection: close",
        )
        with (
            socket.create_connection((str(place.hostname), place.port or 80), timeout=ANSWER_SECONDS) as connection,
            self.path.open("rb") as file,
        ):
            began = time.perf_counter()
            connection.sendall("\r\n".join([*head, "", ""]).encode() + picture)
            connection.sendfile(file)
            answer = b"".join(iter(lambda: connection.recv(MIB), b""))
            seconds = time.perf_counter() - began
        status, _, rest = answer.partition(b"\r\n")
        if b" 201 " not in status:
            raise RuntimeError(f"A file of {self.bytes} bytes was not taken: {answer.decode()}")
        [stored] = json.loads(rest.partition(b"\r\n\r\n")[2])["items"]
        (fleet.service.volume / blob_path(bytes.fromhex(stored["sha256"]))).unlink()
        return seconds
