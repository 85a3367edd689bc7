"""A load balancer as a cluster has one: it asks each broker's /readyz, and brings new connections to one that is ready.

It never tries a second broker, for what was begun at the first: whatever is lost there is lost.
"""

import asyncio
import itertools
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

ASK_AGAIN_SECONDS = 0.2
CHUNK_BYTES = 65536

Address = tuple[str, int]
"""Host and port."""


class Balancer:
    """Listens on `port` of 127.0.0.1 for brokers elsewhere, be they there or not yet, in a thread of its own. `with`
    starts and ends it. `taken`: how many connections each broker was given."""

    def __init__(self, brokers: Sequence[Address]) -> None:
        self.port = 0
        self.taken = dict.fromkeys(brokers, 0)
        self._ready: list[Address] = []
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def ready(self) -> list[Address]:
        """The brokers that it brings connections to."""
        return list(self._ready)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._asking = [asyncio.create_task(self._ask(broker)) for broker in self.taken]

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, broker: Address) -> None:
        while True:
            ready = False
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(2):
                    ready = b" 200 " in await _first_line(broker, b"GET /readyz HTTP/1.1\r\nHost: b\r\n\r\n")
            if ready != (broker in self._ready):
                (self._ready.append if ready else self._ready.remove)(broker)
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self._ready:
                await asyncio.sleep(0.01)
            broker = self._ready[next(self._turn) % len(self._ready)]
            self.taken[broker] += 1
            below_reader, below_writer = await asyncio.open_connection(*broker)
            try:
                await asyncio.gather(_forward(reader, below_writer), _forward(below_reader, writer))
            finally:
                below_writer.close()
        except OSError:
            pass
        finally:
            writer.close()


async def _forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(CHUNK_BYTES):
        target.write(chunk)
        await target.drain()
    target.close()


async def _first_line(broker: Address, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*broker)
    try:
        writer.write(request)
        return await reader.readline()
    finally:
        writer.close()
