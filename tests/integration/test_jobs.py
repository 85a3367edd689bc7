"""Jobs: what submission makes, the finish rule, cancel, and what a user sees meanwhile."""

import asyncio
import random

import psycopg
import pytest

from custody.jobs import INLINE_RESULTS, Jobs
from custody.wire import JobState, Parameters, Priority
from tests.support.domain import DETECTIONS, MODEL, TIMINGS

pytestmark = pytest.mark.postgres


async def test_a_new_job_is_queued_and_has_one_queued_input_for_each_file(domain, acme):
    first, second = [(await domain.keep(acme, text, f"{text.decode()}.png")).files[0] for text in (b"one", b"two")]
    job = await domain.get(acme, await domain.submit_on(acme, [first.id, second.id, first.id]))
    assert (job.state, job.finished_at) == (JobState.QUEUED, None)
    assert (job.progress.done, job.progress.failed, job.progress.total) == (0, 0, 3)
    assert [result.input for result in job.results] == [0, 1, 2]
    assert [result.filename for result in job.results] == ["one.png", "two.png", "one.png"]
    assert [result.sha256 for result in job.results] == [first.sha256, second.sha256, first.sha256]
    assert {(result.state, result.attempts, result.detections) for result in job.results} == {("queued", 0, None)}


async def test_a_claimed_job_is_running_until_it_ends(domain, acme):
    job = await domain.submit(acme, inputs=2)
    claims = await domain.claim(2)
    assert (await domain.get(acme, job)).state is JobState.RUNNING
    assert not await domain.end(claims[0])
    running = await domain.get(acme, job)
    assert (running.state, running.progress.done) == (JobState.RUNNING, 1)
    assert await domain.end(claims[1])
    ended = await domain.get(acme, job)
    assert (ended.state, ended.progress.done) == (JobState.SUCCEEDED, 2)
    assert ended.finished_at is not None


async def test_a_job_whose_tasks_were_all_given_back_is_queued_again(domain, acme):
    job = await domain.submit(acme)
    claims = await domain.claim()
    async with domain.worker.transaction() as transaction:
        await domain.tasks.give_back(transaction, claims)
    assert (await domain.get(acme, job)).state is JobState.QUEUED


async def test_a_result_names_all_that_brought_it_about(domain, acme):
    job = await domain.submit(acme)
    [claim] = await domain.claim()
    await domain.end(claim)
    [result] = (await domain.get(acme, job)).results
    assert (result.state, result.attempts, result.cached, result.error) == ("succeeded", 1, False, None)
    assert (result.model, result.parameters) == (MODEL, Parameters())
    assert (result.detections, result.timings) == (DETECTIONS, TIMINGS)


async def test_one_failed_input_fails_the_job_and_the_other_results_stay_readable(domain, acme):
    job = await domain.submit(acme, inputs=3)
    first, second, third = await domain.claim(3)
    await domain.end(first)
    await domain.fail(second)
    assert not await domain.finish(job)
    assert await domain.end(third)
    ended = await domain.get(acme, job)
    assert ended.state is JobState.FAILED
    assert (ended.progress.done, ended.progress.failed) == (2, 1)
    by_task = {row["id"]: row["input"] for row in domain.rows("SELECT id, input FROM wharf.tasks")}
    for result in ended.results:
        failed = result.input == by_task[second.task_id]
        assert (result.error.code if result.error else None) == ("undecodable_image" if failed else None)
        assert result.detections == (None if failed else DETECTIONS)


async def test_an_input_that_can_never_work_is_told_apart_from_one_that_ran_and_failed(domain, acme):
    job = await domain.submit(acme, inputs=3)
    first, second, third = await domain.claim(3)
    async with domain.worker.transaction() as transaction:
        assert await domain.tasks.refuse(transaction, first, code="undecodable_image", detail="It is no picture.")
        assert await domain.tasks.fail(transaction, second, code="inference_failed", detail="The engine refused it.")
    running = await domain.get(acme, job)
    assert (running.state, running.progress.done, running.progress.failed) == (JobState.RUNNING, 0, 2)
    assert await domain.end(third)
    ended = await domain.get(acme, job)
    assert (ended.state, ended.progress.done, ended.progress.failed) == (JobState.FAILED, 1, 2)
    assert sorted((result.state, result.error and result.error.code) for result in ended.results) == [
        ("failed", "inference_failed"),
        ("succeeded", None),
        ("unprocessable", "undecodable_image"),
    ]


async def test_a_jobs_deadline_is_so_many_seconds_from_its_submission(domain, acme):
    job = await domain.get(acme, await domain.submit(acme, expires_in=90.5))
    assert (job.expires_at - job.created_at).total_seconds() == 90.5
    assert (await domain.get(acme, await domain.submit(acme))).expires_at is None


async def test_what_is_overdue_expires_and_keeps_what_was_done_in_time(domain, acme, globex):
    overdue = await domain.submit(acme, inputs=3, expires_in=60)
    [claim] = await domain.claim()
    await domain.end(claim)
    others = [await domain.submit(acme, expires_in=3600), await domain.submit(globex)]
    finished = await domain.submit(globex, inputs=2, pool="birds", expires_in=60)
    for last in await domain.claim(2, pool="birds"):
        await domain.succeed(last)  # its finish is on its way
    domain.rows("UPDATE wharf.jobs SET expires_at = now() WHERE id = ANY (%s)", [[overdue, finished]])
    async with domain.worker.transaction() as transaction:
        assert await domain.jobs.overdue(transaction) == [overdue]
        assert await domain.jobs.expire(transaction, overdue)
        assert not await domain.jobs.expire(transaction, overdue)
        assert await domain.jobs.overdue(transaction) == []
        assert await domain.jobs.unfrozen(transaction) == [overdue]
    await domain.follow_cancel(acme, overdue)
    expired = await domain.get(acme, overdue)
    assert (expired.state, expired.progress.done, expired.progress.failed) == (JobState.EXPIRED, 1, 0)
    assert expired.finished_at is not None
    assert domain.task_states(overdue) == ["succeeded", "cancelled", "cancelled"]
    assert not await domain.cancel(acme, overdue)
    assert await domain.finish(finished)
    assert [(await domain.get(tenant, job)).state for tenant, job in zip((acme, globex), others, strict=True)] == [
        JobState.QUEUED
    ] * 2


async def test_an_open_job_tells_how_many_workers_live_for_its_model(domain, acme):
    served, unserved = await domain.submit(acme), await domain.submit(acme, pool="birds")
    for worker in ("w1", "w2", "silent"):
        domain.add_worker(worker)
    domain.rows("UPDATE wharf.workers SET seen_at = now() - interval '31 seconds' WHERE name = 'silent'")
    assert (await domain.get(acme, served)).ready_workers == 2
    assert (await domain.get(acme, unserved)).ready_workers == 0
    async with domain.api.transaction(acme) as transaction:
        listed = await domain.jobs.page(transaction, before=None, limit=10)
    assert {job.id: job.ready_workers for job in listed} == {served: 2, unserved: 0}
    [claim] = await domain.claim()
    await domain.end(claim)
    assert (await domain.get(acme, served)).ready_workers is None


async def test_an_ended_job_is_written_no_more(domain, acme):
    job = await domain.submit(acme)
    [claim] = await domain.claim()
    assert await domain.end(claim)
    ended = await domain.get(acme, job)
    assert not await domain.finish(job)
    assert not await domain.cancel(acme, job)
    assert await domain.get(acme, job) == ended


@pytest.mark.parametrize(
    "change",
    [
        "state = 'succeeded', finished_at = now()",
        "state = 'succeeded', finished_at = now(), done = 1, failed = 1",
        "state = 'failed', finished_at = now(), done = 2, failed = 0",
        "state = 'cancelled'",
        "finished_at = now()",
        "done = 1, failed = 0",
        "state = 'lost', finished_at = now()",
    ],
)
def test_the_database_refuses_a_state_that_contradicts_itself(shared_installation, change):
    with psycopg.connect(shared_installation.url()) as connection:
        connection.execute("INSERT INTO wharf.tenants (id, name) VALUES (gen_random_uuid(), 'acme')")
        connection.execute(
            "INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total)"
            " SELECT gen_random_uuid(), id, 'digits', '{}', 'batch', 2 FROM wharf.tenants"
        )
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(f"UPDATE wharf.jobs SET {change}")
        connection.rollback()


async def test_the_last_two_tasks_ending_at_the_same_moment_finish_the_job_once(domain, acme):
    """A thousand times. Half of the pairs commit their ends together, each unseen by the other; the other half begin
    their ends together."""
    kept = await domain.keep(acme, b"a picture")
    files = [kept.files[0].id] * 2
    jobs = [await domain.submit_on(acme, files) for _ in range(1000)]
    pairs = {job: [] for job in jobs}
    for claim in await domain.claim(2000):
        pairs[claim.job_id].append(claim)

    async def end(claim, barrier, *, wait_before_commit, fails) -> bool:
        if not wait_before_commit:
            await barrier.wait()
        async with domain.worker.transaction() as transaction:
            if fails:
                assert await domain.tasks.fail(transaction, claim, code="undecodable_image", detail="No picture.")
            else:
                assert await domain.tasks.succeed(
                    transaction, claim, model=MODEL, detections=DETECTIONS, timings=TIMINGS
                )
            if wait_before_commit:
                await barrier.wait()
        return await domain.finish(claim.job_id)

    async def end_both(number, job) -> int:
        barrier = asyncio.Barrier(2)
        ends = (
            end(claim, barrier, wait_before_commit=number % 2 == 0, fails=number % 3 == 0 and claim is pairs[job][0])
            for claim in pairs[job]
        )
        return sum(await asyncio.gather(*ends))

    for number, job in enumerate(jobs):
        assert await end_both(number, job) == 1
    found = domain.rows("SELECT id, state, done, failed FROM wharf.jobs ORDER BY id")
    assert [(row["state"], row["done"], row["failed"]) for row in found] == [
        ("failed", 1, 1) if number % 3 == 0 else ("succeeded", 2, 0) for number in range(1000)
    ]


async def test_a_finish_that_cannot_see_the_other_end_yet_leaves_the_job_to_it(domain, acme):
    job = await domain.submit(acme, inputs=2)
    first, second = await domain.claim(2)
    async with domain.worker.transaction() as transaction:
        await domain.tasks.succeed(transaction, first, model=MODEL, detections=[], timings=TIMINGS)
        assert not await domain.end(second)
    assert await domain.finish(job)


async def test_cancel_ends_what_has_not_ended_and_keeps_what_has(domain, acme):
    job = await domain.submit(acme, inputs=4)
    claims = await domain.claim(3)
    await domain.end(claims[0])
    await domain.fail(claims[1])
    assert await domain.cancel(acme, job)
    assert not await domain.cancel(acme, job)
    cancelled = await domain.get(acme, job)
    assert cancelled.state is JobState.CANCELLED
    assert (cancelled.progress.done, cancelled.progress.failed, cancelled.progress.total) == (1, 1, 4)
    assert sorted(domain.task_states(job)) == ["cancelled", "cancelled", "failed", "succeeded"]
    assert sum(result.detections is not None for result in cancelled.results) == 1


async def test_cancel_and_the_last_end_at_once_leave_one_of_the_two_and_true_counts(domain, acme):
    """Two hundred times."""
    kept = await domain.keep(acme, b"a picture")
    outcomes = set()
    for _ in range(200):
        job = await domain.submit_on(acme, [kept.files[0].id] * 2)
        claims = await domain.claim(2)

        async def after(seconds, call):
            await asyncio.sleep(seconds)
            return await call

        cancelled, *finished = await asyncio.gather(
            after(random.uniform(0, 0.003), domain.cancel(acme, job)),
            *(after(random.uniform(0, 0.003), domain.end(claim)) for claim in claims),
        )
        assert cancelled + sum(finished) == 1
        [row] = domain.rows("SELECT state, done, failed FROM wharf.jobs WHERE id = %s", [job])
        states = domain.task_states(job)
        assert row["state"] == ("cancelled" if cancelled else "succeeded")
        assert (row["done"], row["failed"]) == (states.count("succeeded"), 0)
        assert set(states) <= {"succeeded", "cancelled"}
        assert cancelled or states == ["succeeded", "succeeded"]
        [stored] = domain.rows(
            "SELECT count(*) FROM wharf.results r JOIN wharf.tasks t ON t.id = r.task_id WHERE job_id = %s", [job]
        )
        assert stored["count"] == row["done"]
        outcomes.add((row["state"], row["done"]))
    assert len(outcomes) > 1


async def test_a_job_cancelled_between_its_last_end_and_its_finish_stays_cancelled_with_all_its_results(domain, acme):
    job = await domain.submit(acme, inputs=2)
    for claim in await domain.claim(2):
        assert await domain.succeed(claim)
    assert await domain.cancel(acme, job)
    assert not await domain.finish(job)
    cancelled = await domain.get(acme, job)
    assert (cancelled.state, cancelled.progress.done) == (JobState.CANCELLED, 2)
    assert [result.state for result in cancelled.results] == ["succeeded"] * 2


async def test_an_end_that_is_written_and_not_committed_as_the_job_is_cancelled_counts(domain, acme):
    job = await domain.submit(acme, inputs=2)
    first, _ = await domain.claim(2)
    async with domain.worker.transaction() as transaction:
        assert await domain.tasks.succeed(transaction, first, model=MODEL, detections=DETECTIONS, timings=TIMINGS)
        cancelling = asyncio.create_task(domain.cancel(acme, job))
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        async with asyncio.timeout(10):
            while not await domain.ask(waits):
                await asyncio.sleep(0.01)
    assert await cancelling
    assert not await domain.finish(job)
    cancelled = await domain.get(acme, job)
    assert (cancelled.state, cancelled.progress.done) == (JobState.CANCELLED, 1)
    assert sorted(domain.task_states(job)) == ["cancelled", "succeeded"]


async def test_a_cancel_and_a_deadline_at_once_leave_one_of_the_two(domain, acme):
    for _ in range(50):
        job = await domain.submit(acme, inputs=3, expires_in=60)
        await domain.claim(2)

        async def expire(job=job) -> bool:
            async with domain.worker.transaction() as transaction:
                expired = await domain.jobs.expire(transaction, job)
            await domain.follow_cancel(acme, job)
            return expired

        cancelled, expired = await asyncio.gather(domain.cancel(acme, job), expire())
        assert cancelled != expired
        [row] = domain.rows("SELECT state, done, failed FROM wharf.jobs WHERE id = %s", [job])
        assert (row["state"], row["done"], row["failed"]) == ("cancelled" if cancelled else "expired", 0, 0)
        assert set(domain.task_states(job)) == {"cancelled"}


async def test_the_inputs_of_a_job_that_was_ended_early_are_cancelled_before_their_tasks_follow(domain, acme):
    job = await domain.submit(acme, inputs=3)
    await domain.claim()
    async with domain.api.transaction(acme) as transaction:
        assert await domain.jobs.cancel(transaction, job)
    assert [result.state for result in (await domain.get(acme, job)).results] == ["cancelled"] * 3
    assert sorted(domain.task_states(job)) == ["queued", "queued", "running"]


async def test_many_who_cancel_one_job_at_once_end_it_once(domain, acme):
    job = await domain.submit(acme, inputs=50)
    await domain.claim(20)
    cancelled = await asyncio.gather(*(domain.cancel(acme, job) for _ in range(8)))
    assert sum(cancelled) == 1
    assert set(domain.task_states(job)) == {"cancelled"}


async def test_a_cancel_and_those_who_hold_its_tasks_never_wait_in_a_circle(domain, acme):
    """A deadlock would be an error in one of them: each locks many tasks, and claims are held in any order."""
    for _ in range(20):
        job = await domain.submit(acme, inputs=60)
        claims = await domain.claim(60)
        random.shuffle(claims)

        async def held(change, claims=claims):
            async with domain.worker.transaction() as transaction:
                await change(transaction, claims)

        await asyncio.gather(
            held(domain.tasks.extend),
            domain.follow_cancel(acme, job),
            held(domain.tasks.extend),
            domain.follow_cancel(acme, job),
            held(domain.tasks.give_back),
        )


async def test_lists_are_newest_first_and_page_by_the_last_id(domain, acme):
    jobs = [await domain.submit(acme) for _ in range(5)]
    pages, before = [], None
    for _ in range(3):
        async with domain.api.transaction(acme) as transaction:
            page = await domain.jobs.page(transaction, before=before, limit=2)
        pages += [job.id for job in page]
        before = page[-1].id
    assert pages == jobs[::-1]


async def test_lists_are_filtered_by_state_model_and_metadata(domain, acme):
    queued, running, done, other = [
        await domain.submit(acme, pool=pool) for pool in ("digits", "digits", "digits", "birds")
    ]
    # The oldest are claimed first: what is named `queued` here is the one left over.
    first, second = await domain.claim(2)
    await domain.end(first)
    queued, running, done = done, second.job_id, first.job_id
    domain.rows("""UPDATE wharf.jobs SET metadata = '{"batch": 7, "who": "me"}' WHERE id = %s""", [other])

    async def listed(**filters) -> set:
        async with domain.api.transaction(acme) as transaction:
            return {job.id for job in await Jobs().page(transaction, before=None, limit=10, **filters)}

    assert await listed(state=JobState.QUEUED) == {queued, other}
    assert await listed(state=JobState.RUNNING) == {running}
    assert await listed(state=JobState.SUCCEEDED) == {done}
    assert await listed(state=JobState.CANCELLED) == set()
    assert await listed(model="birds") == {other}
    assert await listed(metadata={"batch": 7}) == {other}
    assert await listed(metadata={"batch": 8}) == set()
    assert await listed() == {queued, running, done, other}


async def test_results_page_by_the_last_input_and_large_jobs_carry_none_inline(domain, acme):
    job = await domain.submit(acme, inputs=101)
    assert (await domain.get(acme, job)).results is None
    inputs, after = [], None
    async with domain.api.transaction(acme) as transaction:
        while page := await domain.jobs.results(transaction, job, after=after, limit=40):
            inputs += [result.input for result in page]
            after = page[-1].input
    assert inputs == list(range(101))


async def test_a_large_open_jobs_progress_is_counted_once_a_second_however_many_watch(domain, acme):
    job = await domain.submit(acme, inputs=INLINE_RESULTS + 1)
    [claim] = await domain.claim(1)

    async def seen() -> int:
        async with domain.api.transaction(acme) as transaction:
            return (await domain.jobs.get(transaction, job)).progress.done

    assert await seen() == 0
    await domain.succeed(claim)
    assert await seen() == 0
    await asyncio.sleep(1.1)
    assert await seen() == 1


async def test_a_job_that_carries_its_results_has_the_progress_that_they_show(domain, acme):
    job = await domain.submit(acme, inputs=3)
    claims = await domain.claim(2)
    for end, done, failed in ((domain.succeed, 1, 0), (domain.fail, 1, 1)):
        await end(claims.pop())
        async with domain.api.statements(acme) as statements:
            seen = await domain.jobs.get(statements, job)
        assert (seen.state, seen.progress.done, seen.progress.failed) == ("running", done, failed)
        assert [result.state for result in seen.results].count("succeeded") == done


async def test_a_job_of_one_input_ends_with_it_and_a_cancel_that_comes_then_is_too_late(domain, acme):
    ended, cancelled = await domain.submit(acme), await domain.submit(acme)
    claims = {claim.job_id: claim for claim in await domain.claim(2)}
    assert (await domain.success(claims[ended])).finished
    seen = await domain.get(acme, ended)
    assert (seen.state, seen.progress.done, seen.progress.failed) == (JobState.SUCCEEDED, 1, 0)
    assert seen.finished_at is not None
    assert not await domain.finish(ended)
    async with domain.worker.transaction() as transaction:
        success = await domain.tasks.succeed(
            transaction, claims[cancelled], model=MODEL, detections=DETECTIONS, timings=TIMINGS
        )
        assert success.finished
        cancelling = asyncio.create_task(domain.cancel(acme, cancelled))
        await asyncio.sleep(0.2)
        assert not cancelling.done()
    assert not await cancelling
    assert (await domain.get(acme, cancelled)).state is JobState.SUCCEEDED


async def test_a_job_of_two_inputs_does_not_end_with_the_first_of_them(domain, acme):
    job = await domain.submit(acme, inputs=2)
    first, last = await domain.claim(2)
    assert not (await domain.success(first)).finished
    assert not (await domain.success(last)).finished
    assert (await domain.get(acme, job)).state is JobState.RUNNING
    assert await domain.finish(job)


async def test_a_jobs_priority_is_its_tasks_class(domain, acme):
    job = await domain.submit(acme, priority=Priority.BATCH)
    assert domain.rows("SELECT class, pool FROM wharf.tasks WHERE job_id = %s", [job]) == [
        {"class": "batch", "pool": "digits"}
    ]
    assert (await domain.get(acme, job)).priority is Priority.BATCH
