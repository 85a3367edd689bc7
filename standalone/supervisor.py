"""Keeps the services of one machine running, and takes all of them down in order.

- A service that was never ready is a fault of the set-up: where it ends early it is tried three times (its port may
  still be held by a former run that is ending), then `start` raises. Any other refusal to start is raised at once.
- A service that was ready and ends is started again for ever, after 1 s at first and up to 30 s in the end: the set-up
  was good, so the cause may pass (a full disk, a killed process). Staying up for a minute makes the pause short again.
- SIGINT, SIGTERM and SIGHUP stop the services, the last started first, each with its own patience; a second one kills
  them all at once. Services are in sessions of their own, so that Ctrl-C in a terminal reaches the supervisor only.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Protocol

from custody.errors import StartError
from standalone.program import EndedEarlyError, how_it_ended, labelled

TRIES = 3
STEADY_SECONDS = 60
SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


class Service(Protocol):
    """What the supervisor runs: `Postgres` and `Program`."""

    name: str

    async def start(self) -> None:
        """Returns once it can serve. Raises `StartError`, and leaves nothing running."""

    async def wait(self) -> int:
        """Returns the exit status once it has ended."""

    async def stop(self) -> None:
        """Asks it to end, then makes it. Leaves nothing of it; nothing happens where it does not run."""

    def kill(self) -> None:
        """Ends it at once; `stop` is still called."""


class Supervisor:
    """`write` takes the supervisor's own lines; `pause` gives the seconds to wait after n earlier failures in a row."""

    def __init__(self, write: Callable[[str], None], *, pause: Callable[[int], float] | None = None) -> None:
        self._write = write
        self._pause = pause or pause_seconds
        self._services: list[Service] = []
        self._starts: list[asyncio.Task[None]] = []
        self._watches: list[asyncio.Task[None]] = []
        self._asked = asyncio.Event()

    async def run(self, set_up: Callable[[], Awaitable[None]]) -> None:
        """Runs `set_up`, which calls `start` for one service after the other, and returns once a signal has asked for
        the end and all services are down. Where `set_up` raises, they are taken down too, and it raises that."""
        handled = self._handle_signals()
        tasks = [asyncio.ensure_future(coroutine) for coroutine in (set_up(), self._asked.wait())]
        try:
            setting_up, asked = tasks
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if setting_up.done():
                setting_up.result()
                done, _ = await asyncio.wait({asked, *self._watches}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            try:
                await self._take_down(tasks)
            finally:
                for number in handled:
                    asyncio.get_running_loop().remove_signal_handler(number)

    async def start(self, service: Service) -> None:
        """Starts it, returns once it is ready, and keeps it running from then on."""
        self._services.append(service)
        start = asyncio.create_task(self._first_start(service))
        self._starts.append(start)
        await start
        self._watches.append(asyncio.create_task(self._keep_running(service)))

    async def _first_start(self, service: Service) -> None:
        for failures in range(TRIES - 1):
            try:
                return await service.start()
            except EndedEarlyError as error:
                await self._announce_and_pause(str(error), failures)
        return await service.start()

    async def _keep_running(self, service: Service) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            reason = f"{service.name} {how_it_ended(await service.wait())}."
            if time.monotonic() - began > STEADY_SECONDS:
                failures = 0
            while reason:
                await self._announce_and_pause(reason, failures)
                failures += 1
                reason = await _refusal(service)
            self._say(f"{service.name} is up again.")

    async def _announce_and_pause(self, reason: str, failures: int) -> None:
        pause = self._pause(failures)
        self._say(f"{reason} Next start in {pause:.1f} s.")
        await asyncio.sleep(pause)

    async def _take_down(self, tasks: Sequence[asyncio.Future[Any]]) -> None:
        # First whatever could start something.
        starters = [*tasks, *self._starts, *self._watches]
        for task in starters:
            task.cancel()
        await asyncio.gather(*starters, return_exceptions=True)
        async with AsyncExitStack() as stack:  # From the last to the first, and one failure does not spare the others.
            for service in self._services:
                stack.push_async_callback(service.stop)

    def _handle_signals(self) -> list[signal.Signals]:
        handled = [signal.SIGINT, signal.SIGTERM]
        # Ignored under nohup, which asks us to outlive the terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handled.append(signal.SIGHUP)
        for number in handled:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        return handled

    def _on_signal(self) -> None:
        if not self._asked.is_set():
            self._say("Stopping; a second Ctrl-C kills at once.")
            self._asked.set()
            return
        self._say("Killing.")
        for service in reversed(self._services):
            service.kill()

    def _say(self, text: str) -> None:
        with suppress(OSError):
            self._write(labelled("wharf", text))


def pause_seconds(failures: int) -> float:
    """Twice as long each time, from 1 s to 30 s, and a random part of it, lest several services start in step."""
    longest = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** min(failures, 10))
    return random.uniform(max(SHORTEST_PAUSE, longest / 2), longest)  # noqa: S311 - nobody gains by guessing it


async def _refusal(service: Service) -> str:
    """Why it did not start; empty where it did."""
    try:
        await service.start()
    except StartError as error:
        return str(error)
    return ""
