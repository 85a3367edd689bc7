"""The consumer: what comes back from a slot becomes the task's end, whatever happens to the database or the lease."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest

from custody.cache import Computation
from custody.errors import CustodyError
from custody.notices import Notices, job_ended, tasks_queued
from custody.reconcile import Reconciler
from custody.tasks import Success, Tasks
from custody.transport.embedded import EmbeddedTransport
from custody.wire import JobState, Priority, Timings
from inference_worker.consumer import Consumer, backoff_seconds
from inference_worker.metrics import WorkerMetrics
from inference_worker.outcomes import Corrupt, Done, Failed, Outcome, Retry, Work
from tests.support.domain import DETECTIONS, ENGINE, MODEL, POOL, Domain

CACHING = partial(Tasks, computes=Computation(bytes.fromhex(MODEL.digest), "1 openvino"))
DONE = Done(DETECTIONS, 40, 30, read_ms=1, decode_ms=2, infer_ms=3)


class Worker:
    """A worker's consumer without the slots: a test says what becomes of a picture."""

    def __init__(self, domain: Domain, notices: Notices) -> None:
        self.domain = domain
        self.metrics = WorkerMetrics()
        self.stop = asyncio.Event()
        self._notices = notices

    @asynccontextmanager
    async def running(
        self,
        run_in_slot: Callable[[Work], Awaitable[Outcome]],
        *,
        slots: int = 1,
        prefetch: int = 1,
        drain_seconds: float = 5.0,
        lease_seconds: float = 30.0,
        transport: type[EmbeddedTransport] = EmbeddedTransport,
        kind_of_tasks: Callable[..., Tasks] = Tasks,
        verified_share: float = 0.0,
    ):
        tasks = kind_of_tasks(lease_seconds=lease_seconds, max_attempts=3)
        reconciler = Reconciler(self.domain.worker, tasks, self.domain.jobs, self._notices, every_seconds=60)
        consumer = Consumer(
            database=self.domain.worker,
            transport=transport(
                self.domain.worker, tasks, self._notices, pool=POOL, worker="w1", follow=reconciler.follow
            ),
            tasks=tasks,
            jobs=self.domain.jobs,
            notices=self._notices,
            run_in_slot=run_in_slot,
            has_slots=lambda: True,
            model=MODEL,
            engine=ENGINE,
            verified_share=verified_share,
            slots=slots,
            prefetch=prefetch,
            drain_seconds=drain_seconds,
            metrics=self.metrics,
        )
        self.consumer = consumer
        consuming = asyncio.create_task(consumer.run(self.stop))
        try:
            yield consuming
        finally:
            self.stop.set()
            async with asyncio.timeout(15):
                # Its loops were cancelled where it has died.
                with suppress(asyncio.CancelledError):
                    await consuming

    async def die(self) -> None:
        """Without a word: nothing is finished, and nothing given back."""
        self.consumer._stopping = True
        names = ("task-", "receive-", "keep-leases")
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(names)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.consumer._held.clear()

    def cached(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("wharf_cache_total", {"model": POOL, "outcome": outcome}) or 0.0

    def counted(self, outcome: str) -> float:
        return (
            self.metrics.registry.get_sample_value("wharf_tasks_total", {"model": MODEL.name, "outcome": outcome})
            or 0.0
        )


@pytest.fixture
def worker(domain, notices) -> Worker:
    return Worker(domain, notices)


async def test_a_picture_that_is_done_becomes_a_result_and_ends_its_job(domain, acme, worker, notices):
    kept = await domain.keep(acme, b"a picture")
    job = await domain.submit_on(acme, [kept.files[0].id])
    seen: list[Work] = []

    async def look(work: Work) -> Outcome:
        seen.append(work)
        return DONE

    with notices.subscribe(job_ended(job)) as subscription:
        async with worker.running(look):
            ended = await until_ended(domain, acme, job)
            await subscription.wait()
    assert ended.state is JobState.SUCCEEDED
    [result] = ended.results
    assert (result.model, result.detections, result.attempts) == (MODEL, DETECTIONS, 1)
    assert result.timings == Timings(queue=result.timings.queue, read=1, decode=2, infer=3, commit=None)
    [work] = seen
    assert (domain.volume.root / work.path).read_bytes() == b"a picture"
    assert (work.media_type, work.orientation, work.parameters) == ("image/png", 1, result.parameters)
    assert worker.counted("succeeded") == 1


class SlowTasks(Tasks):
    """To whom the database answers late."""

    async def succeed(self, *arguments: Any, **named: Any) -> Success | None:
        await asyncio.sleep(0.3)
        return await super().succeed(*arguments, **named)


async def test_a_result_tells_how_long_the_write_before_it_took(domain, acme, worker):
    kept = await domain.keep(acme, b"a picture")
    job = await domain.submit_on(acme, [kept.files[0].id] * 2)

    async def look(work: Work) -> Outcome:
        return DONE

    async with worker.running(look, prefetch=0, kind_of_tasks=SlowTasks):
        ended = await until_ended(domain, acme, job)
    first, second = (result.timings.commit for result in ended.results)
    assert first is None
    assert second >= 300
    [written] = [
        sample.value
        for family in worker.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "wharf_task_stage_seconds_sum" and sample.labels["stage"] == "commit"
    ]
    assert written >= 0.6


@pytest.mark.parametrize(("share", "verified"), [(0.0, False), (1.0, True)])
async def test_a_result_says_what_it_was_computed_from_and_with(domain, acme, worker, share, verified):
    kept = await domain.keep(acme, b"a picture")
    job = await domain.submit_on(acme, [kept.files[0].id])
    seen: list[Work] = []

    async def look(work: Work) -> Outcome:
        seen.append(work)
        return DONE

    async with worker.running(look, verified_share=share):
        [result] = (await until_ended(domain, acme, job)).results
    assert (result.verified, result.engine, result.model) == (verified, ENGINE, MODEL)
    assert (seen[0].verify, seen[0].sha256) == (verified, kept.files[0].sha256)


async def test_a_sample_of_the_pictures_is_verified(domain, acme, worker):
    job = await domain.submit(acme, 100)

    async def look(work: Work) -> Outcome:
        return DONE

    async with worker.running(look, verified_share=0.5):
        ended = await until_ended(domain, acme, job)
    assert 10 < sum(result.verified for result in ended.results) < 90  # 1 in 10^16 is outside


async def test_damaged_bytes_end_the_task_for_good_and_are_quarantined(domain, acme, worker):
    job = await domain.submit(acme)

    async def look(work: Work) -> Outcome:
        return Corrupt("They are others.")

    async with worker.running(look):
        [result] = (await until_ended(domain, acme, job)).results
    assert (result.state, result.error.code, result.attempts) == ("unprocessable", "file_corrupt", 1)
    assert domain.blob(result.sha256)["state"] == "quarantined"
    assert domain.blob(result.sha256)["fault"] == "corrupt"
    assert domain.bytes_of(bytes.fromhex(result.sha256)) is not None


async def test_bytes_that_were_replaced_while_a_worker_read_them_are_read_again(domain, acme, worker):
    content = b"bytes that are healed"
    kept = await domain.keep(acme, content)
    job = await domain.submit_on(acme, [kept.files[0].id])
    answers: list[Outcome] = [Corrupt("They are others."), DONE]

    async def look(work: Work) -> Outcome:
        if len(answers) == 2:
            await domain.change("UPDATE wharf.blobs SET state = 'quarantined', fault = 'corrupt'")
            await domain.keep(acme, content)
        return answers.pop(0)

    async with worker.running(look):
        [result] = (await until_ended(domain, acme, job)).results
    assert (result.state, result.attempts) == ("succeeded", 2)
    assert domain.blob(result.sha256)["state"] == "present"


@pytest.mark.parametrize("fault", ["corrupt", "missing"])
async def test_a_task_on_quarantined_bytes_ends_at_once_and_needs_no_slot(domain, acme, worker, fault):
    busy = await domain.submit(acme)
    kept = await domain.keep(acme, b"hurt")
    job = await domain.submit_on(acme, [kept.files[0].id])
    quarantine = "UPDATE wharf.blobs SET state = 'quarantined', fault = %s WHERE sha256 = sha256('hurt')"
    await domain.change(quarantine, [fault])
    seen: list[Work] = []
    free = asyncio.Event()

    async def look(work: Work) -> Outcome:
        seen.append(work)
        await free.wait()
        return DONE

    async with worker.running(look, slots=1):
        [result] = (await until_ended(domain, acme, job)).results
        free.set()
        assert (await until_ended(domain, acme, busy)).state is JobState.SUCCEEDED
    assert (result.state, result.error.code, result.attempts) == ("unprocessable", "file_corrupt", 1)
    assert fault in result.error.detail
    assert len(seen) == 1


async def test_a_worker_that_lost_the_task_quarantines_nothing(domain, acme, worker):
    job = await domain.submit(acme)
    [claim] = await domain.claim()
    await domain.cancel(acme, job)
    async with domain.worker.transaction() as transaction:
        assert not await domain.tasks.report_corrupt(transaction, claim)
    assert domain.blob(claim.sha256.hex())["state"] == "present"


async def test_a_picture_that_can_never_work_fails_at_once_with_its_code(domain, acme, worker):
    job = await domain.submit(acme)

    async def look(work: Work) -> Outcome:
        return Failed("undecodable_image", "The bytes end in the middle.")

    async with worker.running(look):
        ended = await until_ended(domain, acme, job)
    [result] = ended.results
    assert (ended.state, result.attempts) == (JobState.FAILED, 1)
    assert (result.error.code, result.error.detail) == ("undecodable_image", "The bytes end in the middle.")
    assert worker.counted("failed") == 1


async def test_a_picture_that_may_work_later_is_tried_again_after_a_while(domain, acme, worker):
    job = await domain.submit(acme)
    answers = [Retry("worker_crashed", "It died."), DONE]

    async def look(work: Work) -> Outcome:
        return answers.pop(0)

    async with worker.running(look):
        ended = await until_ended(domain, acme, job)
    [result] = ended.results
    assert (result.state, result.attempts, result.error) == ("succeeded", 2, None)
    [row] = domain.rows("SELECT extract(epoch FROM claimed_at - created_at)::float8 AS waited FROM wharf.tasks")
    assert row["waited"] > 0.4
    assert (worker.counted("queued"), worker.counted("succeeded")) == (1, 1)


async def test_a_picture_that_kills_every_slot_fails_and_costs_its_neighbours_nothing(domain, acme, worker):
    poisonous, *harmless = [await domain.submit(acme) for _ in range(6)]
    domain.rows("UPDATE wharf.tasks SET attempt = 2 WHERE job_id = %s", [poisonous])
    [row] = domain.rows("SELECT id FROM wharf.tasks WHERE job_id = %s", [poisonous])

    async def look(work: Work) -> Outcome:
        return Retry("worker_crashed", "It died.") if work.task == row["id"] else DONE

    async with worker.running(look, slots=2):
        ended = await until_ended(domain, acme, poisonous)
        others = [await until_ended(domain, acme, job) for job in harmless]
    assert (ended.state, ended.results[0].error.code, ended.results[0].attempts) == (
        JobState.FAILED, "worker_crashed", 3,
    )  # fmt: skip
    assert {(job.state, job.results[0].attempts) for job in others} == {(JobState.SUCCEEDED, 1)}


async def test_as_many_pictures_run_at_once_as_there_are_slots_and_a_few_more_wait(domain, acme, worker):
    job = await domain.submit(acme, inputs=20)
    running, most = 0, 0

    async def look(work: Work) -> Outcome:
        nonlocal running, most
        running += 1
        most = max(most, running)
        [claimed] = domain.rows("SELECT count(*) FROM wharf.tasks WHERE state = 'running'")
        assert claimed["count"] <= 6
        await asyncio.sleep(0.02)
        running -= 1
        return DONE

    async with worker.running(look, slots=2, prefetch=2):
        assert (await until_ended(domain, acme, job)).state is JobState.SUCCEEDED
    assert most == 2


async def test_work_that_outlasts_its_lease_keeps_it(domain, acme, worker, notices):
    job = await domain.submit(acme, inputs=2)
    reconciler = Reconciler(domain.worker, domain.tasks, domain.jobs, notices, every_seconds=0.1)
    mending = asyncio.create_task(reconciler.run())

    async def look(work: Work) -> Outcome:
        await asyncio.sleep(1.5)
        return DONE

    # One is worked on for longer than a lease; the other waits for it, and is held as well.
    async with worker.running(look, lease_seconds=1.0):
        ended = await until_ended(domain, acme, job)
    mending.cancel()
    assert ended.state is JobState.SUCCEEDED
    assert [result.attempts for result in ended.results] == [1, 1]


async def test_the_end_of_a_task_that_another_has_taken_over_is_void(domain, acme, worker):
    job = await domain.submit(acme)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def look(work: Work) -> Outcome:
        begun.set()
        await go_on.wait()
        return Failed("undecodable_image", "This comes too late.")

    async with worker.running(look):
        await begun.wait()
        await domain.expire_leases("w1")
        async with domain.worker.transaction() as transaction:
            await domain.tasks.requeue_expired(transaction)
            # In one transaction, so that the consumer under test does not take it again.
            claimed = await domain.tasks.claim_next(
                transaction, pool=POOL, priority=Priority.INTERACTIVE, worker="other", limit=1
            )
            [claim] = claimed.claims
        assert await domain.end(claim)
        go_on.set()
        await until(lambda: worker.counted("void"))
    ended = await domain.get(acme, job)
    assert (ended.state, ended.results[0].attempts, ended.results[0].error) == (JobState.SUCCEEDED, 2, None)


async def test_a_task_that_was_lost_before_it_began_is_not_worked_on(domain, acme, worker):
    await domain.submit(acme, inputs=2)
    seen: list[Work] = []
    go_on = asyncio.Event()

    async def look(work: Work) -> Outcome:
        seen.append(work)
        await go_on.wait()
        return DONE

    async with worker.running(look, lease_seconds=0.3):
        await until(lambda: len(claimed_by(domain, "w1")) == 2 and seen)
        [waiting] = set(claimed_by(domain, "w1")) - {seen[0].task}
        await domain.change("UPDATE wharf.tasks SET attempt = attempt + 1, worker = 'other' WHERE id = %s", [waiting])
        await asyncio.sleep(0.5)
        go_on.set()
        await until(lambda: worker.counted("succeeded"))
        await asyncio.sleep(0.1)
    assert [work.task for work in seen] == [seen[0].task]
    assert claimed_by(domain, "other") == [waiting]


async def test_a_cancelled_jobs_running_picture_ends_void_and_its_waiting_ones_are_not_begun(domain, acme, worker):
    job = await domain.submit(acme, inputs=3)
    begun, go_on = asyncio.Event(), asyncio.Event()
    seen: list[Work] = []

    async def look(work: Work) -> Outcome:
        seen.append(work)
        begun.set()
        await go_on.wait()
        return DONE

    async with worker.running(look, prefetch=2, lease_seconds=0.3):
        await begun.wait()
        await domain.cancel(acme, job)
        await asyncio.sleep(0.4)
        go_on.set()
        await until(lambda: worker.counted("void"))
    assert len(seen) == 1
    assert domain.task_states(job) == ["cancelled"] * 3
    assert (await domain.get(acme, job)).state is JobState.CANCELLED


async def test_an_end_is_written_over_a_connection_that_was_cut(domain, acme, worker):
    jobs = [await domain.submit(acme) for _ in range(5)]

    async def look(work: Work) -> Outcome:
        domain.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'worker'")
        return DONE

    # Nothing is claimed ahead: a claim whose answer is cut off would be nobody's until its lease ends.
    async with worker.running(look, prefetch=0):
        ended = [await until_ended(domain, acme, job) for job in jobs]
    assert {(job.state, job.results[0].attempts) for job in ended} == {(JobState.SUCCEEDED, 1)}


async def test_an_end_that_was_cut_off_in_the_middle_is_written_again(domain, acme, worker):
    job = await domain.submit(acme)
    cuts = 0

    class CutOffTwice(Tasks):
        async def succeed(self, transaction, claim, **result) -> bool:
            nonlocal cuts
            cuts += 1
            if cuts == 1:
                # Before it is done,
                domain.rows("SELECT pg_terminate_backend(%s)", [transaction.info.backend_pid])
            written = await super().succeed(transaction, claim, **result)
            if cuts == 2:
                # and after it was, with the answer lost.
                raise psycopg.OperationalError
            return written

    async def look(work: Work) -> Outcome:
        return DONE

    async with worker.running(look, kind_of_tasks=CutOffTwice):
        ended = await until_ended(domain, acme, job)
    assert cuts == 3
    assert (ended.state, ended.results[0].attempts) == (JobState.SUCCEEDED, 1)
    assert domain.rows("SELECT attempt FROM wharf.results") == [{"attempt": 1}]


async def test_an_end_waits_for_a_database_that_is_away(domain, acme, worker):
    job = await domain.submit(acme)
    went, back = asyncio.Event(), asyncio.Event()

    async def look(work: Work) -> Outcome:
        went.set()
        await back.wait()
        return DONE

    async with worker.running(look):
        await went.wait()
        with psycopg.connect(domain.installation.postgres.url(), autocommit=True) as connection:
            name = domain.installation.database
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            back.set()
            await asyncio.sleep(1)
            assert not worker.counted("succeeded")
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        ended = await until_ended(domain, acme, job)
    assert (ended.state, ended.results[0].attempts) == (JobState.SUCCEEDED, 1)


async def test_a_job_is_finished_though_the_database_went_away_after_the_last_end(domain, acme, worker, monkeypatch):
    """Nothing else finishes it here: no loop mends."""
    job = await domain.submit(acme, inputs=2)
    finish = domain.jobs.finish
    calls = 0

    async def cut_off_once(transaction, job_id):
        nonlocal calls
        calls += 1
        if calls == 1:
            domain.rows("SELECT pg_terminate_backend(%s)", [transaction.info.backend_pid])
        return await finish(transaction, job_id)

    monkeypatch.setattr(domain.jobs, "finish", cut_off_once)

    async def look(work: Work) -> Outcome:
        return DONE

    async with worker.running(look):
        ended = await until_ended(domain, acme, job)
    assert ended.state is JobState.SUCCEEDED
    # The end of the first one leaves it to the last, and the second try of that one's end finds it written.
    assert calls == 2


async def test_a_job_whose_tasks_are_all_in_these_hands_is_finished_by_the_last_end_alone(
    domain, acme, worker, monkeypatch
):
    """Whichever is written last: the ends of two slots come together."""
    job = await domain.submit(acme, inputs=8)
    finish = domain.jobs.finish
    open_then: list[int] = []

    async def watched(transaction, job_id):
        open_then.append(sum(state in ("queued", "running") for state in domain.task_states(job_id)))
        return await finish(transaction, job_id)

    monkeypatch.setattr(domain.jobs, "finish", watched)

    async def look(work: Work) -> Outcome:
        return DONE

    async with worker.running(look, slots=2, prefetch=3):
        assert (await until_ended(domain, acme, job)).state is JobState.SUCCEEDED
    assert open_then == [0]


async def test_a_worker_that_is_asked_to_stop_finishes_what_has_begun_and_gives_back_the_rest_at_once(
    domain, acme, worker, notices
):
    job = await domain.submit(acme, inputs=5)
    go_on = asyncio.Event()
    seen: list[Work] = []

    async def look(work: Work) -> Outcome:
        seen.append(work)
        await go_on.wait()
        return DONE

    async with worker.running(look, slots=2, prefetch=1) as consuming:
        await until(lambda: len(claimed_by(domain, "w1")) == 4 and len(seen) == 2)
        worker.stop.set()
        # Others can have them while this one is still at work.
        with notices.subscribe(tasks_queued(POOL, Priority.INTERACTIVE)) as subscription:
            await until(lambda: len(claimed_by(domain, "w1")) == 2)
            await subscription.wait(2)
        assert not consuming.done()
        go_on.set()
        await consuming
    assert len(seen) == 2
    assert sorted(domain.task_states(job)) == ["queued"] * 3 + ["succeeded"] * 2
    assert domain.rows("SELECT DISTINCT attempt - spared AS spent FROM wharf.tasks WHERE state = 'queued'") == [
        {"spent": 0}
    ]


async def test_a_worker_that_is_asked_to_stop_takes_nothing_more(domain, acme, worker):
    async def look(work: Work) -> Outcome:
        return DONE

    async with worker.running(look) as consuming:
        await asyncio.sleep(0.2)
        worker.stop.set()
        job = await domain.submit(acme)
        worker._notices.tell(tasks_queued(POOL, Priority.INTERACTIVE))
        async with asyncio.timeout(3):
            await consuming
    assert domain.task_states(job) == ["queued"]


async def test_a_worker_that_is_asked_to_stop_waits_for_slow_work_only_so_long_and_gives_it_back(domain, acme, worker):
    job = await domain.submit(acme)
    begun = asyncio.Event()

    async def look(work: Work) -> Outcome:
        begun.set()
        await asyncio.sleep(3600)
        return DONE

    async with worker.running(look, drain_seconds=0.3) as consuming:
        await begun.wait()
        worker.stop.set()
        async with asyncio.timeout(5):
            await consuming
    assert domain.task_states(job) == ["queued"]
    [claim] = await domain.claim()
    assert (claim.attempt, claim.spent) == (2, 1)


async def test_a_worker_that_can_give_nothing_back_finishes_what_has_begun_all_the_same(domain, acme, worker):
    job = await domain.submit(acme, inputs=2)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def look(work: Work) -> Outcome:
        begun.set()
        await go_on.wait()
        return DONE

    class Unlucky(EmbeddedTransport):
        async def give_back(self, deliveries) -> None:
            raise CustodyError("database_unavailable", "The database does not answer.")

    async with worker.running(look, transport=Unlucky) as consuming:
        await begun.wait()
        await until(lambda: len(claimed_by(domain, "w1")) == 2)
        worker.stop.set()
        await asyncio.sleep(0.1)
        go_on.set()
        await consuming
    assert sorted(domain.task_states(job)) == ["running", "succeeded"]


async def test_two_that_want_the_same_are_looked_at_once(domain, acme, worker):
    [file] = (await domain.keep(acme, b"a picture")).files
    jobs = [await domain.submit_on(acme, [file.id] * 3, cache=True) for _ in range(2)]
    seen: list[Work] = []

    async def look(work: Work) -> Outcome:
        seen.append(work)
        await until(lambda: domain.rows("SELECT id FROM wharf.tasks WHERE not_before > now()") != [])
        return DONE

    async with worker.running(look, slots=4, kind_of_tasks=CACHING):
        ended = [await until_ended(domain, acme, job) for job in jobs]
    assert len(seen) == 1
    assert [job.state for job in ended] == [JobState.SUCCEEDED] * 2
    assert sorted(result.cached for job in ended for result in job.results) == [False] + [True] * 5
    assert [worker.cached(outcome) for outcome in ("miss", "twin")] == [1, 5]


async def test_where_the_first_of_two_that_want_the_same_fails_the_second_is_looked_at_at_once(domain, acme, worker):
    [file] = (await domain.keep(acme, b"a picture")).files
    jobs = [await domain.submit_on(acme, [file.id], cache=True) for _ in range(2)]
    outcomes = [Failed("inference_failed", "It does not work."), DONE]

    async def look(work: Work) -> Outcome:
        return outcomes.pop(0)

    async with worker.running(look, slots=2, kind_of_tasks=CACHING):
        async with asyncio.timeout(10):
            ended = [await until_ended(domain, acme, job) for job in jobs]
    assert {job.state for job in ended} == {JobState.SUCCEEDED, JobState.FAILED}
    assert outcomes == []


async def test_an_interactive_picture_waits_for_what_runs_and_for_nothing_else(domain, acme, worker):
    batch = await domain.submit(acme, inputs=40, priority=Priority.BATCH)
    order: list[UUID] = []
    running = 0

    async def look(work: Work) -> Outcome:
        nonlocal running
        running += 1
        order.append(work.task)
        await asyncio.sleep(0.05)
        running -= 1
        return DONE

    async with worker.running(look, slots=2, prefetch=3):
        await until(lambda: len(claimed_by(domain, "w1")) == 8)
        for _ in range(3):
            interactive = await domain.submit(acme)
            worker._notices.tell(tasks_queued(POOL, Priority.INTERACTIVE))
            [row] = await domain.ask("SELECT id FROM wharf.tasks WHERE job_id = %s", [interactive])
            await until(lambda task=row["id"]: task in claimed_by(domain, "w1"))
            claimed = len(order)
            assert (await until_ended(domain, acme, interactive)).state is JobState.SUCCEEDED
            # It began as soon as one of the two slots was free.
            assert order.index(row["id"]) <= claimed + 1
        await domain.cancel(acme, batch)


async def test_a_worker_full_of_batch_pictures_still_takes_interactive_ones_and_no_more_batch_ones(
    domain, acme, worker
):
    await domain.submit(acme, inputs=10, priority=Priority.BATCH)
    go_on = asyncio.Event()

    async def look(work: Work) -> Outcome:
        await go_on.wait()
        return DONE

    async with worker.running(look, slots=1, prefetch=1):
        await until(lambda: len(claimed_by(domain, "w1")) == 2)
        await domain.submit(acme, inputs=10)
        worker._notices.tell(tasks_queued(POOL, Priority.INTERACTIVE))
        await until(lambda: len(claimed_by(domain, "w1")) == 4)
        await asyncio.sleep(0.3)
        held = await domain.ask("SELECT class, count(*) FROM wharf.tasks WHERE state = 'running' GROUP BY class")
        assert {row["class"]: row["count"] for row in held} == {"interactive": 2, "batch": 2}
        go_on.set()


async def test_what_a_worker_died_of_perhaps_runs_alone_and_what_else_was_held_goes_back(domain, acme, worker):
    jobs = [await domain.submit(acme) for _ in range(6)]
    suspects = {claim.task_id for claim in await domain.claim(2, worker="dead")}
    await domain.expire_leases("dead")
    async with domain.worker.transaction() as transaction:
        await domain.tasks.requeue_expired(transaction)
    running: set[UUID] = set()
    with_suspects: list[tuple[set[UUID], list[UUID]]] = []

    async def look(work: Work) -> Outcome:
        running.add(work.task)
        if work.task in suspects:
            await asyncio.sleep(0.1)
            with_suspects.append((set(running), claimed_by(domain, "w1")))
        await asyncio.sleep(0.02)
        running.discard(work.task)
        return DONE

    async with worker.running(look, slots=2, prefetch=2):
        ended = [await until_ended(domain, acme, job) for job in jobs]
    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    assert {frozenset(together) for together, _ in with_suspects} == {frozenset({task}) for task in suspects}
    # Nothing else would have been lost with it.
    assert all(held == list(together) for together, held in with_suspects)
    # Only the death itself has cost an attempt.
    assert sorted(job.results[0].attempts for job in ended) == [1, 1, 1, 1, 2, 2]


async def test_a_picture_that_takes_its_worker_along_fails_and_costs_its_neighbours_one_attempt_at_most(
    domain, acme, worker
):
    """The worker dies of one picture, again and again, with others in its hands each time."""
    jobs = [await domain.submit(acme) for _ in range(6)]
    [row] = domain.rows("SELECT id FROM wharf.tasks WHERE job_id = %s", [jobs[2]])
    poison = row["id"]
    reconciler = Reconciler(domain.worker, domain.tasks, domain.jobs, worker._notices, every_seconds=1)
    deaths = 0
    dying = asyncio.Event()

    async def look(work: Work) -> Outcome:
        if work.task == poison:
            dying.set()
            await asyncio.sleep(3600)
        await asyncio.sleep(0.01)
        return DONE

    while not (await domain.get(acme, jobs[2])).state.ended:
        dying.clear()
        victim = Worker(domain, worker._notices)
        async with victim.running(look, slots=2, prefetch=1), asyncio.timeout(10):
            await dying.wait()
            await victim.die()
        deaths += 1
        await domain.expire_leases()
        await reconciler.run_once()
    assert deaths == 3

    async def well(work: Work) -> Outcome:
        return DONE

    async with worker.running(well):
        ended = [await until_ended(domain, acme, job) for job in jobs]
    states = [job.state for job in ended]
    assert states == [JobState.SUCCEEDED] * 2 + [JobState.FAILED] + [JobState.SUCCEEDED] * 3
    assert ended[2].results[0].error.code == "worker_lost"
    assert max(job.results[0].attempts for job in ended if job.state is JobState.SUCCEEDED) <= 2


def test_pauses_between_tries_double_up_to_a_minute():
    for spent, seconds in [(1, 1), (2, 2), (4, 8), (7, 60), (50, 60)]:
        pauses = [backoff_seconds(spent) for _ in range(200)]
        assert seconds / 2 <= min(pauses) < max(pauses) <= seconds * 1.5


async def until_ended(domain: Domain, tenant, job):
    for _ in range(750):
        found = await domain.get(tenant, job)
        if found.state.ended:
            return found
        await asyncio.sleep(0.02)
    raise TimeoutError(f"job {job} is still {found.state}")


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("it did not come true")


def claimed_by(domain: Domain, worker: str) -> list:
    found = domain.rows("SELECT id FROM wharf.tasks WHERE state = 'running' AND worker = %s ORDER BY id", [worker])
    return [row["id"] for row in found]
