"""One program of the service, run as a child process: started until it is ready, its output handed on, stopped."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from custody.errors import StartError
from standalone.process import Process

SETTLE_SECONDS = 1.0
LONGEST_LINE = 1024 * 1024
"""Bytes after which a line is handed on although it has no end yet."""

CHUNK = 64 * 1024


class EndedEarlyError(StartError):
    """The program ended before it was ready."""


class Program:
    """`argv` begins with a path or a name on PATH; `env` is its whole environment, this process's where None.

    `write` takes its output, line by line: a JSON object as it is, anything else with the name in front. `ready` is
    asked until it says yes, for up to `ready_seconds`; without it, a program counts as ready once it has lived for a
    second. `stop_signal` asks it to stop, and after `grace_seconds` it is killed, with all that it started."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        write: Callable[[str], None],
        env: Mapping[str, str] | None = None,
        ready: Callable[[], Awaitable[bool]] | None = None,
        ready_seconds: float = 60,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 20,
    ) -> None:
        self.name = name
        self._argv = argv
        self._write = write
        self._env = env
        self._ready = ready
        self._ready_seconds = ready_seconds
        self._stop_signal = stop_signal
        self._grace_seconds = grace_seconds
        self._process: Process | None = None
        self._lines: _Lines | None = None

    async def start(self) -> None:
        """Returns once it is ready. Raises `EndedEarlyError` where it ends, `StartError` where it takes too long."""
        try:
            self._process = Process.spawn(
                self._argv, death_signal=self._stop_signal, output=subprocess.PIPE, env=self._env
            )
        except OSError as error:
            raise StartError(f"The system starts no process for {self.name}: {error.strerror}.") from error
        self._lines = _Lines(self._process.output, self._hand_on)
        try:
            await self._until_ready(self._process)
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Returns the exit status (minus the signal's number where a signal ended it) once it has ended."""
        if self._process is None or self._lines is None:
            raise RuntimeError(f"{self.name} was not started.")
        status = await self._process.exited()
        self._lines.close()
        return status

    async def stop(self) -> None:
        if self._process:
            await self._process.end((self._stop_signal, self._grace_seconds))
            await self.wait()

    def kill(self) -> None:
        """At once, with all that it started. `stop` is still to be called."""
        if self._process:
            self._process.send_group(signal.SIGKILL)

    async def _until_ready(self, process: Process) -> None:
        exited = asyncio.ensure_future(process.exited())
        ready = asyncio.ensure_future(self._readiness())
        try:
            await asyncio.wait({exited, ready}, timeout=self._ready_seconds, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                ended = how_it_ended(exited.result())
                raise EndedEarlyError(f"{self.name} {ended} before it was ready; its output says why.")
            if not ready.done():
                raise StartError(f"{self.name} was not ready within {self._ready_seconds:g} s; its output may say why.")
            ready.result()
        finally:
            exited.cancel()
            ready.cancel()
            await asyncio.gather(exited, ready, return_exceptions=True)

    async def _readiness(self) -> None:
        if self._ready is None:
            await asyncio.sleep(SETTLE_SECONDS)
            return
        while not await self._ready():  # noqa: ASYNC110 - another process becomes ready: only asking tells
            await asyncio.sleep(0.1)

    def _hand_on(self, line: str) -> None:
        is_json = line.startswith("{") and line.endswith("}")
        # Whoever read our output may have gone (`| head`): the service goes on.
        with suppress(OSError):
            self._write(line if is_json else labelled(self.name, line))


def labelled(name: str, text: str) -> str:
    return f"{name:<8} | {text}"


def how_it_ended(status: int) -> str:
    """`status` as `Program.wait` returns it."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by signal {-status} ({signal.strsignal(-status)})"


class _Lines:
    """Reads `pipe` whenever there is something in it, so that its writer never stands still, and hands on lines."""

    def __init__(self, pipe: IO[bytes], hand_on: Callable[[str], None]) -> None:
        self._pipe = pipe
        self._hand_on = hand_on
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(pipe.fileno(), False)
        self._loop.add_reader(pipe.fileno(), self._read)

    def close(self) -> None:
        """Hands on what is left. Does not wait for more: something that left the session may still hold the pipe."""
        if self._pipe.closed:
            return
        for _ in range(LONGEST_LINE // CHUNK):
            if not self._read():
                break
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        if self._rest:
            self._hand_on(self._rest.decode(errors="replace"))

    def _read(self) -> bool:
        try:
            chunk = os.read(self._pipe.fileno(), CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._pipe.fileno())
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._hand_on(line.decode(errors="replace").rstrip("\r"))
        return True
