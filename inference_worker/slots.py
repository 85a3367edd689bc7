"""The slots of a worker: starts them, hands each as many pictures as it takes at once, and replaces those that die."""

import asyncio
import sys
from pathlib import Path

import structlog

from custody.errors import StartError
from inference_worker.child import Child
from inference_worker.lines import Ready
from inference_worker.outcomes import Outcome, Work

log = structlog.get_logger()

START_SECONDS = 120.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""Between two attempts to replace a slot, where the first one failed."""


class Slots:
    """`count` child processes with one engine each. `threads`: of each engine. `time_limit_seconds`: for one picture,
    the wait for a stale file (up to `read_patience_seconds`) included. `start_limit_seconds`: to load and warm.
    `max_batch`, `max_delay_ms`: for engines that gain from batches, see `BatchPolicy`. `compiled`: the folder that
    keeps what engines compile, up to `compiled_bytes`; None keeps nothing."""

    def __init__(
        self,
        count: int,
        *,
        engine: str,
        model_path: Path,
        volume_root: Path,
        threads: int,
        precision: str,
        max_pixels: int,
        read_patience_seconds: float,
        time_limit_seconds: float,
        start_limit_seconds: float = START_SECONDS,
        max_batch: int = 1,
        max_delay_ms: float = 0.0,
        compiled: Path | None = None,
        compiled_bytes: int = 0,
    ) -> None:
        # -P: the folder that the worker was started in is no place to import from.
        self._command = [sys.executable, "-P", "-m", "inference_worker.slot", "--engine", engine]
        self._command += ["--model", str(model_path), "--volume", str(volume_root), "--threads", str(threads)]
        self._command += ["--precision", precision, "--max-pixels", str(max_pixels)]
        self._command += ["--read-patience-seconds", str(read_patience_seconds)]
        self._command += ["--max-batch", str(max_batch), "--max-delay-ms", str(max_delay_ms)]
        if compiled is not None:
            self._command += ["--compiled", str(compiled), "--compiled-bytes", str(compiled_bytes)]
        self._count = count
        self._time_limit_seconds = time_limit_seconds
        self._start_limit_seconds = start_limit_seconds
        self._children: set[Child] = set()
        self._free: asyncio.Queue[Child] = asyncio.Queue()
        self._working: set[asyncio.Task[Outcome]] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def ready_count(self) -> int:
        """Slots that hold a warm engine now, busy or free."""
        return sum(child.alive for child in self._children)

    @property
    def places(self) -> int:
        """Pictures that all slots together take at once, once they are started."""
        return sum(child.ready.at_once for child in self._children)

    async def start(self) -> Ready:
        """What a slot says, once every one is warm. Raises `StartError`, with the engine's reason or the last lines of
        the slot that could not start; none is left running then."""
        try:
            return await self._add_all()
        except BaseException:
            await self.close()
            raise

    async def run(self, work: Work) -> Outcome:
        """Waits for a free slot and gives it the work. Where the caller is cancelled, the slot finishes first."""
        while not (child := await self._free.get()).alive:
            self._replace(child)
        working = asyncio.create_task(self._use(child, work))
        self._working.add(working)
        working.add_done_callback(self._working.discard)
        return await asyncio.shield(working)

    async def close(self) -> None:
        """Lets the slots finish what they work on, for some seconds, and ends them."""
        self._closed = True
        for replacing in self._replacing:
            replacing.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self._children))
        await asyncio.gather(*self._working)

    async def _add_all(self) -> Ready:
        """All at once. A model that cannot be loaded is told once: by the first that finds it out."""
        starting = [asyncio.create_task(self._add()) for _ in range(self._count)]
        try:
            return (await asyncio.gather(*starting))[0].ready
        finally:
            for start in starting:
                start.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def _use(self, child: Child, work: Work) -> Outcome:
        outcome = await child.ask(work, self._time_limit_seconds)
        if child.alive:
            self._free.put_nowait(child)
        else:
            self._replace(child)
        return outcome

    async def _replace_once_ended(self, child: Child) -> None:
        # Not only when it is asked again: while no slot lives, nothing is taken that could be asked.
        await child.ended()
        self._replace(child)

    def _replace(self, dead: Child) -> None:
        if dead not in self._children:
            return
        self._children.discard(dead)
        if not self._closed:
            replacing = asyncio.create_task(self._keep_trying())
            self._replacing.add(replacing)
            replacing.add_done_callback(self._replacing.discard)

    async def _keep_trying(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._add()
            except StartError as error:
                log.warning("slot_start_failed", pause_seconds=pause, reason=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            else:
                return

    async def _add(self) -> Child:
        child = await Child.start(self._command, self._start_limit_seconds)
        self._children.add(child)
        watching = asyncio.create_task(self._replace_once_ended(child))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)
        for _ in range(child.ready.at_once):
            self._free.put_nowait(child)
        return child
