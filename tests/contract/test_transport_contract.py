"""What every transport promises, whatever carries the tasks. A new transport brings a harness and joins `HARNESSES`."""

import asyncio
import random
import time
from collections import Counter

import pytest

from custody.cache import Computation
from custody.ids import new_id
from custody.tasks import Tasks
from custody.transport import Delivery, Transport
from custody.wire import JobState, Priority
from tests.contract.harness.amqp import AmqpHarness
from tests.contract.harness.embedded import EmbeddedHarness
from tests.support.domain import MODEL, Domain

pytestmark = pytest.mark.postgres

HARNESSES = [
    pytest.param(lambda domain, _: EmbeddedHarness(domain), id="embedded"),
    pytest.param(lambda domain, request: AmqpHarness(domain, request.getfixturevalue("amqp_url")), id="amqp"),
]

PATIENCE_SECONDS = 10.0
"""Until a task that is due must have been delivered."""

QUIET_SECONDS = 0.3
"""How long a worker listens to find that nothing comes."""


@pytest.fixture
def domain(installation, api_database, worker_database):
    return Domain(installation, api_database, worker_database)


@pytest.fixture(params=HARNESSES)
async def transports(request, domain):
    async with request.param(domain, request) as harness:
        yield harness


@pytest.fixture
def tenant(domain):
    return domain.add_tenant("acme")


async def test_every_task_is_delivered_with_all_that_a_worker_must_know(domain, transports, tenant):
    kept = await domain.keep(tenant, b"a picture")
    job = await domain.submit_on(tenant, [kept.files[0].id] * 25)
    await transports.announce()
    deliveries = await receive(await transports.connect("w1"), 25)
    claims = [delivery.claim for delivery in deliveries]
    assert {str(claim.task_id) for claim in claims} == task_ids(domain, job)
    for claim in claims:
        assert (claim.job_id, claim.tenant_id, claim.attempt, claim.spent) == (job, tenant, 1, 1)
        assert (domain.volume.root / claim.path).read_bytes() == b"a picture"
        assert (claim.media_type, claim.orientation) == ("image/png", 1)
        assert claim.queue_ms >= 0


async def test_no_more_are_delivered_than_were_asked_for(domain, transports, tenant):
    await domain.submit(tenant, inputs=5)
    await transports.announce()
    transport = await transports.connect("w1")
    received = 0
    while received < 5:
        found = await transport.receive(Priority.INTERACTIVE, 2, PATIENCE_SECONDS)
        assert 1 <= len(found) <= 2
        received += len(found)


async def test_no_two_workers_hold_one_task_at_once(domain, transports, tenant):
    jobs = [await domain.submit(tenant, inputs=20) for _ in range(3)]
    await transports.announce()
    crowd = [await transports.connect(f"w{number}") for number in range(5)]

    async def take_all(transport: Transport) -> list[Delivery]:
        taken: list[Delivery] = []
        while found := await transport.receive(Priority.INTERACTIVE, 3, QUIET_SECONDS):
            taken += found
        return taken

    taken = [delivery for one in await asyncio.gather(*map(take_all, crowd)) for delivery in one]
    counts = Counter(str(delivery.claim.task_id) for delivery in taken)
    assert set(counts) == set.union(*(task_ids(domain, job) for job in jobs))
    assert set(counts.values()) == {1}


async def test_of_two_that_want_the_same_one_is_delivered_and_the_other_where_it_fails(domain, transports, tenant):
    domain.tasks = Tasks(lease_seconds=30, max_attempts=3, computes=Computation(bytes.fromhex(MODEL.digest), "1"))
    [file] = (await domain.keep(tenant, b"a picture")).files
    jobs = [await domain.submit_on(tenant, [file.id], cache=True) for _ in range(2)]
    await transports.announce()
    transport = await transports.connect("w1")
    [first] = await receive(transport, 1)
    assert await transport.receive(Priority.INTERACTIVE, 4, QUIET_SECONDS) == []
    await domain.fail(first.claim)
    await transport.settle(first)
    await transports.announce()
    [second] = await receive(transport, 1)
    assert {first.claim.job_id, second.claim.job_id} == set(jobs)


async def test_what_is_in_the_cache_is_delivered_to_nobody_and_its_job_ends(domain, transports, tenant):
    domain.tasks = Tasks(lease_seconds=30, max_attempts=3, computes=Computation(bytes.fromhex(MODEL.digest), "1"))
    [file] = (await domain.keep(tenant, b"a picture")).files
    jobs = [await domain.submit_on(tenant, [file.id], cache=True) for _ in range(2)]
    transport = await transports.connect("w1")
    await transports.announce()
    [first] = await receive(transport, 1)
    await domain.end(first.claim)
    await transport.settle(first)
    # Had it waited for its twin, it would be queued once more.
    await domain.change("UPDATE wharf.tasks SET not_before = now()")
    behind = await domain.submit(tenant)
    await transports.announce()
    [second] = await receive(transport, 1)
    assert second.claim.job_id == behind
    assert [(await domain.get(tenant, job)).state for job in jobs] == [JobState.SUCCEEDED] * 2


async def test_each_class_is_received_by_itself_the_older_before_the_newer(domain, transports, tenant):
    jobs = {
        priority: [await domain.submit(tenant, inputs=2, priority=priority) for _ in range(3)] for priority in Priority
    }
    await transports.announce()
    transport = await transports.connect("w1")
    for priority in (Priority.BATCH, Priority.INTERACTIVE):
        received = await receive(transport, 6, priority)
        assert [delivery.claim.job_id for delivery in received] == [job for job in jobs[priority] for _ in range(2)]


async def test_both_classes_are_waited_for_at_once(domain, transports, tenant):
    transport = await transports.connect("w1")
    async with asyncio.TaskGroup() as group:
        waiting = {
            priority: group.create_task(timed_receive(transport, wait_seconds=4.5, priority=priority))
            for priority in Priority
        }
        await asyncio.sleep(QUIET_SECONDS)
        interactive = await domain.submit(tenant)
        await transports.announce()
        await asyncio.wait([waiting[Priority.INTERACTIVE]])
        assert not waiting[Priority.BATCH].done()
        batch = await domain.submit(tenant, priority=Priority.BATCH)
        await transports.announce()
    for priority, job in ((Priority.INTERACTIVE, interactive), (Priority.BATCH, batch)):
        [delivery] = waiting[priority].result()[0]
        assert delivery.claim.job_id == job


@pytest.mark.parametrize("priority", Priority)
async def test_tenants_take_turns_however_much_one_of_them_has(domain, transports, tenant, priority):
    large = await domain.submit(tenant, inputs=60, priority=priority)
    small = [await domain.submit(domain.add_tenant(name), inputs=3, priority=priority) for name in ("ito", "mora")]
    await transports.announce()
    transport = await transports.connect("w1")
    received = []
    for _ in range(4):
        received += await receive(transport, 3, priority)
    came = Counter(delivery.claim.job_id for delivery in received)
    assert [came[job] for job in small] == [3, 3]
    assert came[large] == 6


async def test_a_pool_gets_its_own_tasks_only(domain, transports, tenant):
    await domain.submit(tenant, pool="other")
    job = await domain.submit(tenant)
    await transports.announce("other")
    await transports.announce()
    transport = await transports.connect("w1")
    assert [delivery.claim.job_id for delivery in await receive(transport, 1)] == [job]
    assert not await transport.receive(Priority.INTERACTIVE, 1, QUIET_SECONDS)


async def test_a_retried_task_comes_again_when_it_is_due_and_not_before(domain, transports, tenant):
    await domain.submit(tenant)
    await transports.announce()
    transport = await transports.connect("w1")
    [delivery] = await receive(transport, 1)
    assert await domain.retry(delivery.claim, after_seconds=0.8) == "queued"
    retried = time.monotonic()
    await transport.settle(delivery)
    assert not await transport.receive(Priority.INTERACTIVE, 1, QUIET_SECONDS)
    [again] = await receive(transport, 1)
    assert time.monotonic() - retried > 0.7
    assert (again.claim.task_id, again.claim.attempt, again.claim.spent) == (delivery.claim.task_id, 2, 2)


async def test_a_task_that_is_queued_again_before_its_delivery_is_settled_comes_again(domain, transports, tenant):
    await domain.submit(tenant)
    await transports.announce()
    transport = await transports.connect("w1")
    [delivery] = await receive(transport, 1)
    await domain.retry(delivery.claim, 0)
    await transports.announce()
    await asyncio.sleep(QUIET_SECONDS)
    await transport.settle(delivery)
    [again] = await receive(transport, 1)
    assert (again.claim.task_id, again.claim.attempt) == (delivery.claim.task_id, 2)


@pytest.mark.parametrize("how", ["settled", "given back"])
async def test_a_task_whose_lease_has_run_out_comes_again_to_its_worker_that_lives(domain, transports, tenant, how):
    await domain.submit(tenant)
    await transports.announce()
    transport = await transports.connect("w1")
    [delivery] = await receive(transport, 1)
    await domain.expire_leases("w1")
    await transports.reconcile()
    await transports.announce()
    await asyncio.sleep(QUIET_SECONDS)
    if how == "settled":
        assert not await domain.succeed(delivery.claim)
        await transport.settle(delivery)
    else:
        await transport.give_back([delivery])
    [again] = await receive(transport, 1)
    assert (again.claim.task_id, again.claim.attempt) == (delivery.claim.task_id, 2)


async def test_a_cancelled_jobs_tasks_are_not_delivered(domain, transports, tenant):
    followed, marked = await domain.submit(tenant, inputs=2), await domain.submit(tenant, inputs=2)
    await transports.announce()
    await domain.cancel(tenant, followed)
    # The canceller dies before the tasks have followed their job.
    async with domain.api.transaction(tenant) as transaction:
        assert await domain.jobs.cancel(transaction, marked)
    transport = await transports.connect("w1")
    assert not await transport.receive(Priority.INTERACTIVE, 4, QUIET_SECONDS)
    await transports.reconcile()
    assert not await transport.receive(Priority.INTERACTIVE, 4, QUIET_SECONDS)
    assert domain.task_states(marked) == ["cancelled", "cancelled"]


async def test_the_end_of_a_cancelled_delivery_changes_nothing(domain, transports, tenant):
    job = await domain.submit(tenant)
    await transports.announce()
    transport = await transports.connect("w1")
    [delivery] = await receive(transport, 1)
    await domain.cancel(tenant, job)
    assert not await domain.succeed(delivery.claim)
    await transport.settle(delivery)
    await transport.give_back([delivery])
    assert (await domain.get(tenant, job)).state is JobState.CANCELLED
    assert domain.task_states(job) == ["cancelled"]
    assert not await transport.receive(Priority.INTERACTIVE, 1, QUIET_SECONDS)


async def test_a_dead_workers_task_comes_to_another_and_its_late_words_change_nothing(domain, transports, tenant):
    job = await domain.submit(tenant)
    await transports.announce()
    dead, living = await transports.connect("dead"), await transports.connect("living")
    [lost] = await receive(dead, 1)
    await transports.abandon("dead")
    [taken] = await receive(living, 1)
    assert (taken.claim.task_id, taken.claim.attempt) == (lost.claim.task_id, lost.claim.attempt + 1)

    assert not await domain.succeed(lost.claim)
    assert not await domain.fail(lost.claim)
    assert await domain.retry(lost.claim) is None
    await dead.settle(lost)
    await dead.give_back([lost])
    assert not await domain.finish(job)
    assert domain.task_states(job) == ["running"]

    assert await domain.end(taken.claim)
    await living.settle(taken)
    finished = await domain.get(tenant, job)
    assert finished.state is JobState.SUCCEEDED
    assert finished.results[0].attempts == 2
    assert stored(domain, job) == [2]


async def test_what_is_given_back_comes_again_and_the_attempt_does_not_count(domain, transports, tenant):
    job = await domain.submit(tenant, inputs=2)
    await transports.announce()
    first = await transports.connect("w0")
    for number in range(1, 6):
        deliveries = await receive(first, 2)
        assert [delivery.claim.spent for delivery in deliveries] == [1, 1]
        await first.give_back(deliveries)
        first = await transports.connect(f"w{number}")
    for delivery in await receive(first, 2):
        await domain.end(delivery.claim)
    finished = await domain.get(tenant, job)
    assert finished.state is JobState.SUCCEEDED
    assert [result.attempts for result in finished.results] == [1, 1]


async def test_what_is_given_back_wakes_a_worker_that_waits(domain, transports, tenant):
    await domain.submit(tenant)
    await transports.announce()
    leaving, waiting = await transports.connect("leaving"), await transports.connect("waiting")
    deliveries = await receive(leaving, 1)
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(timed_receive(waiting, wait_seconds=4.0))
        await asyncio.sleep(QUIET_SECONDS)
        await leaving.give_back(deliveries)
    received, seconds = receiving.result()
    assert [delivery.claim.task_id for delivery in received] == [deliveries[0].claim.task_id]
    assert seconds < 2.5


async def test_an_idle_worker_is_given_nothing_after_the_time_it_would_wait(transports):
    received, seconds = await timed_receive(await transports.connect("w1"), wait_seconds=0.5)
    assert not received
    assert 0.4 < seconds < 3


async def test_a_waiting_worker_is_woken_by_a_submission(domain, transports, tenant):
    transport = await transports.connect("w1")
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(timed_receive(transport, wait_seconds=4.5))
        await asyncio.sleep(1)
        job = await domain.submit(tenant)
        await transports.announce()
    received, seconds = receiving.result()
    assert [delivery.claim.job_id for delivery in received] == [job]
    assert seconds < 3


async def test_a_task_that_kills_every_worker_fails_with_a_code_and_ends_its_job(domain, transports, tenant):
    job = await domain.submit(tenant, inputs=2)
    await transports.announce()
    transport = await transports.connect("survivor")
    poison, harmless = await receive(transport, 2)
    await domain.end(harmless.claim)
    await transport.settle(harmless)
    await transport.give_back([poison])
    for attempt in range(1, 4):
        assert (await domain.get(tenant, job)).state is JobState.RUNNING
        [delivery] = await receive(await transports.connect(f"w{attempt}"), 1)
        assert (delivery.claim.task_id, delivery.claim.spent) == (poison.claim.task_id, attempt)
        await transports.abandon(f"w{attempt}")
    assert not await transport.receive(Priority.INTERACTIVE, 1, QUIET_SECONDS)
    failed = await domain.get(tenant, job)
    assert failed.state is JobState.FAILED
    assert (failed.progress.done, failed.progress.failed) == (1, 1)
    [result] = [result for result in failed.results if result.state == "failed"]
    assert (result.error.code, result.attempts) == ("worker_lost", 3)


async def test_of_many_ends_with_one_claim_the_first_is_stored_and_no_other(domain, transports, tenant):
    await domain.submit(tenant, inputs=10)
    await transports.announce()
    for delivery in await receive(await transports.connect("w1"), 10):
        ends = [domain.succeed, domain.fail] * 4
        random.shuffle(ends)
        assert sum(await asyncio.gather(*(end(delivery.claim) for end in ends))) == 1
        [task] = domain.rows("SELECT state FROM wharf.tasks WHERE id = %s", [delivery.claim.task_id])
        results = domain.rows("SELECT attempt FROM wharf.results WHERE task_id = %s", [delivery.claim.task_id])
        assert len(results) == (task["state"] == "succeeded")


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_befalls_the_workers_every_job_ends_and_no_task_twice(domain, transports, tenant, seed):
    crowd = Crowd(domain, transports, seed)
    jobs = [
        await domain.submit(tenant, inputs=crowd.chance.randint(1, 6), priority=crowd.chance.choice(list(Priority)))
        for _ in range(12)
    ]
    await transports.announce()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(crowd.work())
        for job in crowd.chance.sample(jobs, 2):
            group.create_task(crowd.cancel_some_time(tenant, job))
        while domain.rows("SELECT id FROM wharf.jobs WHERE state = 'open' OR done IS NULL"):
            await asyncio.sleep(0.1)
            await transports.reconcile()
        crowd.over.set()

    assert max(crowd.stored.values(), default=0) == 1
    assert not domain.rows(
        """
        SELECT t.id FROM wharf.tasks t LEFT JOIN wharf.results r ON r.task_id = t.id
        WHERE t.state IN ('queued', 'running') OR (t.state = 'succeeded') <> (r.task_id IS NOT NULL)
           OR r.attempt <> t.attempt
        """
    )
    assert not domain.rows(
        """
        SELECT j.id FROM wharf.jobs j JOIN wharf.tasks t ON t.job_id = j.id GROUP BY j.id
        HAVING j.done <> count(*) FILTER (WHERE t.state = 'succeeded')
            OR j.failed <> count(*) FILTER (WHERE t.state = 'failed')
            OR j.state = 'succeeded' AND j.done <> j.total
        """
    )


class Crowd:
    """Workers that do what chance tells them with each task, and now and then come back late with an old one."""

    def __init__(self, domain: Domain, transports, seed: int) -> None:
        self.chance = random.Random(seed)
        self.over = asyncio.Event()
        self.stored: Counter[str] = Counter()
        self._domain = domain
        self._transports = transports
        self._stale: list[Delivery] = []

    async def work(self) -> None:
        name, transport = await self._start()
        while not self.over.is_set():
            priority = self.chance.choice(list(Priority))
            for delivery in await transport.receive(priority, self.chance.randint(1, 4), 0.1):
                match self.chance.choices(["succeed", "fail", "retry", "give back", "die"], [10, 2, 2, 2, 3])[0]:
                    case "succeed":
                        await self._succeed(delivery)
                        await transport.settle(delivery)
                    case "fail":
                        self.stored[str(delivery.claim.task_id)] += await self._domain.fail(delivery.claim)
                        await self._domain.finish(delivery.claim.job_id)
                        await transport.settle(delivery)
                    case "retry":
                        await self._domain.retry(delivery.claim, self.chance.choice([0, 0.05]))
                        await self._domain.finish(delivery.claim.job_id)
                        await transport.settle(delivery)
                    case "give back":
                        await transport.give_back([delivery])
                    case "die":
                        self._stale.append(delivery)
                        await self._transports.abandon(name)
                        name, transport = await self._start()
                        break
            if self._stale and self.chance.random() < 0.3:
                await self._succeed(self.chance.choice(self._stale))

    async def cancel_some_time(self, tenant, job) -> None:
        await asyncio.sleep(self.chance.uniform(0, 0.5))
        await self._domain.cancel(tenant, job)

    async def _start(self) -> tuple[str, Transport]:
        name = str(new_id())
        return name, await self._transports.connect(name)

    async def _succeed(self, delivery: Delivery) -> None:
        self.stored[str(delivery.claim.task_id)] += await self._domain.succeed(delivery.claim)
        await self._domain.finish(delivery.claim.job_id)


async def receive(transport: Transport, count: int, priority: Priority = Priority.INTERACTIVE) -> list[Delivery]:
    """So many deliveries, however many calls they take."""
    received: list[Delivery] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(received) < count:
            received += await transport.receive(priority, count - len(received), 0.5)
    return received


async def timed_receive(
    transport: Transport, *, wait_seconds: float, priority: Priority = Priority.INTERACTIVE
) -> tuple[list[Delivery], float]:
    began = time.monotonic()
    received = await transport.receive(priority, 1, wait_seconds)
    return list(received), time.monotonic() - began


def task_ids(domain: Domain, job) -> set[str]:
    return {str(row["id"]) for row in domain.rows("SELECT id FROM wharf.tasks WHERE job_id = %s", [job])}


def stored(domain: Domain, job) -> list[int]:
    """The attempts whose results are stored."""
    found = domain.rows(
        "SELECT r.attempt FROM wharf.results r JOIN wharf.tasks t ON t.id = r.task_id WHERE t.job_id = %s", [job]
    )
    return [row["attempt"] for row in found]
