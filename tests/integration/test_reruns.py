"""Reruns: what they take over, whose bytes they may run on, and which jobs a retry meets."""

import asyncio
import random
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from custody import reruns
from custody.errors import CustodyError
from custody.ids import new_id
from custody.reruns import Walk
from custody.wire import JobState, Priority, RetryRequest

pytestmark = pytest.mark.postgres

INPUT_COLUMNS = "file_id, filename, sha256, size, media_type, width, height, orientation, pool, class"


async def rerun(domain, tenant, job, *, only_failed: bool = False) -> UUID:
    """As the broker does it."""
    async with domain.api.transaction(tenant) as transaction:
        original = await reruns.original(transaction, job, only_failed=only_failed)
        wanted = [each.sha256 for each in original.inputs]
        held = await domain.files.hold_known(transaction, wanted)
        reruns.require_held(original, held, await domain.files.damaged(transaction, set(wanted) - held))
        return await domain.jobs.repeat(transaction, original.job_id, [each.input for each in original.inputs])


async def refused(domain, tenant, job, code: str, *, only_failed: bool = False) -> CustodyError:
    with pytest.raises(CustodyError) as refusal:
        await rerun(domain, tenant, job, only_failed=only_failed)
    assert refusal.value.code == code
    return refusal.value


async def walked(domain, tenant, **wish) -> list[UUID]:
    """The jobs that a whole walk meets, which begins now."""
    async with domain.api.transaction(tenant) as transaction:
        walk = Walk(await reruns.now(transaction))
        return [match.job for match in await reruns.matching(transaction, RetryRequest(**wish), walk)]


async def failed_job(domain, tenant, *, pool="digits", metadata="{}") -> UUID:
    job = await domain.submit(tenant, pool=pool)
    [claim] = await domain.claim(pool=pool)
    assert claim.job_id == job
    await domain.fail(claim)
    assert await domain.finish(job)
    domain.rows("UPDATE wharf.jobs SET metadata = %s::jsonb WHERE id = %s", [metadata, job])
    return job


async def mixed_job(domain, tenant, **submission) -> UUID:
    """Of its inputs, the second has failed, the fourth is unprocessable and the others have succeeded."""
    files = [(await domain.keep(tenant, random.randbytes(16), f"{n}.png")).files[0].id for n in range(5)]
    job = await domain.submit_on(tenant, files, **submission)
    priority = submission.get("priority", Priority.INTERACTIVE)
    claims = {claim.task_id: claim for claim in await domain.claim(5, priority=priority)}
    for row in domain.rows("SELECT id, input FROM wharf.tasks WHERE job_id = %s ORDER BY input", [job]):
        claim = claims[row["id"]]
        async with domain.worker.transaction() as transaction:
            if row["input"] == 1:
                await domain.tasks.fail(transaction, claim, code="worker_lost", detail="It went silent.")
            elif row["input"] == 3:
                await domain.tasks.refuse(transaction, claim, code="undecodable_image", detail="It is no picture.")
        if row["input"] not in (1, 3):
            await domain.succeed(claim)
    assert await domain.finish(job)
    return job


async def test_a_rerun_is_a_new_job_on_the_same_inputs_and_leaves_the_old_one_alone(domain, acme):
    job = await mixed_job(domain, acme, priority=Priority.BATCH, expires_in=600)
    domain.rows("""UPDATE wharf.jobs SET metadata = '{"a": [1]}', parameters = '{"conf": 0.5}' WHERE id = %s""", [job])
    before = await domain.get(acme, job)
    again = await domain.get(acme, await rerun(domain, acme, job))
    assert (again.rerun_of, before.rerun_of) == (job, None)
    assert again.id != job
    assert (again.state, again.progress.total, again.expires_at) == (JobState.QUEUED, 5, None)
    for taken_over in ("model", "parameters", "priority", "metadata"):
        assert getattr(again, taken_over) == getattr(before, taken_over)
    inputs = [
        domain.rows(f"SELECT input, {INPUT_COLUMNS} FROM wharf.tasks WHERE job_id = %s ORDER BY input", [each])
        for each in (job, again.id)
    ]
    assert inputs[0] == inputs[1]
    assert {result.state for result in again.results} == {"queued"}
    assert {result.attempts for result in again.results} == {0}
    assert await domain.get(acme, job) == before


async def test_only_what_failed_or_is_unprocessable_is_rerun_and_numbered_from_0(domain, acme):
    job = await mixed_job(domain, acme)
    again = await domain.get(acme, await rerun(domain, acme, job, only_failed=True))
    assert [(result.input, result.filename) for result in again.results] == [(0, "1.png"), (1, "3.png")]
    assert again.progress.total == 2
    for claim in await domain.claim(2):
        await domain.end(claim)
    assert (await domain.get(acme, again.id)).state is JobState.SUCCEEDED


async def test_a_job_may_be_rerun_again_and_again_and_a_rerun_too(domain, acme):
    job = await failed_job(domain, acme)
    first, second = [await rerun(domain, acme, job) for _ in range(2)]
    third = await rerun(domain, acme, first)
    assert len({job, first, second, third}) == 4
    assert (await domain.get(acme, third)).rerun_of == first


async def test_a_cancelled_job_is_rerun_whole_or_where_it_failed_in_time(domain, acme):
    job = await domain.submit(acme, inputs=3)
    [claim] = await domain.claim()
    await domain.fail(claim)
    assert await domain.cancel(acme, job)
    assert (await domain.get(acme, await rerun(domain, acme, job))).progress.total == 3
    assert (await domain.get(acme, await rerun(domain, acme, job, only_failed=True))).progress.total == 1
    assert (await domain.get(acme, job)).state is JobState.CANCELLED


async def test_what_cannot_be_rerun_says_why_and_leaves_nothing_behind(domain, acme):
    open_job = await domain.submit(acme)
    await refused(domain, acme, open_job, "job_not_ended", only_failed=True)
    [claim] = await domain.claim()
    await domain.end(claim)
    await refused(domain, acme, open_job, "nothing_to_rerun", only_failed=True)
    gone = await failed_job(domain, acme)
    domain.rows("UPDATE wharf.files SET deleted_at = now()")
    refusal = await refused(domain, acme, gone, "input_gone")
    assert refusal.field == "inputs.0"
    assert len(domain.rows("SELECT id FROM wharf.jobs")) == 2


async def test_an_open_job_is_rerun_whole(domain, acme):
    job = await domain.submit(acme, inputs=2)
    await rerun(domain, acme, job)
    claims = await domain.claim(4)
    assert [await domain.end(claim) for claim in claims] == [False, True, False, True]


async def test_the_first_input_whose_bytes_are_not_held_any_more_is_named(domain, acme):
    job = await mixed_job(domain, acme)
    third, fourth = (await domain.get(acme, job)).results[2:4]
    domain.rows("UPDATE wharf.files SET deleted_at = now() WHERE id = %s", [third.file_id])
    refusal = await refused(domain, acme, job, "input_gone")
    assert refusal.field == "inputs.2"
    assert third.sha256 in refusal.detail
    await rerun(domain, acme, job, only_failed=True)
    domain.rows("UPDATE wharf.files SET expires_at = now() WHERE id = %s", [fourth.file_id])
    assert (await refused(domain, acme, job, "input_gone", only_failed=True)).field == "inputs.3"


async def test_bytes_that_another_tenant_holds_are_not_revived(domain, acme, globex):
    content = random.randbytes(16)
    mine = (await domain.keep(acme, content)).files[0]
    await domain.keep(globex, content)
    job = await domain.submit_on(acme, [mine.id])
    [claim] = await domain.claim()
    await domain.end(claim)
    async with domain.api.transaction(acme) as transaction:
        assert await domain.files.delete(transaction, mine.id)
    await refused(domain, acme, job, "input_gone")
    await domain.keep(acme, content)
    await rerun(domain, acme, job)


async def test_bytes_that_are_on_their_way_out_are_not_run_on_though_a_file_names_them(domain, acme):
    job = await failed_job(domain, acme)
    domain.rows("UPDATE wharf.blobs SET state = 'deleting'")
    await refused(domain, acme, job, "input_gone")


async def test_a_rerun_on_quarantined_bytes_says_that_they_are_damaged(domain, acme, globex):
    """Though not to a tenant that holds them no more."""
    content = b"shared, and damaged"
    jobs = {}
    for tenant in (acme, globex):
        kept = await domain.keep(tenant, content)
        jobs[tenant] = await domain.submit_on(tenant, [kept.files[0].id])
    await domain.change("UPDATE wharf.blobs SET state = 'quarantined', fault = 'missing'")
    await domain.change("UPDATE wharf.files SET deleted_at = now() WHERE tenant_id = %s", [globex])
    assert (await refused(domain, acme, jobs[acme], "file_corrupt")).field == "inputs.0"
    await refused(domain, globex, jobs[globex], "input_gone")


async def test_a_rerun_holds_its_bytes_until_its_commit(domain, acme):
    job = await failed_job(domain, acme)
    async with domain.api.transaction(acme) as transaction:
        original = await reruns.original(transaction, job, only_failed=True)
        assert await domain.files.hold_known(transaction, [each.sha256 for each in original.inputs])
        assert domain.rows("SELECT sha256 FROM wharf.blobs FOR UPDATE SKIP LOCKED") == []
    assert len(domain.rows("SELECT sha256 FROM wharf.blobs FOR UPDATE SKIP LOCKED")) == 1


async def test_a_rerun_waits_for_nobody_who_is_at_work_on_bytes_that_its_tenant_let_go_of(domain, acme, globex):
    content = b"shared for a while"
    await domain.keep(acme, content)
    kept = await domain.keep(globex, content)
    job = await domain.submit_on(globex, [kept.files[0].id])
    await domain.change("UPDATE wharf.files SET deleted_at = now() WHERE tenant_id = %s", [globex])
    with psycopg.connect(domain.installation.url()) as connection:
        connection.execute("SELECT sha256 FROM wharf.blobs FOR UPDATE")
        async with asyncio.timeout(10):
            await refused(domain, globex, job, "input_gone")


async def test_another_tenants_job_is_none(domain, acme, globex):
    job = await failed_job(domain, acme)
    async with domain.api.transaction(globex) as transaction:
        assert await reruns.original(transaction, job, only_failed=False) is None
        assert await reruns.original(transaction, new_id(), only_failed=False) is None
        assert await reruns.newest_rerun(transaction, job) is None
    assert await walked(domain, globex) == []


async def test_reruns_of_the_same_files_in_other_orders_never_wait_in_a_circle(domain, acme):
    files = [(await domain.keep(acme, random.randbytes(16))).files[0].id for _ in range(40)]
    jobs = [await domain.submit_on(acme, order) for order in (files, files[::-1], random.sample(files, 40))]
    await asyncio.gather(*(rerun(domain, acme, job) for job in jobs * 4))
    assert len(domain.rows("SELECT id FROM wharf.jobs")) == 15


async def test_a_large_job_is_rerun_in_a_few_statements(domain, acme):
    job = await domain.submit(acme, inputs=20_000)
    assert await domain.cancel(acme, job)
    async with domain.api.transaction(acme) as transaction:
        statements = 0
        execute = transaction.execute

        async def counted(*asked):
            nonlocal statements
            statements += 1
            return await execute(*asked)

        transaction.execute = counted
        original = await reruns.original(transaction, job, only_failed=False)
        wanted = [each.sha256 for each in original.inputs]
        held = await domain.files.hold_known(transaction, wanted)
        reruns.require_held(original, held, await domain.files.damaged(transaction, set(wanted) - held))
        again = await domain.jobs.repeat(transaction, original.job_id, [each.input for each in original.inputs])
        del transaction.execute
    assert statements <= 7
    [found] = domain.rows(
        "SELECT count(*), count(DISTINCT id) AS ids, min(input), max(input) FROM wharf.tasks WHERE job_id = %s", [again]
    )
    assert (found["count"], found["ids"], found["min"], found["max"]) == (20_000, 20_000, 0, 19_999)


async def test_a_retry_meets_ended_jobs_with_failures_the_oldest_first(domain, acme, globex):
    first, second = await failed_job(domain, acme), await mixed_job(domain, acme)
    await failed_job(domain, globex)
    half = await domain.submit(acme, inputs=2)
    [claim] = await domain.claim()
    await domain.fail(claim)
    assert await walked(domain, acme) == [first, second]
    assert await domain.cancel(acme, half)
    good = await domain.submit(acme)
    [claim] = await domain.claim()
    assert claim.job_id == good
    await domain.end(claim)
    assert await walked(domain, acme) == [first, second, half]
    assert await walked(domain, acme, limit=2) == [first, second]


async def test_a_retry_is_filtered_by_state_model_error_metadata_and_time(domain, acme):
    plain, birds = await failed_job(domain, acme), await failed_job(domain, acme, pool="birds")
    tagged, mixed = await failed_job(domain, acme, metadata='{"n": 7, "m": 1}'), await mixed_job(domain, acme)
    cancelled = await domain.submit(acme, inputs=2)
    [claim] = await domain.claim()
    await domain.fail(claim)
    assert await domain.cancel(acme, cancelled)
    everything = [plain, birds, tagged, mixed, cancelled]
    assert await walked(domain, acme) == everything
    assert await walked(domain, acme, state="cancelled") == [cancelled]
    assert await walked(domain, acme, state="failed") == everything[:4]
    assert await walked(domain, acme, state="expired") == []
    assert await walked(domain, acme, model="birds") == [birds]
    assert await walked(domain, acme, error_code="worker_lost") == [mixed]
    assert await walked(domain, acme, error_code="undecodable_image") == everything
    assert await walked(domain, acme, error_code="none of ours") == []
    assert await walked(domain, acme, metadata={"n": 7}) == [tagged]
    assert await walked(domain, acme, metadata={"n": 8}) == []
    moment = (await domain.get(acme, tagged)).created_at
    assert await walked(domain, acme, created_after=moment) == everything[2:]
    assert await walked(domain, acme, created_before=moment) == everything[:2]
    later = moment + timedelta(microseconds=1)
    assert await walked(domain, acme, created_after=moment, created_before=later) == [tagged]
    assert await walked(domain, acme, model="digits", state="failed", created_after=later) == [mixed]


async def test_a_walk_never_meets_what_was_made_since_it_began(domain, acme):
    first, second = await failed_job(domain, acme), await failed_job(domain, acme)
    async with domain.api.transaction(acme) as transaction:
        walk = Walk(await reruns.now(transaction))
    await rerun(domain, acme, first)
    [claim] = await domain.claim()
    await domain.fail(claim)
    assert await domain.finish(claim.job_id)
    after_it = await failed_job(domain, acme)

    async def met(walk: Walk) -> list[tuple[UUID, UUID | None]]:
        async with domain.api.transaction(acme) as transaction:
            return [(match.job, match.rerun) for match in await reruns.matching(transaction, RetryRequest(), walk)]

    assert await met(walk) == [(first, claim.job_id), (second, None)]
    assert await met(Walk(walk.began, first)) == [(second, None)]
    assert await met(Walk(walk.began, second)) == []
    # The next walk meets what failed again, and not its original.
    assert await walked(domain, acme) == [second, claim.job_id, after_it]


async def test_a_rerun_that_was_cancelled_keeps_no_retry_away(domain, acme):
    job = await failed_job(domain, acme)
    again = await rerun(domain, acme, job)
    assert await walked(domain, acme) == []
    assert await domain.cancel(acme, again)
    assert await walked(domain, acme) == [job]


async def test_two_retries_of_one_job_at_once_make_one_rerun(domain, acme):
    job = await failed_job(domain, acme)

    async def retry() -> UUID:
        async with domain.api.transaction(acme) as transaction:
            if known := await reruns.newest_rerun(transaction, job):
                return known
            original = await reruns.original(transaction, job, only_failed=True)
            await asyncio.sleep(0.1)
            return await domain.jobs.repeat(transaction, original.job_id, [each.input for each in original.inputs])

    assert len(set(await asyncio.gather(*(retry() for _ in range(4))))) == 1
    assert len(domain.rows("SELECT id FROM wharf.jobs")) == 2


async def test_only_the_operators_transactions_see_the_jobs_of_all_tenants(domain, acme, globex):
    mine, others = await failed_job(domain, acme), await failed_job(domain, globex)
    with pytest.raises(CustodyError) as refusal:
        await walked(domain, acme, all_tenants=True)
    assert refusal.value.code == "forbidden"
    domain.rows("UPDATE wharf.tenants SET operator = true WHERE id = %s", [acme])
    assert await walked(domain, acme, all_tenants=True) == [mine, others]
    assert await walked(domain, acme) == [mine]
    async with domain.api.transaction(acme) as transaction:
        walk = Walk(await reruns.now(transaction))
        found = await reruns.matching(transaction, RetryRequest(all_tenants=True), walk)
        assert [(match.tenant, match.tenant_id, match.failed) for match in found] == [
            ("acme", acme, 1),
            ("globex", globex, 1),
        ]
        # The wall stands: the operator's own transaction reruns nobody else's job.
        assert await reruns.original(transaction, others, only_failed=True) is None
