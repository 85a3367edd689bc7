"""One slot seen from its parent: a child process that answers about pictures, until it ends or is killed."""

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Self, cast

import structlog

from custody.errors import StartError
from inference_worker.lines import (
    MAX_LINE_BYTES,
    Ready,
    Refused,
    read_answer,
    read_numbered,
    write_numbered,
    write_work,
)
from inference_worker.outcomes import Outcome, Retry, Work

log = structlog.get_logger()

LAST_LINES = 20
"""Of a child's standard error, kept to explain why it could not start."""

LOGGED_LINES = 100
"""Of a child's standard error, for each picture: a spoiled one makes a decoder complain of every row."""

STOP_SECONDS = 5.0
"""A child that is to end by itself is killed after this."""

PR_SET_DUMPABLE = 4
"""Of Linux's <sys/prctl.h>."""

OURS = ("WHARF_", "PG", "OTEL_")
"""Beginnings of the names of what this process alone is told: its logins are among it."""


def keep_to_itself() -> None:
    """From now on no other process of this user, such as a slot, reads its memory or environment. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)


def handed_on() -> Mapping[str, str]:
    """This process's environment without its logins, for children that open strangers' pictures and models: they are
    told all that they need by their command."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


class Child:
    """`Child.start` makes one; `ready` is what it has loaded, and with what."""

    ready: Ready

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._requests = cast(asyncio.StreamWriter, process.stdin)
        self._answers = cast(asyncio.StreamReader, process.stdout)
        self._given_up = False
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._lines_to_log = LOGGED_LINES
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._hearing: asyncio.Task[None] | None = None
        self._listening = asyncio.create_task(self._listen(cast(asyncio.StreamReader, process.stderr)))

    @classmethod
    async def start(cls, command: Sequence[str], limit_seconds: float) -> Self:
        """Returns once the child is warm. Raises `StartError`, with the engine's reason or the last lines that it
        printed; the child is gone then, and also where the caller is cancelled."""
        process = await asyncio.create_subprocess_exec(
            *command,
            env=handed_on(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        child = cls(process)
        try:
            async with asyncio.timeout(limit_seconds):
                child.ready = await child._first_answer()
        except TimeoutError:
            await child.kill()
            raise child._start_error(f"was not ready after {limit_seconds:g} s") from None
        except BaseException:
            await child.kill()
            raise
        child._hearing = asyncio.create_task(child._hear())
        log.info("slot_ready", pid=process.pid)
        return child

    async def ended(self) -> None:
        """Returns once it will answer nothing more."""
        if self._hearing is not None:
            await asyncio.wait([self._hearing])

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._given_up

    async def ask(self, work: Work, limit_seconds: float) -> Outcome:
        """Up to `ready.at_once` may be asked at a time: one that kills the process, or hangs, takes the others along.
        Never raises for what happens to the process; it is no longer `alive` then."""
        self._lines_to_log = LOGGED_LINES
        try:
            async with asyncio.timeout(limit_seconds):
                line = await self._exchange(work)
        except TimeoutError:
            await self.kill()
            log.warning("slot_killed", pid=self._process.pid, task=str(work.task), limit_seconds=limit_seconds)
            return Retry("time_limit_exceeded", f"Working on the picture took longer than {limit_seconds:g} s.")
        if line:
            try:
                answer = read_answer(line)
            except ValueError as error:
                log.warning("slot_garbled", pid=self._process.pid, task=str(work.task), reason=str(error))
            else:
                if not isinstance(answer, Ready | Refused):
                    return answer
        await self.kill(after_seconds=STOP_SECONDS)
        log.warning("slot_crashed", pid=self._process.pid, task=str(work.task), ending=self._ending())
        return Retry("worker_crashed", f"The process working on the picture {self._ending()}.")

    async def stop(self) -> None:
        """Lets it finish its pictures for up to `STOP_SECONDS`."""
        await self.kill(after_seconds=STOP_SECONDS)

    async def kill(self, after_seconds: float = 0.0) -> None:
        """Asks it nothing more and waits for its end for `after_seconds`, then forces it."""
        self._given_up = True
        self._requests.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), after_seconds)
        with suppress(ProcessLookupError):
            self._process.kill()
        # A process that hangs in the kernel, on a dead mount, ends when the mount answers: nobody waits for it.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            await asyncio.wait_for(self._listening, STOP_SECONDS)
            # To the end, or its pipe would stay open.
            await asyncio.wait_for(self._hearing or self._answers.read(), STOP_SECONDS)

    async def _first_answer(self) -> Ready:
        line = await self._answers.readline()
        if not line:
            await self.kill(after_seconds=STOP_SECONDS)
            raise self._start_error(self._ending())
        try:
            answer = read_answer(line)
        except ValueError as error:
            raise self._start_error(f"said something else than ready: {error}") from error
        match answer:
            case Ready():
                return answer
            case Refused(reason):
                raise StartError(reason)
        raise self._start_error("gave an answer before it was ready")

    async def _exchange(self, work: Work) -> bytes:
        """The answer's line; empty where the process has gone."""
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            if not self.alive:
                return b""
            with suppress(BrokenPipeError, ConnectionResetError):
                self._requests.write(write_numbered(number, write_work(work)))
                await self._requests.drain()
            return await answer
        finally:
            del self._asked[number]

    async def _hear(self) -> None:
        """Hands each answer to who asked, until the process goes or says what is no answer."""
        try:
            while line := await self._answers.readline():
                number, answer = read_numbered(line)
                if (asked := self._asked.get(number)) and not asked.done():
                    asked.set_result(answer)
        except ValueError as error:
            log.warning("slot_garbled", pid=self._process.pid, reason=str(error))
            with suppress(ProcessLookupError):
                self._process.kill()
        self._given_up = True
        for asked in self._asked.values():
            if not asked.done():
                asked.set_result(b"")

    async def _listen(self, errors: asyncio.StreamReader) -> None:
        """Passes on what libraries print, up to a limit, and keeps the last of it."""
        while line := await errors.readline():
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            if self._lines_to_log > 0:
                self._lines_to_log -= 1
                log.info("slot_printed", pid=self._process.pid, line=text)

    def _start_error(self, what: str) -> StartError:
        lines = "\n".join(self._last_lines) or "(none)"
        return StartError(f"The process that was to load the model {what}. Its last lines:\n{lines}")

    def _ending(self) -> str:
        match self._process.returncode:
            case None:
                return "does not end"
            case status if status < 0:
                return f"was killed by {signal.Signals(-status).name}"
            case status:
                return f"ended with exit status {status}"
