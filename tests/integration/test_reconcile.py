"""The loop that mends what a death left behind, and what it tells."""

import asyncio
import random
from contextlib import asynccontextmanager

import psycopg
import pytest

from custody.notices import Notices, job_ended, tasks_queued
from custody.reconcile import Reconciler
from custody.wire import JobState, Priority
from tests.support.domain import POOL

pytestmark = pytest.mark.postgres

PROMPT_SECONDS = 2.0
"""Well before a waiter would have looked again by itself."""


@pytest.fixture
def reconciler(domain, notices) -> Reconciler:
    return Reconciler(domain.worker, domain.tasks, domain.jobs, notices, every_seconds=0.05)


async def test_a_silent_workers_task_is_queued_again_and_its_pool_is_told(domain, acme, notices, reconciler):
    job = await domain.submit(acme)
    await domain.claim()
    await reconciler.run_once()
    assert domain.task_states(job) == ["running"]
    await domain.expire_leases()
    async with told(notices, tasks_queued(POOL, Priority.INTERACTIVE)):
        await reconciler.run_once()
    assert domain.task_states(job) == ["queued"]
    [claim] = await domain.claim()
    assert (claim.attempt, claim.spent) == (2, 2)


async def test_a_task_whose_attempts_are_spent_fails_ends_its_job_and_that_is_told(domain, acme, notices, reconciler):
    job = await domain.submit(acme)
    for _ in range(2):
        await domain.claim()
        await domain.expire_leases()
        await reconciler.run_once()
    await domain.claim()
    await domain.expire_leases()
    async with told(notices, job_ended(job)):
        await reconciler.run_once()
    failed = await domain.get(acme, job)
    assert failed.state is JobState.FAILED
    assert failed.results[0].error.code == "worker_lost"
    assert "attempt 3" in failed.results[0].error.detail


async def test_a_job_whose_worker_died_between_its_last_end_and_the_finish_is_finished(
    domain, acme, notices, reconciler
):
    job = await domain.submit(acme, inputs=2)
    succeeding, failing = await domain.claim(2)
    await domain.succeed(succeeding)
    await domain.fail(failing)
    assert (await domain.get(acme, job)).state is JobState.RUNNING
    async with told(notices, job_ended(job)):
        await reconciler.run_once()
    finished = await domain.get(acme, job)
    assert (finished.state, finished.progress.done, finished.progress.failed) == (JobState.FAILED, 1, 1)


async def test_a_cancelled_job_whose_canceller_died_is_followed_by_its_tasks_and_its_counts(domain, acme, reconciler):
    job = await domain.submit(acme, inputs=3)
    claims = await domain.claim(2)
    await domain.end(claims[0])
    async with domain.api.transaction(acme) as transaction:
        assert await domain.jobs.cancel(transaction, job)
    await reconciler.run_once()
    assert sorted(domain.task_states(job)) == ["cancelled", "cancelled", "succeeded"]
    assert domain.rows("SELECT state, done, failed FROM wharf.jobs") == [{"state": "cancelled", "done": 1, "failed": 0}]


async def test_a_job_that_contradicts_itself_keeps_no_other_waiting(domain, acme, reconciler):
    bad, good = await domain.submit(acme, inputs=2), await domain.submit(acme)
    for claim in await domain.claim(3):
        await domain.succeed(claim)
    # Fewer inputs than it has tasks: its counts can never be written down.
    await domain.change("UPDATE wharf.jobs SET total = 1 WHERE id = %s", [bad])
    for _ in range(2):
        await reconciler.run_once()
    assert (await domain.get(acme, good)).state is JobState.SUCCEEDED
    assert (await domain.get(acme, bad)).state is JobState.RUNNING


async def test_what_is_in_order_is_left_alone(domain, acme, reconciler):
    ended, running, queued, cancelled = [await domain.submit(acme) for _ in range(4)]
    claims = {claim.job_id: claim for claim in await domain.claim(2)}
    await domain.end(claims[ended])
    await domain.cancel(acme, cancelled)
    rows = "SELECT * FROM wharf.jobs j JOIN wharf.tasks t ON t.job_id = j.id ORDER BY j.id"
    before = domain.rows(rows)
    await reconciler.run_once()
    assert domain.rows(rows) == before
    assert [domain.task_states(job) for job in (running, queued)] == [["running"], ["queued"]]


async def test_many_who_mend_at_once_mend_everything_once(domain, acme, notices, reconciler):
    jobs = [await domain.submit(acme, inputs=3) for _ in range(20)]
    claims = await domain.claim(50)
    for claim in random.sample(claims, 25):
        await domain.succeed(claim)
    for job in random.sample(jobs, 5):
        async with domain.api.transaction(acme) as transaction:
            await domain.jobs.cancel(transaction, job)
    await domain.expire_leases()
    await asyncio.gather(*(reconciler.run_once() for _ in range(6)))
    attempts = domain.rows("SELECT max(attempt) FROM wharf.tasks WHERE state = 'queued'")
    assert attempts == [{"max": 1}]
    assert not domain.rows("SELECT id FROM wharf.tasks WHERE state = 'running'")
    assert not domain.rows(
        """
        SELECT j.id FROM wharf.jobs j JOIN wharf.tasks t ON t.job_id = j.id GROUP BY j.id
        HAVING (j.state = 'open') <> bool_or(t.state IN ('queued', 'running'))
            OR j.done <> count(*) FILTER (WHERE t.state = 'succeeded')
        """
    )


async def test_the_loop_outlives_a_database_that_goes_away(domain, acme, reconciler):
    job = await domain.submit(acme)
    [claim] = await domain.claim()
    loop = asyncio.create_task(reconciler.run())
    with psycopg.connect(domain.installation.postgres.url(), autocommit=True) as connection:
        name = domain.installation.database
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        await asyncio.sleep(0.3)
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await domain.succeed(claim)
    for _ in range(1000):
        if (await domain.get(acme, job)).state is JobState.SUCCEEDED:
            break
        await asyncio.sleep(0.02)
    else:
        raise TimeoutError("the job was not finished")
    assert not loop.done()
    loop.cancel()


@asynccontextmanager
async def told(notices: Notices, topic: str):
    """Fails unless the topic is told inside."""
    with notices.subscribe(topic) as subscription:
        # The first connection wakes everybody once.
        await subscription.wait(0.3)
        yield
        async with asyncio.timeout(PROMPT_SECONDS):
            await subscription.wait()
