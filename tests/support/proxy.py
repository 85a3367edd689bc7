"""A TCP proxy that misbehaves on command: it stands between a process and the server whose network is to fail."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

Direction = Literal["up", "down"]
"""`up`: from the client to the server."""

CHUNK_BYTES = 65536
CALL_SECONDS = 10
# Close at once and with a RST, whatever is still to be sent.
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on `port` of 127.0.0.1 and forwards to `target`: a port of 127.0.0.1 or the path of a Unix socket. It
    lives in a thread of its own: its methods may be called from anywhere, and return once what they promise is so.
    `with` closes it."""

    def __init__(self, target: int | Path) -> None:
        self.port = 0
        self.accepted = 0
        self._target = target
        self._delay_seconds = 0.0
        self._bytes: dict[Direction, int] = {"up": 0, "down": 0}
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._listener: socket.socket | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._listen)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Resets all connections, and refuses new ones."""
        self._call(self._cut)

    def freeze(self) -> None:
        """A partition: connections stay and new ones are made, but nothing arrives any more, not even their end."""
        self._call(self._freeze)

    def delay(self, seconds: float) -> None:
        """Every chunk, of 64 KiB at most, takes that long in each direction; the next one waits for it."""
        self._delay_seconds = seconds

    def half_close(self, direction: Direction) -> None:
        """Ends one direction of the connections that there are: the receiver reads the end, what the sender still
        sends is lost."""
        self._call(self._half_close, direction)

    def heal(self) -> None:
        """Undoes `cut`, `freeze` and `delay`. What a freeze held back arrives."""
        self._call(self._heal)

    def close(self) -> None:
        """Resets all connections and ends the thread."""
        if self._loop.is_closed():
            return
        self._call(self._cut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    @property
    def bytes_up(self) -> int:
        return self._bytes["up"]

    @property
    def bytes_down(self) -> int:
        return self._bytes["down"]

    def _call(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        asyncio.run_coroutine_threadsafe(work(*arguments), self._loop).result(CALL_SECONDS)

    async def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        # Not asyncio's server: what that is accepting while it is closed stays open.
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        self.accepted += 1
        connection = _Connection(client)
        task = self._loop.create_task(self._serve(connection))
        self._connections[task] = connection
        task.add_done_callback(self._connections.pop)

    async def _cut(self) -> None:
        if self._listener:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        tasks = list(self._connections)
        for task, connection in self._connections.items():
            connection.reset()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports close their sockets a turn of the loop after they are told.
        await asyncio.sleep(0)

    async def _freeze(self) -> None:
        self._flowing.clear()

    async def _heal(self) -> None:
        self._delay_seconds = 0.0
        self._flowing.set()
        if self._listener is None:
            await self._listen()

    async def _half_close(self, direction: Direction) -> None:
        for connection in self._connections.values():
            connection.end(direction)

    async def _serve(self, connection: "_Connection") -> None:
        try:
            await connection.open()
            await self._flowing.wait()
            await connection.reach(self._target)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._forward(connection, "up"))
                ways.create_task(self._forward(connection, "down"))
        except* OSError:
            # One side is gone: the other shall hear of it in the same way.
            connection.reset()
        else:
            connection.close()

    async def _forward(self, connection: "_Connection", direction: Direction) -> None:
        while chunk := await connection.read(direction):
            await asyncio.sleep(self._delay_seconds)
            await self._flowing.wait()
            if await connection.write(direction, chunk):
                self._bytes[direction] += len(chunk)
        await self._flowing.wait()
        connection.end(direction)


class _Connection:
    """A client's connection and ours to the server in its name."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._readers: dict[Direction, asyncio.StreamReader] = {}
        self._writers: dict[Direction, asyncio.StreamWriter] = {}
        self._ended: set[Direction] = set()

    async def open(self) -> None:
        self._readers["up"], self._writers["down"] = await asyncio.open_connection(sock=self._client)

    async def reach(self, target: int | Path) -> None:
        reached = asyncio.open_unix_connection(target) if isinstance(target, Path) else _local(target)
        self._readers["down"], self._writers["up"] = await reached

    async def read(self, direction: Direction) -> bytes:
        return await self._readers[direction].read(CHUNK_BYTES)

    async def write(self, direction: Direction, chunk: bytes) -> bool:
        """False where that direction has ended."""
        if direction in self._ended:
            return False
        self._writers[direction].write(chunk)
        await self._writers[direction].drain()
        return True

    def end(self, direction: Direction) -> None:
        if direction in self._writers and direction not in self._ended:
            self._ended.add(direction)
            with suppress(OSError):
                self._writers[direction].write_eof()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def reset(self) -> None:
        if not self._writers:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._client.close()
        for writer in self._writers.values():
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


async def _local(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)
