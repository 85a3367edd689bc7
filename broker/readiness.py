"""Whether this broker can take work: asked by probes without a key, so that the answer is good for a second."""

import asyncio
import time
from collections.abc import Callable, Mapping

from broker.room import Room
from custody import models
from custody.cleanup import Run, list_runs
from custody.database import Database
from custody.errors import CustodyError
from custody.installation import SweepOff, sweep_off
from custody.integrity import seen_quarantined
from custody.volume import Volume

CHECK_SECONDS = 3.0
GOOD_SECONDS = 1.0

MOST_QUARANTINED = 1000
"""Counted so far, at each look: a restore may have lost a million."""


class Readiness:
    """`needs_worker`: not ready before a warm worker lives. `tell` hears at each look of the newest cleanup, if any,
    why no orphans are swept, and how many blobs are quarantined, `MOST_QUARANTINED` standing for that many or more."""

    def __init__(
        self,
        database: Database,
        volume: Volume,
        room: Room,
        *,
        needs_worker: bool,
        tell: Callable[[Run | None, SweepOff | None, int], None] = lambda _run, _off, _quarantined: None,
    ) -> None:
        self._database = database
        self._volume = volume
        self._room = room
        self._needs_worker = needs_worker
        self._tell = tell
        self._leaving = False
        self._checking = asyncio.Lock()
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._found: Mapping[str, str] = {}
        self._found_at = -GOOD_SECONDS

    def leave(self) -> None:
        """From now on, and in its next answer, the broker takes no more work than what comes all the same."""
        self._leaving = True

    async def checks(self) -> Mapping[str, str]:
        """What each part answered: `ok`, or what is wrong with it."""
        if self._leaving:
            return {**self._found, "broker": "was asked to end"}
        async with self._checking:
            if time.monotonic() - self._found_at >= GOOD_SECONDS:
                self._found = await self._look()
                self._found_at = time.monotonic()
        return self._found

    async def _look(self) -> Mapping[str, str]:
        checks = {"database": self._ask_database, "volume": self._ask_volume}
        if self._needs_worker:
            checks["worker"] = self._ask_for_workers
        for name, check in checks.items():
            if name not in self._asked:
                self._asked[name] = asyncio.ensure_future(check())
        await asyncio.wait(self._asked.values(), timeout=CHECK_SECONDS)
        found = {name: self._outcome(name) for name in checks}
        # Task rows are the queue: jobs are safe in the database, also where it takes a relay to bring them on.
        return {**found, "transport": found["database"]}

    def _outcome(self, name: str) -> str:
        # A volume that hangs holds a thread until it answers. It is not asked again before.
        if not self._asked[name].done():
            return f"no answer in {CHECK_SECONDS:.0f} s"
        try:
            self._asked.pop(name).result()
        except CustodyError as error:
            return error.detail
        return "ok"

    async def _ask_database(self) -> None:
        async with self._database.transaction() as transaction:
            runs = await list_runs(transaction, 1)
            off = await sweep_off(transaction)
            quarantined = await seen_quarantined(transaction, most=MOST_QUARANTINED)
        self._tell(runs[0] if runs else None, off, quarantined)

    async def _ask_volume(self) -> None:
        # A full volume takes no uploads, and everything else goes on: reads, deletions, jobs on what is held.
        try:
            await self._volume.check_writable()
        except CustodyError as error:
            if error.code != "storage_full":
                raise
        await self._room.look()

    async def _ask_for_workers(self) -> None:
        async with self._database.transaction() as transaction:
            if not any(model.ready_workers for model in await models.list_models(transaction)):
                raise CustodyError("model_not_found", "no warm worker yet")
