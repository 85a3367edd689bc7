"""Purges: all that a tenant has of a picture goes in one transaction, whatever else is going on."""

import asyncio
import random
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import psycopg
import pytest

from custody import erasure, reruns
from custody.erasure import Purged
from custody.errors import CustodyError
from custody.ids import new_id
from custody.jobs import Jobs
from custody.wire import File, JobInput, JobState, Parameters, Priority, PurgeReceipt
from tests.support.domain import DETECTIONS, MODEL, TIMINGS, Domain

pytestmark = pytest.mark.postgres

DAY = 24 * 3600.0


async def purge(domain: Domain, tenant: UUID, file: File | UUID) -> PurgeReceipt | None:
    """As the broker purges: the jobs of what was cancelled are finished after the commit."""
    async with domain.api.transaction(tenant) as transaction:
        purged = await erasure.purge_file(transaction, file.id if isinstance(file, File) else file, gone_within=DAY)
    return await finished(domain, tenant, purged)


async def purge_content(domain: Domain, tenant: UUID, content: bytes) -> PurgeReceipt | None:
    async with domain.api.transaction(tenant) as transaction:
        purged = await erasure.purge_content(transaction, sha256(content).digest(), gone_within=DAY)
    return await finished(domain, tenant, purged)


async def finished(domain: Domain, tenant: UUID, purged: Purged | None) -> PurgeReceipt | None:
    for job in purged.jobs if purged else ():
        async with domain.api.transaction(tenant) as transaction:
            await domain.jobs.finish(transaction, job)
    return purged.receipt if purged else None


async def kept(domain: Domain, tenant: UUID, content: bytes, filename: str | None = None) -> File:
    return (await domain.keep(tenant, content, filename)).files[0]


async def inferred(domain: Domain, tenant: UUID, file: File) -> UUID:
    """A job on the file that has succeeded."""
    job = await domain.submit_on(tenant, [file.id])
    [claim] = await domain.claim()
    assert await domain.end(claim)
    return job


async def test_a_purge_takes_every_file_of_the_bytes_their_results_and_names(domain, acme):
    first = await kept(domain, acme, b"a picture", "face.jpg")
    second = await kept(domain, acme, b"a picture", "again.jpg")
    other = await kept(domain, acme, b"another", "tree.jpg")
    job, others_job = await inferred(domain, acme, first), await inferred(domain, acme, other)
    receipt = await purge(domain, acme, second)
    assert receipt is not None
    assert receipt.file_ids == sorted([first.id, second.id])
    assert (receipt.sha256, receipt.files, receipt.results, receipt.tasks_cancelled) == (first.sha256, 2, 1, 0)
    assert receipt.bytes_gone_by - receipt.purged_at == timedelta(days=1)
    seen = await domain.get(acme, job)
    [result] = seen.results
    assert (seen.state, seen.progress.done, result.state) == (JobState.SUCCEEDED, 1, "succeeded")
    assert (result.purged_at, result.filename, result.detections, result.model) == (
        receipt.purged_at, None, None, None,
    )  # fmt: skip
    assert (await domain.get(acme, others_job)).results[0].detections == DETECTIONS
    assert domain.rows("SELECT id FROM wharf.files") == [{"id": other.id}]
    assert domain.rows("SELECT filename FROM wharf.tasks WHERE filename IS NOT NULL") == [{"filename": "tree.jpg"}]
    assert domain.rows("SELECT count(*) FROM wharf.results") == [{"count": 1}]
    suspects = domain.rows("SELECT sha256, since = '-infinity' AS at_once FROM wharf.suspects")
    assert suspects == [{"sha256": bytes.fromhex(first.sha256), "at_once": True}]


async def test_what_was_said_of_a_failure_goes_and_its_code_stays(domain, acme):
    file = await kept(domain, acme, b"a picture")
    job = await domain.submit_on(acme, [file.id])
    [claim] = await domain.claim()
    await domain.fail(claim)
    await domain.finish(job)
    await purge(domain, acme, file)
    [result] = (await domain.get(acme, job)).results
    assert (result.state, result.error.code) == ("failed", "undecodable_image")
    assert "no picture" not in result.error.detail


async def test_inputs_that_have_not_ended_are_cancelled_and_a_late_result_is_not_stored(domain, acme):
    file, other = await kept(domain, acme, b"a picture"), await kept(domain, acme, b"another")
    job = await domain.submit_on(acme, [file.id, other.id, file.id])
    running, others, queued = await domain.claim(limit=3)
    await domain.change("UPDATE wharf.tasks SET state = 'queued', lease_until = NULL WHERE id = %s", [queued.task_id])
    receipt = await purge(domain, acme, file)
    assert receipt is not None
    assert (receipt.results, receipt.tasks_cancelled) == (0, 2)
    assert domain.task_states(job) == ["cancelled", "running", "cancelled"]
    assert not await domain.succeed(running)
    async with domain.worker.transaction() as transaction:
        assert await domain.tasks.extend(transaction, [running, others]) == {others.task_id}
    assert await domain.claim() == []
    assert domain.rows("SELECT task_id FROM wharf.results") == []
    assert await domain.end(others)
    seen = await domain.get(acme, job)
    assert (seen.state, seen.progress.done, seen.progress.failed, seen.progress.total) == (JobState.FAILED, 1, 0, 3)


async def test_a_job_all_of_whose_inputs_were_cancelled_by_a_purge_fails(domain, acme):
    file = await kept(domain, acme, b"a picture")
    job = await domain.submit_on(acme, [file.id, file.id])
    await purge(domain, acme, file)
    seen = await domain.get(acme, job)
    assert (seen.state, seen.progress.done, seen.progress.failed) == (JobState.FAILED, 0, 0)


async def test_a_broker_that_dies_after_the_commit_leaves_its_jobs_to_the_reconcile(domain, acme):
    file = await kept(domain, acme, b"a picture")
    job = await domain.submit_on(acme, [file.id])
    async with domain.api.transaction(acme) as transaction:
        await erasure.purge_file(transaction, file.id, gone_within=DAY)
    async with domain.worker.transaction() as transaction:
        assert await domain.jobs.unfinished(transaction) == [job]
    assert await domain.finish(job)


async def test_a_purge_is_done_as_a_whole_or_not_at_all(domain, acme):
    file = await kept(domain, acme, b"a picture", "face.jpg")
    done, going = await inferred(domain, acme, file), await domain.submit_on(acme, [file.id])
    async with domain.api.transaction(acme) as transaction:
        assert await erasure.purge_file(transaction, file.id, gone_within=DAY)
        await transaction.rollback()
    assert (await domain.get(acme, done)).results[0].detections == DETECTIONS
    assert (await domain.get(acme, going)).state is JobState.QUEUED
    assert domain.rows("SELECT id FROM wharf.purges") == []
    assert domain.rows("SELECT sha256 FROM wharf.suspects") == []


async def test_the_same_purge_again_is_answered_with_the_same_receipt(domain, acme):
    file = await kept(domain, acme, b"a picture")
    await inferred(domain, acme, file)
    first = await purge(domain, acme, file)
    assert first is not None
    # The same bytes once more are a new file, which the old receipt leaves alone.
    newer = await kept(domain, acme, b"a picture")
    assert await purge(domain, acme, file) == first
    async with domain.api.transaction(acme) as transaction:
        assert await domain.files.get(transaction, newer.id) == newer
    second = await purge(domain, acme, newer)
    assert second is not None
    assert (second.file_ids, second.results) == ([newer.id], 0)
    assert await purge_content(domain, acme, b"a picture") == second


async def test_two_purges_at_once_give_one_receipt(domain, acme):
    files = [await kept(domain, acme, b"a picture") for _ in range(8)]
    receipts = await asyncio.gather(*(purge(domain, acme, file) for file in files))
    assert len({receipt.id for receipt in receipts}) == 1
    assert domain.rows("SELECT count(*) FROM wharf.purges") == [{"count": 1}]


@pytest.mark.parametrize("change", ["deleted_at = now()", "expires_at = now() - interval '1 day'", "pinned = true"])
async def test_a_deleted_expired_or_pinned_file_is_purged_too(domain, acme, change):
    file = await kept(domain, acme, b"a picture")
    job = await inferred(domain, acme, file)
    await domain.change(f"UPDATE wharf.files SET {change}")
    receipt = await purge(domain, acme, file)
    assert receipt is not None
    assert (receipt.file_ids, receipt.results) == ([file.id], 1)
    assert (await domain.get(acme, job)).results[0].detections is None


async def test_results_whose_file_a_cleanup_has_removed_are_purged_by_the_bytes(domain, acme):
    file = await kept(domain, acme, b"a picture")
    job = await inferred(domain, acme, file)
    await domain.change("DELETE FROM wharf.files")
    assert await purge(domain, acme, file) is None
    receipt = await purge_content(domain, acme, b"a picture")
    assert receipt is not None
    assert (receipt.file_ids, receipt.results) == ([], 1)
    assert (await domain.get(acme, job)).results[0].detections is None


async def test_nothing_to_purge_is_none_and_leaves_no_receipt(domain, acme):
    assert await purge(domain, acme, new_id()) is None
    assert await purge_content(domain, acme, b"never sent") is None
    assert domain.rows("SELECT id FROM wharf.purges") == []


async def test_another_tenants_same_bytes_stay_and_nothing_tells_of_them(domain, acme, globex):
    alone, shared = await kept(domain, acme, b"alone"), await kept(domain, acme, b"shared")
    theirs = await kept(domain, globex, b"shared", "theirs.jpg")
    their_job = await inferred(domain, globex, theirs)
    going = await domain.submit_on(globex, [theirs.id])
    # A stranger's purge finds nothing, also by the bytes.
    assert await purge(domain, acme, theirs) is None
    receipts = [await purge(domain, acme, file) for file in (alone, shared)]
    told = [receipt.model_dump(include={"files", "results", "tasks_cancelled"}) for receipt in receipts]
    assert told == [{"files": 1, "results": 0, "tasks_cancelled": 0}] * 2
    assert (await domain.get(globex, their_job)).results[0].detections == DETECTIONS
    [claim] = await domain.claim()
    assert claim.job_id == going
    assert await domain.end(claim)
    async with domain.api.transaction(globex) as transaction:
        assert await domain.files.get(transaction, theirs.id) == theirs
    # Nobody reads another tenant's receipts.
    assert await purge_content(domain, globex, b"alone") is None


async def test_whoever_holds_nothing_of_the_bytes_does_not_wait_for_their_lock(domain, acme, globex):
    await kept(domain, globex, b"shared")
    with psycopg.connect(domain.installation.url()) as connection:
        connection.execute("SELECT sha256 FROM wharf.blobs FOR UPDATE")
        async with asyncio.timeout(10):
            assert await purge_content(domain, acme, b"shared") is None


async def test_a_process_without_a_tenant_purges_nothing(domain, acme):
    file = await kept(domain, acme, b"a picture")
    async with domain.api.transaction() as transaction:
        assert await erasure.purge_content(transaction, bytes.fromhex(file.sha256), gone_within=DAY) is None
    assert domain.rows("SELECT id FROM wharf.files") == [{"id": file.id}]


async def test_a_job_that_is_submitted_while_a_purge_runs_is_cancelled_or_refused(domain, acme):
    """Both orders: who has the bytes' row first."""
    file = await kept(domain, acme, b"a picture")
    inputs = [JobInput(file=file.id), JobInput(sha256=file.sha256)]
    for wanted in inputs:
        again = await kept(domain, acme, b"a picture")
        async with domain.api.transaction(acme) as transaction:
            assert await erasure.purge_file(transaction, again.id, gone_within=DAY)
            submitting = asyncio.create_task(hold(domain, acme, wanted))
            await waits_for_a_lock(domain)
        with pytest.raises(CustodyError, match="you hold no"):
            await submitting
    file = await kept(domain, acme, b"a picture")
    async with domain.api.transaction(acme) as transaction:
        files = await domain.files.hold(transaction, [JobInput(file=file.id)])
        purging = asyncio.create_task(purge(domain, acme, file))
        await waits_for_a_lock(domain)
        job = await submit(domain, transaction, acme, files)
    receipt = await purging
    assert receipt is not None
    assert receipt.tasks_cancelled == 1
    assert domain.task_states(job) == ["cancelled"]


async def test_a_copy_that_is_asked_for_while_a_purge_runs_is_not_made(domain, acme):
    file = await kept(domain, acme, b"a picture", "face.jpg")

    async def copy() -> File | None:
        async with domain.api.transaction(acme) as transaction:
            return await domain.files.keep_known(transaction, acme, bytes.fromhex(file.sha256), None)

    async with domain.api.transaction(acme) as transaction:
        assert await erasure.purge_file(transaction, file.id, gone_within=DAY)
        copying = asyncio.create_task(copy())
        await waits_for_a_lock(domain)
    assert await copying is None


async def test_a_rerun_that_is_asked_for_while_a_purge_runs_is_refused(domain, acme):
    file = await kept(domain, acme, b"a picture")
    job = await inferred(domain, acme, file)

    async def rerun() -> None:
        async with domain.api.transaction(acme) as transaction:
            original = await reruns.original(transaction, job, only_failed=False)
            assert original is not None
            held = await domain.files.hold_known(transaction, [each.sha256 for each in original.inputs])
            reruns.require_held(original, held, set())

    async with domain.api.transaction(acme) as transaction:
        assert await erasure.purge_file(transaction, file.id, gone_within=DAY)
        rerunning = asyncio.create_task(rerun())
        await waits_for_a_lock(domain)
    with pytest.raises(CustodyError) as refused:
        await rerunning
    assert refused.value.code == "input_gone"


async def test_a_result_that_comes_while_a_purge_waits_for_its_task_is_purged_too(domain, acme):
    file = await kept(domain, acme, b"a picture")
    job = await domain.submit_on(acme, [file.id])
    [claim] = await domain.claim()
    async with domain.worker.transaction() as transaction:
        assert await ended(domain, transaction, claim)
        purging = asyncio.create_task(purge(domain, acme, file))
        await waits_for_a_lock(domain)
    receipt = await purging
    assert receipt is not None
    assert (receipt.results, receipt.tasks_cancelled) == (1, 0)
    assert domain.task_states(job) == ["succeeded"]
    assert domain.rows("SELECT task_id FROM wharf.results") == []


async def test_purges_never_wait_in_a_circle_with_uploads_jobs_claims_ends_and_cancels(domain, acme, globex):
    """Every deadlock would be an error of one of them; in the end no result and no filename is left of what was
    purged."""
    random.seed(5)
    contents = [random.randbytes(64) for _ in range(4)]
    stop = asyncio.Event()
    refused: set[str] = set()

    async def user(tenant: UUID) -> None:
        while not stop.is_set():
            files = [await kept(domain, tenant, content, "name.jpg") for content in random.sample(contents, 3)]
            try:
                job = await domain.submit_on(tenant, [random.choice(files).id for _ in range(6)])
            except CustodyError as error:
                refused.add(error.code)
                continue
            if random.random() < 0.2:
                await domain.cancel(tenant, job)

    async def worker(name: str) -> None:
        while not stop.is_set():
            for claim in await domain.claim(limit=5, worker=name):
                async with domain.worker.transaction() as transaction:
                    await domain.tasks.extend(transaction, [claim])
                await domain.end(claim)
            await asyncio.sleep(0.01)

    async def purger(tenant: UUID) -> int:
        purged = 0
        for number in range(40):
            purged += await purge_content(domain, tenant, contents[number % 4]) is not None
            await asyncio.sleep(0.01)
        stop.set()
        return purged

    background = [user(acme), user(globex), worker("w1"), worker("w2")]
    counts, *_ = await asyncio.gather(purger(acme), *background)
    assert counts > 5
    assert refused <= {"not_found"}
    for content in contents:
        await purge_content(domain, acme, content)
    left = "SELECT count(*) FROM wharf.{} WHERE tenant_id = %s{}"
    assert domain.rows(left.format("results", ""), [acme]) == [{"count": 0}]
    assert domain.rows(left.format("files", ""), [acme]) == [{"count": 0}]
    assert domain.rows(left.format("tasks", " AND (filename IS NOT NULL OR purged_at IS NULL)"), [acme]) == [
        {"count": 0}
    ]
    # The other tenant's own are untouched: every input that succeeded has its result.
    assert domain.rows(
        "SELECT count(*) FROM wharf.tasks t LEFT JOIN wharf.results r ON r.task_id = t.id"
        " WHERE t.tenant_id = %s AND t.state = 'succeeded' AND r.task_id IS NULL",
        [globex],
    ) == [{"count": 0}]


async def test_a_purge_looks_for_inputs_by_index(domain, acme):
    plan = domain.rows(
        """
        EXPLAIN SELECT id FROM wharf.tasks
        WHERE sha256 = sha256('x') AND tenant_id = gen_random_uuid() AND state NOT IN ('queued', 'running')
          AND purged_at IS NULL
        """
    )
    assert "tasks_of_picture" in str(plan)


async def test_a_purge_reads_nothing_of_what_others_do_with_the_same_bytes(domain, acme, globex, installation):
    """So that the time it takes tells nothing of them."""
    kept = await domain.keep(acme, b"acme's alone")
    await domain.submit_on(acme, [kept.files[0].id] * 2000)
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT wharf.tasks_of_picture(%s, sha256(%s))"
    with psycopg.connect(installation.url(), autocommit=True) as connection:
        connection.execute("ANALYZE wharf.tasks")

        def blocks_read(content: bytes) -> int:
            [[plan]] = connection.execute(explain, [globex, content]).fetchone()
            return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]

        blocks_read(b"first of all, the catalog")
        assert abs(blocks_read(b"acme's alone") - blocks_read(b"nobody's")) < 5


async def hold(domain: Domain, tenant: UUID, wanted: JobInput) -> list[File]:
    async with domain.api.transaction(tenant) as transaction:
        return await domain.files.hold(transaction, [wanted])


async def submit(domain: Domain, transaction, tenant: UUID, files: list[File]) -> UUID:
    submitted = await Jobs().submit(
        transaction, tenant, model="digits", files=files, parameters=Parameters(), priority=Priority.INTERACTIVE,
        metadata={},
    )  # fmt: skip
    return submitted.job_id


async def ended(domain: Domain, transaction, claim) -> bool:
    return bool(await domain.tasks.succeed(transaction, claim, model=MODEL, detections=DETECTIONS, timings=TIMINGS))


async def waits_for_a_lock(domain: Domain) -> None:
    """Until some statement does."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(20):
        while not await domain.ask(waiting):
            await asyncio.sleep(0.01)
