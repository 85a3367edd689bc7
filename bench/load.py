"""Clients in a closed loop: each sends its next picture when it has the last one's answer.

One process, requests made beforehand, answers only looked at: on the same cores as the service, it has to cost little.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

from tests.e2e.service import Service

BOUNDARY = "bench-b7c2"
WAIT_SECONDS = 60
ANSWER_SECONDS = 90


@dataclass(frozen=True)
class Load:
    """`latencies`: of each answer in seconds, sorted. `seconds`: from the first request to the last answer."""

    seconds: float
    latencies: Sequence[float]

    def percentile(self, part: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(part * len(self.latencies)))]


def closed_loop(service: Service, pictures: Sequence[bytes], connections: int) -> Load:
    """Every picture once. Raises where one is not answered with its result."""
    return uvloop.run(_closed_loop(service, [_request(service, picture) for picture in pictures], connections))


async def _closed_loop(service: Service, requests: Sequence[bytes], connections: int) -> Load:
    place = urlsplit(service.url)
    # Open before the clock runs.
    streams = [await asyncio.open_connection(place.hostname, place.port) for _ in range(connections)]
    latencies: list[float] = []
    remaining = iter(requests)
    try:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for reader, writer in streams:
                group.create_task(_client(reader, writer, remaining, latencies))
        return Load(time.perf_counter() - began, sorted(latencies))
    finally:
        for _, writer in streams:
            writer.close()


async def _client(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, remaining: Iterator[bytes], latencies: list[float]
) -> None:
    for request in remaining:
        began = time.perf_counter()
        writer.write(request)
        async with asyncio.timeout(ANSWER_SECONDS):
            head, body = await _answer(reader)
        if not head.startswith(b"HTTP/1.1 200 ") or b'"state":"succeeded"' not in body:
            raise RuntimeError(f"A picture was not answered with its result:\n{head.decode()}{body[:500].decode()}")
        latencies.append(time.perf_counter() - began)


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return head, await reader.readexactly(int(value))
    raise RuntimeError(f"An answer does not say how long it is:\n{head.decode()}")


def _request(service: Service, picture: bytes) -> bytes:
    part = 'Content-Disposition: form-data; name="image"; filename="picture.jpg"\r\nContent-Type: image/jpeg'
    body = f"--{BOUNDARY}\r\n{part}\r\n\r\n".encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        "POST /v1/predict HTTP/1.1",
        f"Host: {urlsplit(service.url).netloc}",
        f"Authorization: Bearer {service.key}",
        f"Prefer: wait={WAIT_SECONDS}",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*head, "", ""]).encode() + body
