"""The cleanup on a real database and a real volume: what goes, what stays, and what it says of it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from broker.maintenance.cleanup.cleanup import BATCH, Cleanup, Rules, preview
from broker.maintenance.cleanup.schedule import clean_once
from broker.maintenance.cleanup.settings import CleanupSettings
from broker.maintenance.marks import leave_mark, suspected_restore
from custody import cleanup as statements
from custody import reruns
from custody.cleanup import Retention, Run, list_runs
from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.installation import sweep_off, turn_sweep_on
from custody.instance import Alone
from custody.pressure import Watermarks
from custody.removal import FOLDERS, Removal
from custody.settings import load
from custody.volume import Usage, Volume, blob_path
from standalone.database_cluster import programs_of_the_wheel
from tests.support.domain import Domain

RETENTION = Retention(files=timedelta(days=30), jobs=timedelta(days=90))
DAY = 86_400
FULL = Watermarks(high=1, low=1e-9, headroom_bytes=1 << 60)
"""However much is free, there is never enough."""


@pytest.fixture
async def cleanup_database(installation):
    url = installation.url("wharf_cleanup")
    async with Database(url, name="cleanup", role="wharf_cleanup", size=2, by_index=True) as database:
        yield database


@pytest.fixture
def cleaning(domain, cleanup_database):
    """A run that is yet to begin."""
    volume = Volume(domain.volume.root, instance="cleanup.test")
    return lambda **named: Cleanup(cleanup_database, volume, rules(**named))


@pytest.fixture
def clean(cleaning):
    async def run(**named) -> Run:
        return await cleaning(**named).run()

    return run


def rules(**named) -> Rules:
    """Without grace, and without a sweep, unless they are asked for."""
    given = {
        "retention": RETENTION,
        "receipt_days": 365,
        "grace": None,
        "staging": timedelta(hours=24),
        "orphan_fraction": 0.1,
    }
    return Rules(**{**given, "sweep": False, **named})


# Files and their bytes


async def test_an_expired_file_and_its_bytes_go(domain, acme, clean):
    await expire(domain, await keep(domain, acme, b"a picture"))
    run = await clean()
    assert (run.stopped, run.expired_files, run.removed_blobs, run.freed_bytes) == ("done", 1, 1, 9)
    assert_nothing_is_left(domain)


async def test_a_deleted_file_and_its_bytes_go(domain, acme, clean):
    await let_go(domain, acme, await keep(domain, acme, b"a picture"))
    run = await clean()
    assert (run.expired_files, run.removed_blobs, run.freed_bytes) == (1, 1, 9)
    assert_nothing_is_left(domain)


async def test_what_has_not_expired_stays(domain, acme, clean):
    file = await keep(domain, acme, b"a picture")
    run = await clean(sweep=True)
    assert (run.expired_files, run.removed_blobs, run.orphans, run.missing, run.errors) == (0, 0, 0, 0, 0)
    assert_held(domain, file, b"a picture")


async def test_a_pinned_file_stays_whatever_its_age(domain, acme, clean):
    file = await keep(domain, acme, b"a picture")
    await expire(domain, file, days=400)
    await domain.change("UPDATE wharf.files SET pinned = true")
    assert (await clean()).expired_files == 0
    assert_held(domain, file, b"a picture")
    async with domain.api.transaction(acme) as transaction:
        assert await domain.files.get(transaction, file)


async def test_a_run_whose_node_is_drained_ends_in_good_order_and_the_next_one_goes_on(domain, acme, clean):
    await expire(domain, await keep(domain, acme, b"a picture"))
    settings = load(
        CleanupSettings, database_url=domain.installation.url("wharf_cleanup"), volume=domain.installation.volume
    )
    run = await clean_once(
        settings, without_grace=True, max_seconds=None, tell=lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert (run.stopped, run.expired_files) == ("asked", 0)
    assert (await clean()).expired_files == 1
    assert_nothing_is_left(domain)


@pytest.mark.parametrize("let", ["expire", "be deleted"])
async def test_a_file_with_an_open_task_is_not_touched_until_the_task_has_ended(domain, acme, clean, let):
    file = await keep(domain, acme, b"a picture")
    await domain.submit_on(acme, [file])
    await (expire(domain, file, days=400) if let == "expire" else let_go(domain, acme, file))
    assert (await clean()).expired_files == 0
    [claim] = await domain.claim()
    assert (await clean()).expired_files == 0
    assert_held(domain, file, b"a picture")
    await domain.end(claim)
    assert (await clean()).removed_blobs == 1
    assert_nothing_is_left(domain)


async def test_bytes_that_another_tenant_holds_stay(domain, acme, globex, clean):
    await expire(domain, await keep(domain, acme, b"a picture"))
    other = await keep(domain, globex, b"a picture")
    run = await clean()
    assert (run.expired_files, run.removed_blobs) == (1, 0)
    assert_held(domain, other, b"a picture")
    assert domain.rows("SELECT sha256 FROM wharf.suspects") == []
    await let_go(domain, globex, other)
    assert (await clean()).removed_blobs == 1
    assert_nothing_is_left(domain)


async def test_bytes_stay_for_their_grace(domain, acme, clean):
    await let_go(domain, acme, await keep(domain, acme, b"a picture"))
    hour = timedelta(hours=1)
    run = await clean(grace=hour)
    assert (run.expired_files, run.removed_blobs, run.without_grace) == (1, 0, False)
    assert domain.bytes_of(digest(b"a picture")) == b"a picture"
    await domain.change("UPDATE wharf.suspects SET since = since - interval '1 hour'")
    assert (await clean(grace=hour)).removed_blobs == 1
    assert_nothing_is_left(domain)


async def test_grace_counts_from_when_the_last_one_let_go(domain, acme, globex, clean):
    await let_go(domain, acme, await keep(domain, acme, b"a picture"))
    await domain.change("UPDATE wharf.suspects SET since = since - interval '1 day'")
    await let_go(domain, globex, await keep(domain, globex, b"a picture"))
    assert (await clean(grace=timedelta(hours=1))).removed_blobs == 0


async def test_what_is_to_go_at_once_has_no_grace_whoever_lets_go_later(domain, acme, globex, clean):
    await let_go(domain, acme, await keep(domain, acme, b"a picture"))
    await domain.change("UPDATE wharf.suspects SET since = '-infinity'")
    await let_go(domain, globex, await keep(domain, globex, b"a picture"))
    assert (await clean(grace=timedelta(hours=1))).removed_blobs == 1
    assert_nothing_is_left(domain)


async def test_bytes_that_only_a_task_refers_to_are_looked_at_again_later(domain, acme, clean):
    file = await keep(domain, acme, b"a picture")
    await domain.submit_on(acme, [file])
    # As a release that took rows away at once would do it.
    await domain.change("DELETE FROM wharf.files")
    assert (await clean(grace=timedelta(0))).removed_blobs == 0
    later = domain.rows("SELECT look_at > now() + interval '30 seconds' AS later FROM wharf.suspects")
    assert later == [{"later": True}]
    [claim] = await domain.claim()
    assert (domain.volume.root / claim.path).read_bytes() == b"a picture"
    await domain.end(claim)
    assert (await clean(grace=timedelta(0))).removed_blobs == 0
    await domain.change("UPDATE wharf.suspects SET look_at = now()")
    assert (await clean(grace=timedelta(0))).removed_blobs == 1
    assert_nothing_is_left(domain)


async def test_files_of_an_older_release_are_given_an_end(domain, acme, globex, clean):
    for tenant in (acme, globex):
        await keep(domain, tenant, b"a picture")
    await domain.change("UPDATE wharf.files SET expires_at = NULL")
    await domain.change("UPDATE wharf.tenants SET file_retention = interval '7 days' WHERE id = %s", [globex])
    await clean()
    days = "SELECT tenant_id, round(extract(epoch FROM expires_at - now()) / 86400) AS days FROM wharf.files"
    assert {row["tenant_id"]: row["days"] for row in domain.rows(days)} == {acme: 30, globex: 7}


async def test_quarantined_bytes_that_nobody_refers_to_go(domain, acme, clean):
    await let_go(domain, acme, await keep(domain, acme, b"a picture"))
    await domain.change("UPDATE wharf.blobs SET state = 'quarantined', fault = 'missing'")
    (domain.volume.root / blob_path(digest(b"a picture"))).unlink()
    assert (await clean()).removed_blobs == 1
    assert_nothing_is_left(domain)


async def test_many_more_than_a_batch_go(domain, acme, clean, monkeypatch):
    monkeypatch.setattr("broker.maintenance.cleanup.cleanup.BATCH", 7)
    files = [await keep(domain, acme, str(number).encode()) for number in range(40)]
    await expire(domain, *files[:30])
    run = await clean()
    assert (run.expired_files, run.removed_blobs) == (30, 30)
    assert len(tree(domain)) == 10


# Room


async def test_to_make_room_bytes_go_without_grace_the_first_let_go_first_until_there_is_enough(
    domain, acme, clean, monkeypatch
):
    monkeypatch.setattr("broker.maintenance.cleanup.cleanup.BATCH", 1)
    pictures = [b"first", b"second", b"third", b"fourth"]
    for age, picture in zip((4, 3, 2, 1), pictures, strict=True):
        await let_go(domain, acme, await keep(domain, acme, picture))
        await domain.change(
            f"UPDATE wharf.suspects SET since = now() - interval '{age} minutes' WHERE sha256 = %s", [digest(picture)]
        )

    async def usage() -> Usage:
        there = sum(domain.bytes_of(digest(picture)) is not None for picture in pictures)
        return Usage(used=60 + 10 * there, free=40 - 10 * there)

    monkeypatch.setattr(Volume, "usage", lambda _: usage())
    run = await clean(grace=timedelta(hours=1), make_room=Watermarks(high=0.95, low=0.8, headroom_bytes=1000))
    assert (run.stopped, run.under_pressure, run.removed_blobs) == ("done", True, 2)
    assert [domain.bytes_of(digest(picture)) for picture in pictures] == [None, None, b"third", b"fourth"]
    [told] = domain.rows("SELECT under_pressure, removed_blobs FROM wharf.cleanup_runs")
    assert told == {"under_pressure": True, "removed_blobs": 2}


async def test_to_make_room_nothing_goes_that_somebody_holds(domain, acme, clean):
    files = [await keep(domain, acme, picture) for picture in (b"held", b"pinned", b"at work")]
    await expire(domain, files[1])
    await domain.change("UPDATE wharf.files SET pinned = true WHERE id = %s", [files[1]])
    await domain.submit_on(acme, files[2:])
    await expire(domain, files[2])
    run = await clean(make_room=FULL)
    assert (run.stopped, run.expired_files, run.removed_blobs) == ("done", 0, 0)
    assert [domain.bytes_of(digest(picture)) for picture in (b"held", b"pinned", b"at work")] == [
        b"held", b"pinned", b"at work"
    ]  # fmt: skip


# Jobs


async def test_an_old_job_goes_with_its_tasks_and_results_and_nobody_elses(domain, acme, globex, clean):
    old, young, others = [await ended_job(domain, tenant) for tenant in (acme, acme, globex)]
    unended = await domain.submit(acme, 2)
    await finished_ago(domain, 91, old)
    await finished_ago(domain, 89, young, others)
    assert (await clean()).expired_jobs == 1
    assert {row["id"] for row in domain.rows("SELECT id FROM wharf.jobs")} == {young, others, unended}
    assert {row["job_id"] for row in domain.rows("SELECT job_id FROM wharf.tasks")} == {young, others, unended}
    assert len(domain.rows("SELECT task_id FROM wharf.results")) == 4


async def test_each_tenant_has_its_own_retention_of_jobs(domain, acme, globex, clean):
    await domain.change("UPDATE wharf.tenants SET job_retention = interval '1 day' WHERE id = %s", [globex])
    await domain.change("UPDATE wharf.tenants SET job_retention = interval '1 year' WHERE id = %s", [acme])
    jobs = {tenant: await ended_job(domain, tenant) for tenant in (acme, globex)}
    await finished_ago(domain, 100, jobs[acme])
    await finished_ago(domain, 2, jobs[globex])
    assert (await clean()).expired_jobs == 1
    assert domain.rows("SELECT id FROM wharf.jobs") == [{"id": jobs[acme]}]


async def test_a_cancelled_job_stays_until_its_last_task_has_ended(domain, acme, clean):
    job = await domain.submit(acme)
    async with domain.api.transaction(acme) as transaction:
        assert await domain.jobs.cancel(transaction, job)
    await finished_ago(domain, 400, job)
    assert (await clean()).expired_jobs == 0
    await domain.follow_cancel(acme, job)
    assert (await clean()).expired_jobs == 1


async def test_a_job_that_is_being_rerun_keeps_no_cleanup_waiting_and_stays(domain, acme, clean):
    """It would wait with the job's tasks locked: for a rerun that waits for bytes, which a purge holds that waits for
    one of the tasks."""
    job = await ended_job(domain, acme)
    await finished_ago(domain, 100, job)
    async with domain.api.transaction(acme) as transaction:
        assert await reruns.original(transaction, job, only_failed=False)
        async with asyncio.timeout(20):
            run = await clean()
        assert (run.stopped, run.expired_jobs, run.errors) == ("done", 0, 0)
        assert domain.task_states(job) == ["succeeded", "succeeded"]
    assert (await clean()).expired_jobs == 1


async def test_jobs_of_many_batches_go(domain, acme, globex, clean, monkeypatch):
    monkeypatch.setattr("broker.maintenance.cleanup.cleanup.BATCH", 3)
    monkeypatch.setattr("broker.maintenance.cleanup.cleanup.INPUTS_AT_ONCE", 3)
    jobs = [await ended_job(domain, tenant) for tenant in (acme, globex) * 5]
    await finished_ago(domain, 100, *jobs[2:])
    assert (await clean()).expired_jobs == 8
    assert {row["id"] for row in domain.rows("SELECT id FROM wharf.jobs")} == set(jobs[:2])


async def test_idempotency_keys_go_when_whatever_they_can_name_has_gone(domain, acme, globex, clean):
    await domain.change("UPDATE wharf.tenants SET job_retention = interval '100 days' WHERE id = %s", [globex])
    for days in (1, 95, 99, 101, 300):
        await domain.change(
            "INSERT INTO wharf.idempotency_keys (tenant_id, key, fingerprint, status, resource, created_at)"
            " VALUES (%s, %s, sha256('x'), 201, '{}', now() - make_interval(days => %s))",
            [acme, str(days), days],
        )
    await clean()
    assert {row["key"] for row in domain.rows("SELECT key FROM wharf.idempotency_keys")} == {"1", "95", "99"}


# Failures


async def test_bytes_that_cannot_be_removed_do_not_keep_the_others(domain, acme, clean):
    files = [await keep(domain, acme, str(number).encode()) for number in range(10)]
    await expire(domain, *files)
    in_place = domain.volume.root / blob_path(digest(b"4"))
    in_place.unlink()
    in_place.mkdir()
    run = await clean()
    assert (run.stopped, run.removed_blobs, run.errors) == ("done", 9, 1)
    assert digest(b"4").hex() in run.first_errors[0]
    assert domain.rows("SELECT state FROM wharf.blobs") == [{"state": "deleting"}]
    in_place.rmdir()
    assert (await clean()).removed_blobs == 1
    assert_nothing_is_left(domain)


async def test_bytes_that_the_system_will_not_move_do_not_keep_the_others(domain, acme, cleanup_database, tmp_path):
    volume = Volume(tmp_path / "volume", instance="cleanup.test")
    volume.prepare(domain.volume.identity())
    contents = [str(number).encode() for number in range(5)]
    files = [await keep(domain, acme, content) for content in contents]
    for content in contents:
        (volume.root / blob_path(digest(content))).write_bytes(content)
    fast = volume.root / blob_path(digest(b"3"))
    if await asyncio.to_thread(attribute, "+i", fast):
        pytest.skip("no immutable files here")
    try:
        await expire(domain, *files)
        run = await Cleanup(cleanup_database, volume, rules()).run()
    finally:
        await asyncio.to_thread(attribute, "-i", fast)
    assert (run.removed_blobs, run.errors) == (4, 1)
    assert digest(b"3").hex() in run.first_errors[0]


async def test_a_row_that_cannot_go_does_not_keep_the_others_of_its_batch(domain, acme, clean):
    files = [await keep(domain, acme, str(number).encode()) for number in range(10)]
    await expire(domain, *files)
    await domain.change("CREATE TABLE wharf.stubborn (file uuid REFERENCES wharf.files (id))")
    await domain.change("INSERT INTO wharf.stubborn VALUES (%s)", [files[3]])
    run = await clean()
    assert (run.stopped, run.expired_files, run.removed_blobs, run.errors) == ("done", 9, 9, 1)
    assert str(files[3]) in run.first_errors[0]
    assert_held(domain, files[3], b"3")


async def test_what_others_have_locked_waits_for_the_next_cleanup(domain, acme, clean):
    await expire(domain, await keep(domain, acme, b"a picture"))
    async with await psycopg.AsyncConnection.connect(domain.installation.url()) as connection:
        await connection.execute("SELECT sha256 FROM wharf.blobs FOR SHARE")
        run = await clean()
        assert (run.stopped, run.expired_files, run.errors) == ("done", 0, 0)
    assert (await clean()).removed_blobs == 1


async def test_deleting_bytes_that_something_refers_to_are_left_alone_and_told(domain, acme, clean):
    file = await keep(domain, acme, b"a picture")
    await domain.change("UPDATE wharf.blobs SET state = 'deleting'")
    run = await clean()
    assert (run.removed_blobs, run.errors) == (0, 1)
    assert_held(domain, file, b"a picture", state="deleting")


async def test_bytes_that_are_gone_already_lose_their_row(domain, acme, clean):
    await expire(domain, await keep(domain, acme, b"a picture"))
    (domain.volume.root / blob_path(digest(b"a picture"))).unlink()
    run = await clean()
    assert (run.removed_blobs, run.freed_bytes, run.errors) == (1, 0, 0)
    assert_nothing_is_left(domain)


async def test_a_lost_session_gives_nobodys_bytes_away(domain, acme, cleaning, cleanup_database, monkeypatch):
    """The lock went with the session, the same bytes came again, and then the cleanup took them out of the tree."""
    await expire(domain, await keep(domain, acme, b"a picture"))
    run = cleaning()
    again: list[UUID] = []
    forget = statements.forget_blobs

    async def after_an_upload(transaction, gone: Sequence[bytes]) -> None:
        if not again:
            await domain.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'cleanup' AND state = 'idle in transaction'"
            )
            # The row is `deleting` and free: the upload puts its bytes in place, where the cleanup's hand still is.
            again.append(await keep(domain, acme, b"a picture"))
            (domain.volume.root / blob_path(digest(b"a picture"))).unlink()
        await forget(transaction, gone)

    monkeypatch.setattr(statements, "forget_blobs", after_an_upload)
    await run.run()
    assert_held(domain, again[0], b"a picture")
    assert tree(domain) == [blob_path(digest(b"a picture"))]


@pytest.mark.parametrize("state", ["present", "quarantined", "deleting", None])
async def test_what_a_killed_cleanup_has_taken_out_of_the_tree_is_settled_by_its_row(domain, acme, clean, state):
    file = await keep(domain, acme, b"a picture")
    if state is None:
        await domain.change("DELETE FROM wharf.files; DELETE FROM wharf.blobs")
    elif state == "deleting":
        await domain.change("DELETE FROM wharf.files; UPDATE wharf.blobs SET state = 'deleting'")
    elif state == "quarantined":
        await domain.change("UPDATE wharf.blobs SET state = 'quarantined', fault = 'missing'")
    place = domain.volume.root / blob_path(digest(b"a picture"))
    place.rename(domain.volume.root / "dropped" / f"{digest(b'a picture').hex()}.{new_id()}")
    run = await clean()
    assert run.errors == 0
    if state in ("present", "quarantined"):
        assert domain.rows("SELECT id FROM wharf.files") == [{"id": file}]
        assert place.read_bytes() == b"a picture"
        assert not list((domain.volume.root / "dropped").iterdir())
    else:
        assert_nothing_is_left(domain)


# What lies on the volume and no row knows


@pytest.mark.parametrize("folder", ["staging", "dropped"])
async def test_an_abandoned_upload_goes_and_a_young_one_stays(domain, clean, folder):
    old, young = (domain.volume.root / folder / f"broker-{number}.{new_id()}" for number in range(2))
    for path in (old, young):
        path.write_bytes(b"half a pic")
    age(old, 25 / 24)
    age(young, 23 / 24)
    run = await clean()
    assert (run.staging, run.errors) == (1, 0)
    assert (old.exists(), young.exists()) == (False, True)


async def test_an_orphan_goes_in_the_sweep_and_a_young_one_stays(domain, acme, clean):
    for number in range(20):
        await keep(domain, acme, str(number).encode())
    old, young = orphan(domain, b"old", days=2), orphan(domain, b"young", days=0.5)
    run = await clean(sweep=True)
    assert (run.orphans, run.removed_blobs, run.freed_bytes, run.swept_to, run.errors) == (1, 1, 3, FOLDERS, 0)
    assert (old.exists(), young.exists()) == (False, True)
    assert len(tree(domain)) == 21


async def test_bytes_that_a_crash_left_between_two_renames_go(domain, acme, clean):
    await keep(domain, acme, b"a picture")
    beside = domain.volume.root / f"{blob_path(digest(b'a picture'))}.{new_id()}"
    beside.write_bytes(b"a picture")
    age(beside, 2)
    run = await clean(sweep=True)
    assert (run.staging, run.orphans, run.missing) == (1, 0, 0)
    assert tree(domain) == [blob_path(digest(b"a picture"))]


async def test_more_orphans_than_the_fraction_allows_are_only_reported(domain, acme, clean):
    for number in range(9):
        await keep(domain, acme, str(number).encode())
    lost = [orphan(domain, content, days=2) for content in (b"one", b"two")]
    run = await clean(sweep=True)
    assert (run.orphans, run.removed_blobs, run.errors) == (2, 0, 0)
    assert "WHARF_MAX_ORPHAN_FRACTION" in run.first_errors[-1]
    assert all(path.exists() for path in lost)
    assert (await clean(sweep=True, orphan_fraction=0.2)).removed_blobs == 2


async def test_an_orphan_that_is_uploaded_meanwhile_stays(domain, acme, clean, monkeypatch):
    for number in range(20):
        await keep(domain, acme, str(number).encode())
    orphan(domain, b"old", days=2)
    adopt = statements.adopt_orphans
    files = []

    async def after_an_upload(transaction, orphans):
        files.append(await keep(domain, acme, b"old"))
        return await adopt(transaction, orphans)

    monkeypatch.setattr(statements, "adopt_orphans", after_an_upload)
    assert (await clean(sweep=True)).removed_blobs == 0
    assert_held(domain, files[0], b"old")


async def test_bytes_younger_than_the_last_mark_are_no_orphans(domain, acme, clean):
    """A database that was put back to just after the last mark has lost the rows of what came later."""
    for number in range(20):
        await keep(domain, acme, str(number).encode())
    await clean()
    age(domain.volume.root / "checkpoint", 10)
    later = orphan(domain, b"later", days=9)
    assert (await clean(sweep=True)).orphans == 0
    assert later.exists()
    assert (await clean(sweep=True)).removed_blobs == 1


async def test_missing_bytes_are_told_and_nothing_is_changed(domain, acme, clean):
    file = await keep(domain, acme, b"a picture")
    (domain.volume.root / blob_path(digest(b"a picture"))).unlink()
    run = await clean(sweep=True)
    assert (run.missing, run.errors) == (1, 0)
    assert digest(b"a picture").hex() in run.first_errors[0]
    assert domain.rows("SELECT f.id, state FROM wharf.blobs JOIN wharf.files f USING (sha256)") == [
        {"id": file, "state": "present"}
    ]


async def test_a_sweep_goes_on_where_the_time_stopped_it(domain, acme, cleaning, monkeypatch):
    for number in range(40):
        await keep(domain, acme, str(number).encode())
    contents = (str(number).encode() for number in range(100, 200))
    seen = orphan(domain, next(content for content in contents if digest(content)[0] < 128), days=2)
    halfway = cleaning(sweep=True)
    looks = []
    look = statements.blobs_between

    async def until_halfway(transaction, first, last):
        looks.append(first)
        if len(looks) == 128:
            halfway.stop()
        return await look(transaction, first, last)

    monkeypatch.setattr(statements, "blobs_between", until_halfway)
    run = await halfway.run()
    assert (run.stopped, run.swept_to, run.orphans) == ("asked", FOLDERS // 2, 1)
    run = await cleaning(sweep=True).run()
    assert (run.stopped, run.swept_to, len(looks)) == ("done", FOLDERS, 256)
    assert not seen.exists()


# The pair of database and volume


async def test_a_volume_of_another_database_is_refused(domain, acme, clean):
    await expire(domain, await keep(domain, acme, b"a picture"))
    (domain.volume.root / "volume-id").write_text(f"{new_id()}\n")
    with pytest.raises(StartError, match="WHARF_VOLUME"):
        await clean()
    assert domain.bytes_of(digest(b"a picture")) == b"a picture"


async def test_a_mark_that_a_cleanup_leaves_beside_is_no_suspicion(cleanup_database, installation):
    volume = Volume(installation.volume, instance="marks", threads=2)
    await leave_mark(cleanup_database, Removal(volume))

    class Overtaken(Removal):
        looks = 0

        async def read_mark(self):
            mark = await super().read_mark()
            self.looks += 1
            if self.looks == 1:
                await leave_mark(cleanup_database, Removal(volume))
            return mark

    overtaken = Overtaken(volume)
    assert await suspected_restore(cleanup_database, overtaken) is None
    assert overtaken.looks == 3
    await Removal(volume).write_mark(new_id())
    assert "mark" in (await suspected_restore(cleanup_database, Removal(volume)) or "")


@pytest.mark.parametrize("older", ["database", "volume", "another database"])
async def test_a_suspected_restore_turns_the_sweep_off_until_it_is_accepted(
    domain, acme, clean, cleanup_database, older
):
    for number in range(20):
        await keep(domain, acme, str(number).encode())
    mark = domain.volume.root / "checkpoint"
    await clean()
    before = domain.rows("SELECT checkpoint, checkpoint_next, fingerprint FROM wharf.installation")[0]
    former = mark.read_bytes()
    await clean()
    lost = orphan(domain, b"lost", days=2)
    if older == "volume":
        mark.write_bytes(former)
    elif older == "database":
        await domain.change("UPDATE wharf.installation SET checkpoint = %s, checkpoint_next = %s, fingerprint = %s",
                            list(before.values()))  # fmt: skip
    else:
        await domain.change("UPDATE wharf.installation SET fingerprint = 'elsewhere'")
    for _ in range(2):
        run = await clean(sweep=True)
        assert (run.stopped, run.orphans, run.removed_blobs) == ("done", 1, 0)
        assert lost.exists()
    async with cleanup_database.transaction() as transaction:
        off = await sweep_off(transaction)
        assert off is not None
        assert off.reason in run.first_errors[-1]
        await turn_sweep_on(transaction)
    assert (await clean(sweep=True)).removed_blobs == 1


async def test_a_new_database_for_an_old_volume_takes_nothing_for_an_orphan(domain, acme, clean):
    await clean()
    await domain.change("UPDATE wharf.installation SET checkpoint = NULL, checkpoint_next = NULL, fingerprint = NULL")
    orphan(domain, b"old", days=2)
    run = await clean(sweep=True, orphan_fraction=1)
    assert (run.orphans, run.removed_blobs) == (1, 0)


async def test_a_crash_between_the_two_marks_is_no_restore(domain, clean, cleanup_database):
    await clean()
    mark = new_id()
    await domain.change("UPDATE wharf.installation SET checkpoint_next = %s", [mark])
    await clean()
    await domain.change("UPDATE wharf.installation SET checkpoint_next = %s", [mark])
    (domain.volume.root / "checkpoint").write_text(f"{mark}\n")
    await clean()
    async with cleanup_database.transaction() as transaction:
        assert await sweep_off(transaction) is None


async def test_a_mark_that_was_never_settled_is_known_still_when_the_next_one_fails(domain, clean, monkeypatch):
    await clean()
    mark = new_id()
    await domain.change("UPDATE wharf.installation SET checkpoint_next = %s", [mark])
    (domain.volume.root / "checkpoint").write_text(f"{mark}\n")

    async def no_room(*_: object) -> None:
        raise CustodyError("storage_full", "The volume has no room left.")

    with monkeypatch.context() as full:
        full.setattr("custody.removal.Removal.write_mark", no_room)
        await clean()
    await clean()
    assert domain.rows("SELECT sweep_off_since FROM wharf.installation") == [{"sweep_off_since": None}]


# The run itself


async def test_a_preview_changes_nothing_and_says_what_would_go(domain, acme, globex, cleanup_database, clean):
    contents = [str(number).encode() for number in range(20)]
    files = [await keep(domain, acme, content) for content in contents]
    await keep(domain, globex, b"0")
    await finished_ago(domain, 100, await ended_job(domain, globex))
    await expire(domain, *files[:3])
    await let_go(domain, acme, files[3])
    await domain.submit_on(acme, [files[4]])
    await expire(domain, files[4])
    orphan(domain, b"an orphan", days=2)
    age_of_staged = domain.volume.root / "staging" / "broker-1.x"
    age_of_staged.write_bytes(b"half")
    age(age_of_staged, 2)
    while list((domain.volume.root / "dropped").iterdir()):
        await asyncio.sleep(0.01)  # known bytes go a moment after their upload
    before = dump(domain), tree_with_times(domain)
    found = await preview(cleanup_database, domain.volume, rules())
    assert (dump(domain), tree_with_times(domain)) == before
    run = await clean(sweep=True)
    assert (found.rows.expired_files, found.rows.expired_jobs) == (run.expired_files, run.expired_jobs) == (4, 1)
    assert (found.staging, found.orphans, found.missing) == (run.staging, run.orphans, run.missing) == (1, 1, 0)
    assert (found.rows.removed_blobs, found.rows.freed_bytes) == (3, 3)
    assert run.removed_blobs == found.rows.removed_blobs + found.orphans


async def test_a_second_cleanup_is_kept_out(domain, acme, installation):
    await expire(domain, await keep(domain, acme, b"a picture"))
    async with Alone(installation.url("wharf_cleanup"), work="cleanup") as taken:
        assert taken
        ended = await asyncio.to_thread(command, installation, "--now")
        assert (ended.returncode, ended.stdout) == (
            0, "Another cleanup is running, and does the same. Nothing was done.\n",
        )  # fmt: skip
        assert domain.rows("SELECT id FROM wharf.cleanup_runs") == []
    assert domain.bytes_of(digest(b"a picture")) == b"a picture"


async def test_the_command_cleans_and_shows_its_history(domain, acme, installation):
    await expire(domain, await keep(domain, acme, b"a picture"))
    ended = await asyncio.to_thread(command, installation, "--now", "--max-seconds", "60")
    assert ended.returncode == 0, ended.stderr
    assert "1 files, 9 B" in ended.stdout
    shown = await asyncio.to_thread(command, installation, "--history")
    assert "done" in shown.stdout
    assert_nothing_is_left(domain)


async def test_no_batch_begins_when_the_time_is_up(domain, acme, clean):
    await expire(domain, await keep(domain, acme, b"a picture"))
    run = await clean(max_seconds=0)
    assert (run.stopped, run.expired_files) == ("time", 0)
    assert (await clean(max_seconds=60)).removed_blobs == 1


async def test_every_run_leaves_a_row_and_one_without_an_end_was_killed(
    domain, acme, clean, cleaning, cleanup_database, monkeypatch
):
    await clean()
    await domain.change("UPDATE wharf.cleanup_runs SET stopped = NULL, ended_at = NULL")
    await expire(domain, await keep(domain, acme, b"a picture"))
    run = await clean()
    assert run.ended_at is not None

    async def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(statements, "find_deleting", broken)
    with pytest.raises(RuntimeError):
        await clean()
    async with cleanup_database.transaction() as transaction:
        newest, middle, oldest = await list_runs(transaction, 10)
    assert (oldest.stopped, oldest.ended_at) == ("killed", None)
    assert middle == run
    assert (newest.stopped, newest.first_errors) == ("error", ["cleanup: a fault of ours"])


async def test_uploads_of_the_same_bytes_during_cleanups_lose_nothing(domain, acme, cleaning):
    contents = [bytes([number]) * 10 for number in range(8)]
    over = asyncio.Event()

    async def upload_and_let_go(content: bytes) -> None:
        while not over.is_set():
            file = await keep(domain, acme, content)
            assert_held(domain, file, content)
            await let_go(domain, acme, file)
            await asyncio.sleep(random.uniform(0, 0.5))
        file = await keep(domain, acme, content)
        await asyncio.sleep(0.05)
        assert_held(domain, file, content)

    async def clean_again_and_again() -> int:
        removed = 0
        for _ in range(10):
            run = await cleaning().run()
            assert (run.stopped, run.errors) == ("done", 0)
            removed += run.removed_blobs
        over.set()
        return removed

    removed, *_ = await asyncio.gather(clean_again_and_again(), *(upload_and_let_go(each) for each in contents))
    assert removed
    await cleaning().run()
    assert tree(domain) == sorted(blob_path(digest(content)) for content in contents)


async def test_old_receipts_go_batch_by_batch_and_the_others_stay(domain, acme, clean):
    count = "SELECT count(*) AS receipts FROM wharf.audit"
    for age, receipts in (("366 days", 2 * BATCH + 1), ("364 days", 3)):
        domain.rows(
            """
            INSERT INTO wharf.audit (tenant_id, id, at, key_id, request_id, action, outcome)
            SELECT %s, (left(wharf.first_id_at(at)::text, 24) || lpad(to_hex(n), 12, '0'))::uuid, at,
                gen_random_uuid(), 'r', 'file.read', 'done'
            FROM generate_series(1, %s) n, (SELECT now() - %s::interval AS at) moment
            """,
            [acme, receipts, age],
        )
    run = await clean()
    assert (run.stopped, run.errors) == ("done", 0)
    assert domain.rows(count) == [{"receipts": 3}]
    await clean(receipt_days=30)
    assert domain.rows(count) == [{"receipts": 0}]


async def keep(domain: Domain, tenant: UUID, content: bytes) -> UUID:
    return (await domain.keep(tenant, content)).files[0].id


async def let_go(domain: Domain, tenant: UUID, file: UUID) -> None:
    async with domain.api.transaction(tenant) as transaction:
        assert await domain.files.delete(transaction, file)


async def expire(domain: Domain, *files: UUID, days: float = 0) -> None:
    await domain.change(
        "UPDATE wharf.files SET expires_at = now() - make_interval(secs => 1 + %s) WHERE id = ANY (%s)",
        [days * DAY, list(files)],
    )


async def ended_job(domain: Domain, tenant: UUID) -> UUID:
    job = await domain.submit(tenant, 2)
    for claim in await domain.claim(2):
        await domain.end(claim)
    return job


async def finished_ago(domain: Domain, days: int, *jobs: UUID) -> None:
    await domain.change(
        "UPDATE wharf.jobs SET finished_at = now() - make_interval(days => %s) WHERE id = ANY (%s)", [days, list(jobs)]
    )


def orphan(domain: Domain, content: bytes, *, days: float) -> Path:
    path = domain.volume.root / blob_path(digest(content))
    path.write_bytes(content)
    age(path, days)
    return path


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def attribute(change: str, path: Path) -> int:
    return subprocess.run(["chattr", change, str(path)], check=False, capture_output=True).returncode


def command(installation, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "WHARF_DATABASE_URL": installation.url("wharf_cleanup"),
        "WHARF_VOLUME": str(installation.volume),
    }
    wharf = [str(Path(sys.executable).parent / "wharf"), "cleanup", *options]
    return subprocess.run(wharf, env=environment, capture_output=True, text=True, timeout=60, check=False)


def assert_held(domain: Domain, file: UUID, content: bytes, *, state: str = "present") -> None:
    assert domain.rows("SELECT state FROM wharf.blobs JOIN wharf.files f USING (sha256) WHERE f.id = %s", [file]) == [
        {"state": state}
    ]
    assert domain.bytes_of(digest(content)) == content


def assert_nothing_is_left(domain: Domain) -> None:
    for table in ("files", "blobs", "suspects"):
        assert domain.rows(f"SELECT sha256 FROM wharf.{table}") == []
    assert tree(domain) == []


def tree(domain: Domain) -> list[str]:
    """But for what the uploads of this test are about to drop."""
    return [path for path, _ in tree_with_times(domain) if not path.startswith("dropped/broker.")]


def tree_with_times(domain: Domain) -> list[tuple[str, float]]:
    root = domain.volume.root
    found = (path for name in ("blobs", "staging", "dropped") for path in (root / name).rglob("*"))
    return sorted((str(path.relative_to(root)), path.stat().st_mtime) for path in found if path.is_file())


def dump(domain: Domain) -> str:
    dumped = [str(programs_of_the_wheel() / "pg_dump"), "--data-only", domain.installation.url()]
    text = subprocess.run(dumped, check=True, capture_output=True, text=True).stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith("\\"))


def digest(content: bytes) -> bytes:
    return sha256(content).digest()
