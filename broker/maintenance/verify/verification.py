"""One verification: all promised bytes are looked at, the least recently seen first, and damaged ones quarantined.

No transaction is open while bytes are read. What was found is acted upon under the blob's lock, and only where the same
file still lies there: uploads, cleanups and workers go on meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from uuid import UUID

import structlog

from broker.maintenance.quarantine import discard_copies
from broker.maintenance.verify.pace import Pace
from custody.database import Database
from custody.errors import CustodyError
from custody.installation import check_volume
from custody.integrity import Counts, Custody, Fault, Integrity, Run, Stopped
from custody.volume import Identity, Interrupted, Volume

log = structlog.get_logger()

PAGE = 500

BATCH_SECONDS = 5.0
"""Of reading: so often is written down what was found, and so much is read again after a death."""

TRIES = 3
PAUSE_SECONDS = 0.2
"""Between two tries to read what the volume does not give."""


class Finding(Enum):
    RIGHT = "right"
    CORRUPT = "corrupt"
    MISSING = "missing"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Look:
    """`identity`: the file that was looked at; None where there was none, or none that can be told."""

    finding: Finding
    identity: Identity | None = None


class Verification:
    """`quick`: existence and sizes are compared, and nothing is read. `max_seconds`: it ends soon after them, and the
    next one goes on where it ended. `keep_seconds`: for how long damaged bytes stay under `quarantine/` once they
    are healed. `progress` hears of the counts now and then."""

    def __init__(
        self,
        database: Database,
        volume: Volume,
        pace: Pace,
        *,
        quick: bool = False,
        max_seconds: float | None = None,
        keep_seconds: float = 7 * 86_400.0,
        progress: Callable[[Counts], None] = lambda counts: None,
    ) -> None:
        self._database = database
        self._volume = volume
        self._pace = pace
        self._quick = quick
        self._max_seconds = max_seconds
        self._keep_seconds = keep_seconds
        self._progress = progress
        self._integrity = Integrity()
        self._counts = Counts()
        self._run: UUID
        self._deadline = float("inf")

    async def run(self) -> Run:
        """The caller makes sure that it is the only one. Raises `CustodyError` where the database does not answer, and
        `StartError` where the volume has gone away."""
        if self._max_seconds is not None:
            self._deadline = time.monotonic() + self._max_seconds
        async with self._database.transaction() as transaction:
            run = await self._integrity.begin(transaction, quick=self._quick)
        self._run = run.id
        stopped: Stopped = "error"
        try:
            complete = await self._look_at_all(run.started_at)
            stopped = "done" if complete else "asked" if self._pace.stopping else "time"
        finally:
            async with self._database.transaction() as transaction:
                quarantined = await self._integrity.count_quarantined(transaction)
                self._counts.quarantined = sum(quarantined.values())
                await self._integrity.report(transaction, run.id, self._counts, stopped=stopped)
        async with self._database.transaction() as transaction:
            return (await self._integrity.history(transaction, limit=1))[0]

    async def _look_at_all(self, began: datetime) -> bool:
        """False where it ended before all was seen."""
        await discard_copies(self._database, self._volume, self._keep_seconds)
        if not self._quick and not await self._look_at_quarantined():
            return False
        if not await self._count_strangers():
            return False
        return await (self._compare_sizes() if self._quick else self._read_all(began))

    async def _look_at_quarantined(self) -> bool:
        """Where a worker, or a run that died, has marked bytes and moved nothing: they are moved, or restored where
        they are right after all. So are those that an operator has put back."""
        async for page in self._pages(self._integrity.quarantined):
            looks = await self._all(page, self._read)
            for each, look in zip(page, looks, strict=True):
                match look:
                    case Look(Finding.RIGHT, identity):
                        await self._guarded(self._restore, each, identity)
                    case Look(Finding.CORRUPT, identity):
                        await self._guarded(self._set_aside, each, identity)
        return not self._must_stop()

    async def _count_strangers(self) -> bool:
        strangers = 0
        for first in range(256):
            if self._must_stop():
                return False
            names = await self._volume.names(f"{first:02x}")
            async with self._database.transaction() as transaction:
                strangers += await self._integrity.unnamed(transaction, names, bytes([first]))
        self._counts.strangers = strangers
        return True

    async def _compare_sizes(self) -> bool:
        async for page in self._pages(self._integrity.in_order):
            await self._judge(page, await self._all(page, self._compare_size))
        return not self._must_stop()

    async def _read_all(self, began: datetime) -> bool:
        async for page in self._pages(partial(self._integrity.least_recent, before=began)):
            for batch in self._batches(page):
                if self._must_stop():
                    break
                await self._judge(batch, await self._all(batch, self._read))
        return not self._must_stop()

    def _must_stop(self) -> bool:
        return self._pace.stopping or time.monotonic() > self._deadline

    async def _pages(self, read: Callable[..., Awaitable[list[Custody]]]) -> AsyncIterator[list[Custody]]:
        """Until the last one, or until it is time to stop."""
        after = None
        while not self._must_stop():
            async with self._database.transaction() as transaction:
                page = await read(transaction, after=after, limit=PAGE)
            if not page:
                return
            yield page
            after = page[-1]

    def _batches(self, page: Sequence[Custody]) -> Iterator[list[Custody]]:
        batch: list[Custody] = []
        for each in page:
            batch.append(each)
            if sum(one.size for one in batch) > BATCH_SECONDS * self._pace.bytes_per_second:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _all(
        self, several: Sequence[Custody], look: Callable[[Custody], Awaitable[Look]]
    ) -> Sequence[Look | None]:
        """None where it was interrupted. The threads of the volume are how many are looked at together."""
        looks = await asyncio.gather(*(self._tried(each, look) for each in several), return_exceptions=True)
        for each in looks:
            if isinstance(each, BaseException) and not isinstance(each, Interrupted):
                raise each
        return [None if isinstance(each, BaseException) else each for each in looks]

    async def _tried(self, each: Custody, look: Callable[[Custody], Awaitable[Look]]) -> Look:
        for _ in range(TRIES):
            try:
                return await look(each)
            except CustodyError as error:
                detail = error.detail
            await asyncio.sleep(PAUSE_SECONDS)
        log.warning("bytes_unreadable", sha256=each.sha256.hex(), detail=detail)
        return Look(Finding.UNREADABLE)

    async def _compare_size(self, each: Custody) -> Look:
        identity = await self._volume.identify(each.sha256)
        if identity is None:
            return Look(Finding.MISSING)
        return Look(Finding.RIGHT if identity.size == each.size else Finding.CORRUPT, identity)

    async def _read(self, each: Custody) -> Look:
        """Read twice where the bytes are others: nobody is told of damage that a cable or a cache made up."""
        looks = []
        for _ in range(2):
            found = await self._volume.digest(each.sha256, self._pace.take)
            if found is None:
                return Look(Finding.MISSING)
            looks.append(Look(Finding.RIGHT if found.sha256 == each.sha256 else Finding.CORRUPT, found.identity))
            if looks[-1].finding is Finding.RIGHT:
                break
        return looks[-1]

    async def _judge(self, several: Sequence[Custody], looks: Sequence[Look | None]) -> None:
        seen = [(each, look) for each, look in zip(several, looks, strict=True) if look is not None]
        wrong = [(each, look) for each, look in seen if look.finding is not Finding.RIGHT]
        if wrong:
            # Nothing is missing where the whole volume is.
            async with self._database.transaction() as transaction:
                await check_volume(transaction, self._volume)
        self._counts.checked += len(seen)
        for each, look in wrong:
            await self._guarded(self._quarantine, each, look)
        if not self._quick:
            self._counts.bytes += sum(each.size for each, look in seen if look.identity is not None)
        async with self._database.transaction() as transaction:
            if not self._quick:
                right = [each.sha256 for each, look in seen if look.finding is Finding.RIGHT]
                await self._integrity.found_right(transaction, right)
            await self._integrity.report(transaction, self._run, self._counts, stopped=None)
        self._progress(self._counts)

    async def _guarded(self, act: Callable[..., Awaitable[None]], each: Custody, *more: object) -> None:
        """One that cannot be moved now never stops the rest."""
        try:
            await act(each, *more)
        except CustodyError as error:
            log.warning("bytes_not_quarantined", sha256=each.sha256.hex(), detail=error.detail)
            self._counts.unreadable += 1

    async def _quarantine(self, each: Custody, look: Look) -> None:
        if look.finding is Finding.UNREADABLE:
            self._counts.unreadable += 1
            return
        async with self._database.transaction() as transaction:
            if await self._integrity.lock(transaction, each.sha256) != "present":
                return
            if await self._volume.identify(each.sha256) != look.identity:
                return
            fault: Fault = "missing" if look.identity is None else "corrupt"
            await self._integrity.quarantine(transaction, each.sha256, fault)
        if look.identity is None:
            # A restore may have lost a million.
            log.info("bytes_quarantined", sha256=each.sha256.hex(), fault=fault)
            self._counts.missing += 1
        else:
            log.error("bytes_quarantined", sha256=each.sha256.hex(), fault=fault)
            self._counts.corrupt += 1
            await self._set_aside(each, look.identity)

    async def _set_aside(self, each: Custody, damaged: Identity) -> None:
        async with self._database.transaction() as transaction:
            # An upload may have healed them since they were marked.
            if await self._integrity.lock(transaction, each.sha256) == "quarantined":
                await self._volume.set_aside(each.sha256, damaged)

    async def _restore(self, each: Custody, identity: Identity | None) -> None:
        async with self._database.transaction() as transaction:
            if await self._integrity.lock(transaction, each.sha256) != "quarantined":
                return
            if await self._volume.identify(each.sha256) != identity:
                return
            await self._integrity.restore(transaction, each.sha256)
        log.warning("bytes_restored", sha256=each.sha256.hex())
        self._counts.restored += 1
