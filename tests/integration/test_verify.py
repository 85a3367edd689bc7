"""Verification on a real volume: bits are flipped, files cut, removed and put back, under uploads and cleanups."""

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from broker.maintenance.cleanup.cleanup import Cleanup, Rules
from broker.maintenance.verify import verification
from broker.maintenance.verify.pace import Pace
from broker.maintenance.verify.verification import Verification
from custody.cleanup import Retention
from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.integrity import Custody, Integrity, Run
from custody.volume import Volume, blob_path
from custody.wire import FileState, JobInput
from tests.support.domain import Domain

FAST = 1e12


@pytest.fixture
async def cleanup_database(installation) -> AsyncIterator[Database]:
    async with Database(installation.url("wharf_cleanup"), name="verify", role="wharf_cleanup") as database:
        yield database


@pytest.fixture
def verify(installation, cleanup_database) -> Callable:
    """One run; its settings are `Verification`'s."""

    async def run(*, pace: Pace | None = None, **settings) -> Run:
        volume = Volume(installation.volume, instance="verify", threads=2)
        return await Verification(cleanup_database, volume, pace or Pace(FAST), **settings).run()

    return run


class Kept:
    """Bytes that a tenant keeps, and where they lie."""

    def __init__(self, domain: Domain, content: bytes) -> None:
        self.domain = domain
        self.content = content
        self.sha256 = sha256(content)
        self.path = domain.installation.volume / blob_path(self.sha256.digest())

    def flip(self, position: int = 0) -> None:
        """One bit on the disk is another; inode, size and time of change stay as they were."""
        found = self.path.stat()
        self.path.chmod(0o644)
        with self.path.open("r+b") as file:
            file.seek(position)
            [byte] = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1]))
        os.utime(self.path, ns=(found.st_atime_ns, found.st_mtime_ns))

    @property
    def row(self) -> dict:
        return self.domain.blob(self.sha256.hexdigest())

    @property
    def copies(self) -> list[Path]:
        return sorted((self.domain.installation.volume / "quarantine").glob(f"{self.sha256.hexdigest()}.*"))

    async def upload(self, tenant):
        return (await self.domain.keep(tenant, self.content)).files[0]


@pytest.fixture
async def keep(domain, acme) -> Callable:
    async def keep(content: bytes) -> Kept:
        kept = Kept(domain, content)
        await kept.upload(acme)
        return kept

    return keep


async def test_all_is_read_and_found_right(verify, keep):
    several = [await keep(b"content %d" % number) for number in range(5)]
    run = await verify()
    assert (run.stopped, run.counts.checked, run.counts.damage) == ("done", 5, 0)
    assert run.counts.bytes == sum(len(each.content) for each in several)
    assert (run.counts.strangers, run.counts.quarantined) == (0, 0)
    assert all(each.row["state"] == "present" and each.row["verified_at"] >= run.started_at for each in several)


@pytest.mark.parametrize("position", [0, 70_000, -1])
async def test_a_flipped_bit_is_found_wherever_it_is(verify, keep, position):
    hurt, whole = await keep(b"x" * 200_000), await keep(b"whole")
    hurt.flip(position % 200_000)
    run = await verify()
    assert (run.counts.checked, run.counts.corrupt, run.counts.missing) == (2, 1, 0)
    assert (hurt.row["state"], hurt.row["fault"]) == ("quarantined", "corrupt")
    assert not hurt.path.exists()
    assert [copy.stat().st_size for copy in hurt.copies] == [200_000]
    assert whole.row["state"] == "present"
    assert run.counts.quarantined == 1


async def test_missing_bytes_are_told(verify, keep):
    gone = await keep(b"gone")
    gone.path.unlink()
    run = await verify()
    assert (run.counts.corrupt, run.counts.missing) == (0, 1)
    assert (gone.row["state"], gone.row["fault"]) == ("quarantined", "missing")
    assert [path.name for path in gone.path.parent.iterdir()] == []


async def test_quick_compares_existence_and_size_and_reads_nothing(verify, keep):
    gone, short, flipped, whole = [await keep(b"content %d" % number) for number in range(4)]
    gone.path.unlink()
    short.path.chmod(0o644)
    os.truncate(short.path, 3)
    flipped.flip()
    run = await verify(quick=True)
    assert run.quick
    assert (run.counts.checked, run.counts.bytes, run.counts.corrupt, run.counts.missing) == (4, 0, 1, 1)
    assert (short.row["fault"], gone.row["fault"]) == ("corrupt", "missing")
    assert flipped.row["state"] == whole.row["state"] == "present"
    assert (await verify()).counts.corrupt == 1


async def test_an_upload_of_the_same_bytes_heals_them_for_all_who_have_them(verify, keep, domain, acme, globex):
    hurt = await keep(b"bytes of two tenants")
    theirs = await hurt.upload(globex)
    hurt.flip()
    await verify()
    await hurt.upload(acme)
    assert hurt.path.read_bytes() == hurt.content
    assert (hurt.row["state"], hurt.row["fault"]) == ("present", None)
    async with domain.api.transaction(globex) as transaction:
        file = await domain.files.get(transaction, theirs.id)
    assert file.state is FileState.PRESENT
    run = await verify()
    assert (run.counts.damage, run.counts.quarantined) == (0, 0)


async def test_damaged_bytes_take_no_job_and_say_so(verify, keep, domain, acme):
    hurt, whole = await keep(b"damaged"), await keep(b"whole")
    file = await hurt.upload(acme)
    hurt.flip()
    await verify()
    async with domain.api.transaction(acme) as transaction:
        found = await domain.files.get(transaction, file.id)
        states = {each.sha256: each.state for each in await domain.files.page(transaction, before=None, limit=9)}
        assert not await domain.files.holds(transaction, hurt.sha256.digest())
        assert await domain.files.holds(transaction, whole.sha256.digest())
        assert await domain.files.keep_known(transaction, acme, hurt.sha256.digest(), None) is None
        inputs = [JobInput(sha256=whole.sha256.hexdigest()), JobInput(file=file.id)]
        with pytest.raises(CustodyError) as refused:
            await domain.files.hold(transaction, inputs)
    assert found.state is FileState.CORRUPT
    assert states == {hurt.sha256.hexdigest(): FileState.CORRUPT, whole.sha256.hexdigest(): FileState.PRESENT}
    assert (refused.value.code, refused.value.field) == ("file_corrupt", "inputs.1.file")


async def test_those_not_looked_at_for_longest_come_first(verify, keep, domain, monkeypatch):
    monkeypatch.setattr(verification, "BATCH_SECONDS", 0.0)
    old, older, never = [await keep(b"content %d" % number) for number in range(3)]
    await domain.change("UPDATE wharf.blobs SET verified_at = NULL")
    for kept, days in ((old, 1), (older, 2)):
        await domain.change(
            "UPDATE wharf.blobs SET verified_at = now() - make_interval(days => %s) WHERE sha256 = %s",
            [days, kept.sha256.digest()],
        )
    seen: list[int] = []
    pace = Pace(FAST)

    def stop_after_two(counts) -> None:
        seen.append(counts.checked)
        if counts.checked == 2:
            pace.stop()

    run = await verify(pace=pace, progress=stop_after_two)
    assert (run.stopped, seen) == ("asked", [1, 2])
    assert never.row["verified_at"] >= run.started_at
    assert older.row["verified_at"] >= run.started_at
    assert old.row["verified_at"] < run.started_at
    assert (await verify()).counts.checked == 3


async def test_a_run_ends_when_its_time_is_over_and_the_next_goes_on(verify, keep, domain, monkeypatch):
    monkeypatch.setattr(verification, "BATCH_SECONDS", 0.0)
    for number in range(6):
        await keep(b"content %d" % number)
    await domain.change("UPDATE wharf.blobs SET verified_at = NULL")
    first = await verify(max_seconds=0)
    assert (first.stopped, first.counts.checked, first.counts.strangers) == ("time", 0, None)
    slow = Pace(len(b"content 0") * 4)
    second = await verify(pace=slow, max_seconds=0.8)
    assert second.stopped == "time"
    assert 0 < second.counts.checked < 6
    [left] = domain.rows("SELECT count(*)::int AS blobs FROM wharf.blobs WHERE verified_at IS NULL")
    assert left["blobs"] == 6 - second.counts.checked


async def test_an_end_that_is_asked_for_cuts_a_long_read_off(verify, keep, domain):
    long = await keep(b"x" * 3_000_000)
    await domain.change("UPDATE wharf.blobs SET verified_at = NULL")
    pace = Pace(1_000)  # it would take an hour
    threading.Timer(0.5, pace.stop).start()
    async with asyncio.timeout(60):
        run = await verify(pace=pace)
    assert (run.stopped, run.counts.checked) == ("asked", 0)
    assert long.row["verified_at"] is None


async def test_the_rate_holds_for_all_threads_together():
    pace = Pace(1_000_000)
    started = asyncio.get_running_loop().time()
    threads = [threading.Thread(target=lambda: [pace.take(50_000) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert asyncio.get_running_loop().time() - started >= 0.9  # 1,000,000 bytes, the first of them at once


async def test_what_cannot_be_read_is_told_and_not_condemned(verify, keep):
    hurt = await keep(b"unreadable")
    hurt.path.unlink()
    hurt.path.mkdir()
    run = await verify()
    assert (run.counts.unreadable, run.counts.corrupt, run.counts.missing) == (1, 0, 0)
    assert hurt.row["state"] == "present"
    assert (await verify()).counts.unreadable == 1


async def test_a_read_that_fails_once_is_tried_again(verify, keep, monkeypatch):
    await keep(b"shaky")
    digest, answers = Volume.digest, [True]

    async def shaky(self, *arguments):
        if answers:
            answers.pop()
            raise CustodyError("volume_unavailable", "The volume answered EIO.")
        return await digest(self, *arguments)

    monkeypatch.setattr(Volume, "digest", shaky)
    run = await verify()
    assert (run.counts.checked, run.counts.damage, answers) == (1, 0, [])


async def test_damage_that_is_not_there_at_a_second_look_is_none(verify, keep, monkeypatch):
    kept = await keep(b"a bad cable")
    digest, flips = Volume.digest, [True]

    async def shaky(self, *arguments):
        if flips:
            flips.pop()
            kept.flip()
            try:
                return await digest(self, *arguments)
            finally:
                kept.flip()
        return await digest(self, *arguments)

    monkeypatch.setattr(Volume, "digest", shaky)
    assert (await verify()).counts.damage == 0
    assert flips == []


@pytest.mark.parametrize("in_its_place", ["nothing", "another volume"])
async def test_nothing_is_missing_where_the_volume_itself_is(verify, keep, installation, in_its_place):
    kept = [await keep(b"content %d" % number) for number in range(3)]
    away = installation.volume.with_name(installation.volume.name + "-away")
    installation.volume.rename(away)
    installation.volume.mkdir()
    if in_its_place == "another volume":
        Volume(installation.volume, instance="other").prepare(new_id())
    try:
        with pytest.raises((StartError, CustodyError)):
            await verify(quick=True)
    finally:
        shutil.rmtree(installation.volume)
        away.rename(installation.volume)
    assert all(each.row["state"] == "present" for each in kept)
    assert (await verify()).counts.damage == 0


async def test_what_a_worker_quarantined_is_moved_where_it_is_damaged_and_restored_where_it_is_right(
    verify, keep, domain
):
    hurt, right = await keep(b"hurt"), await keep(b"right")
    hurt.flip()
    await domain.change("UPDATE wharf.blobs SET state = 'quarantined', fault = 'corrupt'")
    run = await verify()
    assert (run.counts.restored, run.counts.corrupt, run.counts.quarantined) == (1, 0, 1)
    assert (right.row["state"], right.row["fault"]) == ("present", None)
    assert hurt.row["state"] == "quarantined"
    assert (hurt.path.exists(), len(hurt.copies)) == (False, 1)


async def test_missing_bytes_that_are_put_back_are_taken_again(verify, keep):
    gone = await keep(b"restored from a backup")
    gone.path.unlink()
    await verify(quick=True)
    gone.path.write_bytes(gone.content)
    assert (await verify()).counts.restored == 1
    assert gone.row["state"] == "present"


async def test_bytes_without_a_row_are_counted_and_left(verify, keep, installation):
    await keep(b"known")
    stranger = installation.volume / blob_path(sha256(b"unknown").digest())
    stranger.write_bytes(b"unknown")
    assert (await verify()).counts.strangers == 1
    assert stranger.exists()


async def test_damaged_copies_go_once_they_are_old_and_nobody_waits_for_them(verify, keep, domain, acme):
    waiting, healed = await keep(b"waiting"), await keep(b"healed")
    for each in (waiting, healed):
        each.flip()
    await verify()
    await healed.upload(acme)
    await verify()
    assert (len(waiting.copies), len(healed.copies)) == (1, 1)
    await verify(keep_seconds=0)
    assert (len(waiting.copies), len(healed.copies)) == (1, 0)
    assert waiting.row["state"] == "quarantined"


async def test_a_cleanup_takes_a_damaged_copy_with_the_last_reference_and_no_sooner(
    verify, keep, domain, acme, cleanup_database
):
    purged, waiting, healed = await keep(b"purged"), await keep(b"waiting"), await keep(b"healed")
    for each in (purged, waiting, healed):
        each.flip()
    await verify()
    await healed.upload(acme)
    async with domain.api.transaction(acme) as transaction:
        [file] = [each for each in await domain.files.page(transaction, before=None, limit=9)
                  if each.sha256 == purged.sha256.hexdigest()]  # fmt: skip
        await domain.files.delete(transaction, file.id)
    rules = Rules(
        retention=Retention(files=timedelta(days=30), jobs=timedelta(days=90)),
        receipt_days=365,
        grace=None,
        staging=timedelta(days=1),
        orphan_fraction=1,
        sweep=True,
    )
    volume = Volume(domain.installation.volume, instance="cleanup")
    run = await Cleanup(cleanup_database, volume, rules).run()
    assert (run.removed_blobs, run.errors) == (1, 0)
    assert [len(each.copies) for each in (purged, waiting, healed)] == [0, 1, 1]
    await Cleanup(cleanup_database, volume, replace(rules, quarantine=timedelta())).run()
    assert [len(each.copies) for each in (purged, waiting, healed)] == [0, 1, 0]
    assert waiting.row["state"] == "quarantined"


async def test_an_upload_that_comes_between_look_and_judgement_is_kept(verify, keep, acme, monkeypatch):
    """The look saw damaged bytes; by the time of the lock other ones are in their place."""
    hurt = await keep(b"healed just now")
    hurt.flip()
    lock = Integrity.lock

    async def late(self, transaction, digest):
        monkeypatch.setattr(Integrity, "lock", lock)
        # A worker has reported it and a client has uploaded it, since the look.
        await hurt.domain.change("UPDATE wharf.blobs SET state = 'quarantined', fault = 'corrupt'")
        await hurt.upload(acme)
        return await lock(self, transaction, digest)

    monkeypatch.setattr(Integrity, "lock", late)
    run = await verify()
    assert (run.counts.corrupt, run.counts.missing) == (0, 0)
    assert (hurt.row["state"], hurt.path.read_bytes()) == ("present", hurt.content)


async def test_an_upload_that_comes_between_mark_and_move_is_kept(verify, keep, acme, monkeypatch):
    hurt = await keep(b"healed just now")
    hurt.flip()
    set_aside = Verification._set_aside

    async def late(self, *looked_at):
        await hurt.upload(acme)
        await set_aside(self, *looked_at)

    monkeypatch.setattr(Verification, "_set_aside", late)
    run = await verify()
    assert run.counts.corrupt == 1
    assert (hurt.row["state"], hurt.path.read_bytes(), hurt.copies) == ("present", hurt.content, [])


async def test_a_copy_that_an_operator_puts_back_between_look_and_move_stays(verify, keep, monkeypatch):
    hurt = await keep(b"put back from a backup")
    hurt.flip()
    set_aside = Verification._set_aside

    async def late(self, *looked_at):
        whole = hurt.path.with_name("whole")
        whole.write_bytes(hurt.content)
        whole.replace(hurt.path)
        await set_aside(self, *looked_at)

    monkeypatch.setattr(Verification, "_set_aside", late)
    assert (await verify()).counts.corrupt == 1
    assert (hurt.path.read_bytes(), hurt.copies) == (hurt.content, [])
    assert (await verify()).counts.restored == 1


async def test_bytes_that_a_cleanup_takes_meanwhile_are_not_missing(verify, keep, domain, monkeypatch):
    kept = await keep(b"on their way out")
    read = Verification._read

    async def late(self, each):
        await domain.change("UPDATE wharf.blobs SET state = 'deleting'")
        kept.path.unlink()
        return await read(self, each)

    monkeypatch.setattr(Verification, "_read", late)
    run = await verify()
    assert (run.counts.missing, run.counts.quarantined) == (0, 0)
    assert kept.row["state"] == "deleting"


async def test_uploads_of_the_same_bytes_and_runs_go_on_together(verify, keep, domain, acme):
    """Damaged again and again while it is uploaded again and again: a `present` row always has its bytes."""
    kept = await keep(os.urandom(300_000))
    runs = []
    for _ in range(6):
        kept.flip()
        _, *uploads = await asyncio.gather(verify(), *(kept.upload(acme) for _ in range(4)))
        runs += uploads
        if kept.row["state"] == "quarantined":
            await kept.upload(acme)
        assert kept.row["state"] == "present"
        assert kept.path.read_bytes() == kept.content
    assert domain.staged() == []


async def test_the_history_tells_of_each_run_and_of_those_that_were_killed(verify, keep, domain, cleanup_database):
    hurt = await keep(b"hurt")
    hurt.flip()
    await verify()
    await domain.change(
        "INSERT INTO wharf.verify_runs (id, quick) VALUES ('00000000-0000-7000-8000-000000000000', true)"
    )
    await verify(quick=True)
    async with cleanup_database.transaction() as transaction:
        newest, full, killed = await Integrity().history(transaction, limit=9)
    assert (newest.quick, newest.stopped, newest.counts.damage, newest.counts.quarantined) == (True, "done", 0, 1)
    assert (full.quick, full.stopped, full.counts.corrupt) == (False, "done", 1)
    assert (killed.stopped, killed.ended_at) == ("killed", None)


async def test_what_was_lost_is_told_by_tenant(verify, keep, acme, globex, cleanup_database):
    hurt = await keep(b"of two tenants")
    await hurt.upload(globex)
    await hurt.upload(globex)
    await keep(b"whole")
    hurt.flip()
    await verify()
    async with cleanup_database.transaction() as transaction:
        assert await Integrity().files_lost(transaction) == {"acme": 1, "globex": 2}
        assert await Integrity().count_quarantined(transaction) == {"corrupt": 1}


async def test_the_walks_are_led_by_indexes_and_sort_nothing(domain, installation):
    """By what is looked at, and by nothing that grows with what is kept."""
    await domain.change(
        """
        INSERT INTO wharf.blobs (sha256, size, state, verified_at)
        SELECT sha256(n::text::bytea), 1, 'present', now() - make_interval(secs => n) FROM generate_series(1, 20000) n
        """
    )
    await domain.change("ANALYZE wharf.blobs")
    plans: list[str] = []

    class Explained:
        """Runs no statement, and keeps its plan."""

        def __init__(self, transaction) -> None:
            self._transaction = transaction

        async def execute(self, statement, values):
            found = await self._transaction.execute("EXPLAIN " + statement, values)
            plans.append("\n".join(row["QUERY PLAN"] for row in await found.fetchall()))
            return await self._transaction.execute("SELECT sha256 FROM wharf.blobs WHERE false")

    integrity, after = Integrity(), Custody(b"\x80" * 32, 1, "2020-01-01")
    async with (
        Database(installation.url("wharf_cleanup"), name="verify", by_index=True) as database,
        database.transaction() as transaction,
    ):
        explained = Explained(transaction)
        await integrity.least_recent(explained, before=datetime.now(UTC), after=after, limit=500)
        await integrity.in_order(explained, after=after, limit=500)
        await integrity.quarantined(explained, after=after, limit=500)
        await integrity.unnamed(explained, set(), b"\x80")
    by_age, by_digest, quarantined, prefix = plans
    assert "blobs_by_verification" in by_age
    assert "ROW(" in by_age
    assert "blobs_pkey" in by_digest
    assert "blobs_quarantined" in quarantined
    assert "blobs_pkey" in prefix
    assert not [plan for plan in plans if "Sort" in plan or "Seq Scan" in plan]
