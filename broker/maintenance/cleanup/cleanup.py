"""One cleanup, from its start to its row in the history: the order of the steps, their batches, and what becomes of
those candidates that fail."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from broker.maintenance.marks import leave_mark, suspected_restore
from broker.maintenance.quarantine import discard_copies
from custody import audit, cleanup, installation
from custody.cleanup import FAILURES, Plan, Retention, Run
from custody.database import Database, Transaction
from custody.errors import CustodyError
from custody.installation import SweepOff
from custody.pressure import Watermarks
from custody.removal import FOLDERS, FOLDERS_AT_ONCE, Removal, Sight, Stray, Withdrawal, Withdrawn
from custody.volume import Volume

log = structlog.get_logger()

BATCH = 500
INPUTS_AT_ONCE = 5000
"""Of old jobs that go together; a job that has more goes alone."""

WITHDRAW_SECONDS = 10.0
"""After so long no more bytes of a batch are withdrawn: uploads of the same bytes wait for its end."""

SAVE_EVERY_SECONDS = 1.0
ERRORS_TOLD = 20
ORPHANS_AT_ONCE = 100_000

Row = Mapping[str, Any]
Find = Callable[[Transaction, Any, int], Awaitable[Sequence[Row]]]
Treat = Callable[[Sequence[Row]], Awaitable[None]]
Cut = Callable[[Sequence[Row]], Sequence[Row]]


@dataclass(frozen=True)
class Rules:
    """`receipt_days`: older receipts are forgotten. `grace`: bytes that nobody refers to stay for so long; None: they
    go at once. `staging`: what nobody has written to for so long is abandoned. `orphan_fraction`: of the files seen;
    where more are orphans, they are only reported. `quarantine`: damaged copies of what was healed stay for so long.
    `sweep`: whether a look through the whole volume is due. `max_seconds`: no batch begins later. `make_room`: the
    volume is nearly full, and bytes go until it is below the low one of these marks, those first that were let go of
    first."""

    retention: Retention
    receipt_days: int
    grace: timedelta | None
    staging: timedelta
    orphan_fraction: float
    quarantine: timedelta = timedelta(days=7)
    sweep: bool = True
    max_seconds: float | None = None
    make_room: Watermarks | None = None


@dataclass(frozen=True)
class Preview:
    """What a cleanup would do. `sweep_off`: why it would only report orphans."""

    rows: Plan
    staging: int
    orphans: int
    missing: int
    sweep_off: str | None


class _StopError(Exception):
    """Between two batches: the time is up, or somebody has asked for the end."""


class Cleanup:
    """One run. `tell` is given a line before each step, for whoever watches."""

    def __init__(
        self, database: Database, volume: Volume, rules: Rules, *, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._database = database
        self._volume = volume
        self._removal = Removal(volume)
        self._rules = rules
        self._tell = tell
        self._asked_to_stop = False
        self._run = Run(without_grace=rules.grace is None, under_pressure=rules.make_room is not None)
        self._until: float | None = None
        self._saved = time.monotonic()

    def stop(self) -> None:
        """Ends the run after its present batch."""
        self._asked_to_stop = True

    async def run(self) -> Run:
        """Everything that is due, and a row of it in the history. The volume's instance is this run's alone.

        Raises `StartError` where the volume is not this database's, `CustodyError` where one of them does not answer;
        the history has that too, where it can."""
        run = self._run
        async with self._database.transaction() as transaction:
            await installation.check_volume(transaction, self._volume)
            run.started_at = await cleanup.begin_run(transaction, run)
        if self._rules.max_seconds is not None:
            self._until = time.monotonic() + self._rules.max_seconds
        try:
            run.stopped = await self._steps()
            await self._leave_mark()
        except BaseException as error:
            run.stopped = "error"
            self._fault("cleanup", error)
            raise
        finally:
            with suppress(CustodyError):
                async with self._database.transaction() as transaction:
                    await cleanup.save_run(transaction, run)
            log.info("cleanup_ended", **run.as_json())
        return run

    async def _steps(self) -> str:
        """Why it came to an end."""
        retention = self._rules.retention
        try:
            mark = await self._compare_marks()
            self._tell("what a former cleanup has left")
            await self._volume.run(self._volume.discard_former)
            await self._settle(await self._removal.left_withdrawn())
            self._tell("files that have expired or were deleted")
            await self._each(cleanup.find_undated, self._date_files)
            await self._each(cleanup.find_expired, self._remove_files)
            await self._each(cleanup.find_deleted, self._remove_files)
            if self._rules.make_room:
                self._tell("bytes that nobody refers to")
                await self._each(cleanup.find_deleting, self._remove_bytes)
                await self._each(partial(cleanup.find_suspects, grace=None), self._make_room)
                return "done"
            self._tell("old jobs and their results")
            await self._each(partial(cleanup.find_old_jobs, retention=retention), self._remove_jobs, _few_inputs)
            await self._each(partial(cleanup.find_old_keys, retention=retention), self._remove_keys)
            self._tell("old receipts")
            await self._forget_receipts()
            self._tell("bytes that nobody refers to")
            await self._each(partial(cleanup.find_suspects, grace=self._rules.grace), self._mark_bytes)
            await self._each(cleanup.find_deleting, self._remove_bytes)
            await self._discard_damaged()
            self._tell("abandoned uploads")
            clock = await self._removal.clock()
            await self._remove_leftovers(await self._removal.abandoned(clock - self._staging))
            if self._rules.sweep:
                self._tell("bytes that no row knows")
                # A row that the database lost with a restore is younger than the mark that it shares with the volume.
                if await self._sweep(clock - self._staging, min(clock, mark or clock) - self._staging):
                    await self._each(cleanup.find_deleting, self._remove_bytes)
        except _StopError as reason:
            return str(reason)
        return "done"

    @property
    def _staging(self) -> float:
        return self._rules.staging.total_seconds()

    # Restores

    async def _compare_marks(self) -> float | None:
        """When the last mark was left, by the file server's clock; None where there is none."""
        mark = await self._removal.read_mark()
        async with self._database.transaction() as transaction:
            if reason := await installation.suspected_restore(transaction, mark[0] if mark else None):
                await installation.turn_sweep_off(transaction, reason)
                log.error("restore_suspected", reason=reason)
        return mark[1] if mark else None

    async def _leave_mark(self) -> None:
        try:
            await leave_mark(self._database, self._removal)
        except CustodyError as error:
            if error.code != "storage_full":
                raise
            # The volume keeps its former mark, which the database knows as well.
            self._fault("checkpoint", error)

    # Rows

    async def _date_files(self, found: Sequence[Row]) -> None:
        async with self._database.transaction() as transaction:
            await cleanup.date_files(transaction, _ids(found), self._rules.retention)

    async def _remove_files(self, found: Sequence[Row]) -> None:
        async with self._database.transaction() as transaction:
            removed = await cleanup.remove_files(transaction, _ids(found))
        self._run.expired_files += removed

    async def _remove_jobs(self, found: Sequence[Row]) -> None:
        async with self._database.transaction() as transaction:
            removed = await cleanup.remove_jobs(transaction, _ids(found))
        self._run.expired_jobs += removed

    async def _remove_keys(self, found: Sequence[Row]) -> None:
        async with self._database.transaction() as transaction:
            await cleanup.remove_keys(transaction, found)

    async def _forget_receipts(self) -> None:
        forgotten = BATCH
        while forgotten == BATCH:
            self._look_at_the_time()
            try:
                async with self._database.transaction() as transaction:
                    forgotten = await audit.forget(transaction, older_than_days=self._rules.receipt_days, limit=BATCH)
            except FAILURES as error:
                self._fault("receipts", error)
                return

    async def _mark_bytes(self, found: Sequence[Row]) -> None:
        async with self._database.transaction() as transaction:
            await cleanup.mark(transaction, _sha256s(found))

    # Bytes

    async def _make_room(self, found: Sequence[Row]) -> None:
        await self._mark_bytes(found)
        await self._remove_bytes(found)
        usage = await self._volume.usage()
        if self._rules.make_room and usage.free >= self._rules.make_room.free_at_low(usage):
            raise _StopError("done")

    async def _remove_bytes(self, found: Sequence[Row]) -> None:
        withdrawal = Withdrawal()
        try:
            async with self._database.transaction() as transaction:
                free, referenced = await cleanup.lock_deleting(transaction, _sha256s(found))
                withdrawal = await self._removal.withdraw(free, seconds=WITHDRAW_SECONDS)
                gone = [one.sha256 for one in withdrawal.moved]
                await cleanup.forget_blobs(transaction, [*gone, *withdrawal.absent])
        except FAILURES:
            # Whether the lock was held until now, nobody knows.
            await self._settle(withdrawal.moved)
            raise
        self._run.removed_blobs += len(withdrawal.moved) + len(withdrawal.absent)
        for sha256 in referenced:
            self._fault(sha256.hex(), "is `deleting`, and something refers to it: it is left alone")
        for sha256, reason in withdrawal.failed.items():
            self._fault(sha256.hex(), reason)
        await self._discard(withdrawal.moved)

    async def _discard_damaged(self) -> None:
        try:
            await discard_copies(self._database, self._volume, self._rules.quarantine.total_seconds())
        except FAILURES as error:
            self._fault("quarantine", error)

    async def _discard(self, withdrawn: Sequence[Withdrawn]) -> None:
        failed = await self._removal.discard(withdrawn)
        self._run.freed_bytes += sum(one.size for one in withdrawn if one.sha256 not in failed)
        for sha256, reason in failed.items():
            self._fault(sha256.hex(), reason)

    async def _settle(self, withdrawn: Sequence[Withdrawn]) -> None:
        """Bytes that are out of the tree although no commit says that they may be."""
        for one in withdrawn:
            try:
                async with self._database.transaction() as transaction:
                    promised = await cleanup.lock_promised(transaction, one.sha256)
                    if promised:
                        await self._removal.put_back(one)
            except FAILURES as error:
                self._fault(one.sha256.hex(), error)
                if isinstance(error, CustodyError) and error.code == "database_unavailable":
                    return  # The next cleanup finds the rest.
                continue
            if not promised:
                await self._discard([one])

    async def _remove_leftovers(self, found: Sequence[Stray]) -> None:
        for stray in found:
            self._look_at_the_time()
            try:
                await self._removal.remove(stray)
                self._run.staging += 1
            except CustodyError as error:
                self._fault(stray.path.name, error)

    async def _sweep(self, abandoned_before: float, orphans_before: float) -> bool:
        """Looks through the volume, from where the last sweep stopped. True where there is something to remove now."""
        async with self._database.transaction() as transaction:
            last = await cleanup.last_sweep(transaction)
            off = await installation.sweep_off(transaction)
        begin = last.swept_to if last and last.swept_to is not None and last.swept_to < FOLDERS else 0
        files = 0
        orphans: dict[bytes, int] = {}
        # Told when its orphans are on their way: a crash before that makes the next sweep begin here.
        self._run.swept_to = seen = begin
        stopped = None
        try:
            for first in range(begin, FOLDERS, FOLDERS_AT_ONCE):
                self._look_at_the_time()
                sight = await look(self._database, self._removal, first)
                files += sight.files
                for stray in sight.strays:
                    if stray.modified < orphans_before and len(orphans) < ORPHANS_AT_ONCE:
                        orphans[bytes.fromhex(stray.path.name)] = stray.size
                await self._remove_leftovers([stray for stray in sight.leftovers if stray.modified < abandoned_before])
                for sha256 in sight.missing:
                    self._run.missing += 1
                    self._fault(sha256.hex(), "its bytes are missing", counts=False)
                seen = first + FOLDERS_AT_ONCE
                await self._save_now_and_then()
        except _StopError as reason:
            stopped = reason
        self._run.orphans = len(orphans)
        taken = await self._take(orphans, files, off)
        self._run.swept_to = seen
        if stopped:
            raise stopped
        return taken

    async def _take(self, orphans: Mapping[bytes, int], files: int, off: SweepOff | None) -> bool:
        if not orphans:
            return False
        if off:
            return self._only_report(off.reason)
        if len(orphans) > self._rules.orphan_fraction * files:
            return self._only_report(f"{len(orphans)} of {files} files are more than WHARF_MAX_ORPHAN_FRACTION allows.")
        for some in _batches(sorted(orphans)):
            async with self._database.transaction() as transaction:
                await cleanup.adopt_orphans(transaction, {sha256: orphans[sha256] for sha256 in some})
        return True

    def _only_report(self, reason: str) -> bool:
        self._fault("orphans", f"are only reported. {reason}", counts=False)
        return False

    # Batches

    async def _each(
        self, find: Find, treat: Treat, cut: Callable[[Sequence[Row]], Sequence[Row]] | None = None
    ) -> None:
        """All candidates, batch by batch; one that fails does not keep the others."""
        after: Row | None = None
        while True:
            self._look_at_the_time()
            async with self._database.transaction() as transaction:
                found = await find(transaction, after, BATCH)
            if not found:
                return
            if cut:
                found = cut(found)
            after = found[-1]
            try:
                await treat(found)
            except FAILURES:
                await self._one_by_one(found, treat)
            await self._save_now_and_then()

    async def _one_by_one(self, found: Sequence[Row], treat: Treat) -> None:
        for row in found:
            try:
                await treat([row])
            except FAILURES as error:
                if isinstance(error, CustodyError):
                    # Where the database or the volume is away, there is no use in going on.
                    await self._removal.check()
                    async with self._database.transaction():
                        pass
                self._fault(_name(row), error)

    def _look_at_the_time(self) -> None:
        if self._asked_to_stop:
            raise _StopError("asked")
        if self._until is not None and time.monotonic() >= self._until:
            raise _StopError("time")

    async def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved >= SAVE_EVERY_SECONDS:
            self._saved = time.monotonic()
            async with self._database.transaction() as transaction:
                await cleanup.save_run(transaction, self._run)

    def _fault(self, subject: str, reason: object, *, counts: bool = True) -> None:
        said = reason.detail if isinstance(reason, CustodyError) else str(reason).strip()
        self._run.errors += counts
        if len(self._run.first_errors) < ERRORS_TOLD:
            self._run.first_errors.append(f"{subject}: {said}")
        log.error("cleanup_fault", subject=subject, reason=said)


async def preview(database: Database, volume: Volume, rules: Rules) -> Preview:
    """What a cleanup would do. Changes nothing. Raises as `Cleanup.run` does."""
    removal = Removal(volume)
    suspected = await suspected_restore(database, removal)
    async with database.transaction() as transaction:
        await transaction.execute("SET TRANSACTION READ ONLY")
        await installation.check_volume(transaction, volume)
        rows = await cleanup.plan(transaction, rules.retention, rules.grace)
        off = await installation.sweep_off(transaction)
        reason = off.reason if off else suspected
    # By this machine's clock: the file server's is only to be had by writing something.
    before = time.time() - rules.staging.total_seconds()
    abandoned = len(await removal.abandoned(before))
    orphans = missing = 0
    for first in range(0, FOLDERS, FOLDERS_AT_ONCE):
        sight = await look(database, removal, first)
        orphans += sum(stray.modified < before for stray in sight.strays)
        abandoned += sum(stray.modified < before for stray in sight.leftovers)
        missing += len(sight.missing)
    return Preview(rows, abandoned, orphans, missing, reason)


async def look(database: Database, removal: Removal, first: int) -> Sight:
    """What lies in some of the volume's folders, beside the rows. The rows come first: bytes are there before their
    row promises them."""
    begin = first // FOLDERS_AT_ONCE
    async with database.transaction() as transaction:
        known = await cleanup.blobs_between(transaction, bytes([begin]) + bytes(31), bytes([begin]) + b"\xff" * 31)
    sight = await removal.look(first, known)
    if not sight.missing:
        return sight
    async with database.transaction() as transaction:
        return replace(sight, missing=await cleanup.still_promised(transaction, sight.missing))


def _few_inputs(jobs: Sequence[Row]) -> Sequence[Row]:
    """The first of them, as many as have few inputs together."""
    inputs = 0
    for number, job in enumerate(jobs):
        inputs += job["total"]
        if inputs > INPUTS_AT_ONCE:
            return jobs[: max(number, 1)]
    return jobs


def _batches(items: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _ids(found: Sequence[Row]) -> list[UUID]:
    return [row["id"] for row in found]


def _sha256s(found: Sequence[Row]) -> list[bytes]:
    return [row["sha256"] for row in found]


def _name(row: Row) -> str:
    return row["sha256"].hex() if "sha256" in row else str(row.get("id", row.get("key")))
