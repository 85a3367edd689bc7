"""Pools: who works on them, who may stop them, and how much may wait in them."""

import asyncio
import contextlib
from datetime import UTC, datetime
from uuid import UUID

import pytest

from broker import backlog
from broker.backlog import Backlog
from broker.metrics import BrokerMetrics
from custody import models, pools
from custody.database import Database
from custody.errors import CustodyError
from custody.ids import new_id
from custody.wire import File, Parameters, PoolState, Priority
from tests.support.domain import POOL, Domain

pytestmark = pytest.mark.postgres

FILE = File(
    id=new_id(),
    sha256="ab" * 32,
    size=1,
    media_type="image/png",
    width=1,
    height=1,
    orientation=1,
    filename=None,
    created_at=datetime.now(UTC),
    expires_at=None,
)


@pytest.fixture
def operator(domain: Domain) -> UUID:
    tenant = domain.add_tenant("operator")
    domain.rows("UPDATE wharf.tenants SET operator = true WHERE id = %s", [tenant])
    return tenant


async def counted(domain: Domain, tenant: UUID, count, most: int = 1000, pool: str = POOL) -> int:
    async with domain.api.transaction(tenant) as transaction:
        return await count(transaction, pool, most=most)


async def listed(domain: Domain, tenant: UUID) -> dict:
    limits = Backlog(pool_limit=1000, tenant_limit=1000)
    async with domain.api.transaction(tenant) as transaction:
        return {pool.name: pool for pool in await pools.list_pools(transaction, limits.waiting)}


async def set_state(domain: Domain, tenant: UUID, state: PoolState, pool: str = POOL) -> None:
    async with domain.api.transaction(tenant) as transaction:
        await pools.set_state(transaction, pool, state)


# What is there


async def test_a_pool_tells_what_waits_what_runs_and_who_works_on_it(domain, acme, globex):
    domain.add_worker("w1")
    domain.add_worker("w2")
    domain.add_worker("silent")
    domain.add_worker("gone", "birds")
    domain.rows("UPDATE wharf.workers SET seen_at = now() - interval '31 seconds' WHERE name IN ('silent', 'gone')")
    await domain.submit(globex, inputs=5)
    await domain.submit(globex, inputs=2, pool="birds")
    await domain.claim(2)
    found = await listed(domain, acme)
    assert list(found) == ["birds", "digits"]
    birds, digits = found.values()
    assert (digits.state, digits.waiting, digits.running) == (PoolState.ACTIVE, 3, 2)
    assert [(w.name, w.engine, w.model_version, w.slots) for w in digits.workers] == [
        ("w1", "openvino", 1, 2),
        ("w2", "openvino", 1, 2),
    ]
    assert (birds.waiting, birds.running, birds.workers) == (2, 0, [])


async def test_a_backlog_is_what_is_queued_counted_up_to_a_limit(domain, acme, globex):
    await domain.submit(acme, inputs=4)
    await domain.submit(acme, inputs=3, priority=Priority.BATCH)
    await domain.submit(globex, inputs=10)
    await domain.submit(globex, inputs=10, pool="birds")
    await domain.claim(1)
    cancelled = await domain.submit(acme, inputs=5)
    await domain.cancel(acme, cancelled)
    assert await counted(domain, acme, pools.backlog) == await counted(domain, globex, pools.backlog) == 16
    assert await counted(domain, acme, pools.backlog, most=6) == 6
    seen = [await counted(domain, tenant, pools.seen_backlog) for tenant in (acme, globex)]
    assert sum(seen) == 16
    assert set(seen) <= {6, 7, 9, 10}
    assert await counted(domain, acme, pools.seen_backlog, most=2) == 2
    assert await counted(domain, acme, pools.seen_backlog, pool="fish") == 0


# Who may stop it


async def test_the_operator_pauses_drains_and_resumes_a_pool(domain, acme, operator):
    domain.add_worker("w1")
    for state in (PoolState.PAUSED, PoolState.PAUSED, PoolState.DRAINING, PoolState.ACTIVE):
        await set_state(domain, operator, state)
        assert (await listed(domain, acme))[POOL].state is state


async def test_nobody_else_does_and_only_pools_that_are_there_can_be_stopped(domain, acme, operator):
    domain.add_worker("w1")
    for tenant, pool, code in ((acme, POOL, "forbidden"), (acme, "fish", "not_found"), (operator, "fish", "not_found")):
        with pytest.raises(CustodyError) as refused:
            await set_state(domain, tenant, PoolState.PAUSED, pool)
        assert refused.value.code == code
    assert domain.rows("SELECT * FROM wharf.pools") == []


async def test_a_draining_pool_takes_no_jobs_and_a_paused_one_does(domain, acme, operator):
    domain.add_worker("w1")

    async def resolve(name: str | None) -> str:
        async with domain.api.transaction(acme) as transaction:
            return await models.resolve(transaction, name)

    await set_state(domain, operator, PoolState.PAUSED)
    assert await resolve(POOL) == await resolve(None) == POOL
    await set_state(domain, operator, PoolState.DRAINING)
    for name in (POOL, None):
        with pytest.raises(CustodyError) as refused:
            await resolve(name)
        assert (refused.value.code, refused.value.retry_after) == ("pool_draining", pools.DRAINING_SECONDS)
    await set_state(domain, operator, PoolState.ACTIVE)
    assert await resolve(POOL) == POOL


# How much may wait


async def submit(domain: Domain, limits: Backlog, tenant: UUID, inputs: int = 1, pool: str = POOL) -> None:
    async with limits.admission() as admission, domain.api.transaction(tenant) as transaction:
        await admission.admit(transaction, tenant, pool, inputs)
        await asyncio.sleep(0.01)
        await domain.jobs.submit(
            transaction,
            tenant,
            model=pool,
            files=[FILE] * inputs,
            parameters=Parameters(),
            priority=Priority.INTERACTIVE,
            metadata={},
        )


class Away:
    """A database that can be away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.away = False

    def transaction(self):
        if self.away:
            raise CustodyError("database_unavailable", "away")
        return self._database.transaction()


async def becomes(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def refusal(domain: Domain, limits: Backlog, tenant: UUID, inputs: int = 1, pool: str = POOL) -> str | None:
    try:
        await submit(domain, limits, tenant, inputs, pool)
    except CustodyError as error:
        return error.code
    return None


async def test_a_tenants_backlog_is_its_own_and_each_pools_is_apart(domain, acme, globex):
    limits = Backlog(pool_limit=12, tenant_limit=8)
    assert await refusal(domain, limits, acme, 8) is None  # alone within the limit, and nothing waits
    assert await refusal(domain, limits, acme, 1) == "tenant_backlog_full"
    assert await refusal(domain, limits, globex, 5) == "pool_backlog_full"
    assert await refusal(domain, limits, globex, 4) is None
    assert await refusal(domain, limits, globex, 1) == "pool_backlog_full"
    assert await refusal(domain, limits, acme, 8, "birds") is None


async def test_what_waits_in_every_pool_is_a_metric_until_the_database_is_away(domain, acme, globex, monkeypatch):
    monkeypatch.setattr(backlog, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 0.0)
    domain.add_model(POOL)
    limits, metrics = Backlog(pool_limit=100, tenant_limit=100), BrokerMetrics()
    database = Away(domain.api)

    def shown(pool: str) -> float | None:
        return metrics.registry.get_sample_value("wharf_pool_backlog", {"pool": pool})

    watching = asyncio.create_task(limits.watch(database, metrics.tell_backlog))
    try:
        await becomes(lambda: shown(POOL) == 0)
        await submit(domain, limits, acme, 3)
        await submit(domain, limits, globex, 2)
        await becomes(lambda: shown(POOL) == 5)
        database.away = True
        await becomes(lambda: shown(POOL) is None)
        database.away = False
        await becomes(lambda: shown(POOL) == 5)
    finally:
        watching.cancel()


async def test_a_job_larger_than_a_limit_is_not_told_to_come_back(domain, acme):
    for limits in (Backlog(pool_limit=5, tenant_limit=9), Backlog(pool_limit=9, tenant_limit=5)):
        with pytest.raises(CustodyError) as refused:
            await submit(domain, limits, acme, 6)
        assert (refused.value.code, refused.value.retry_after) == ("request_too_large", None)
    assert domain.rows("SELECT id FROM wharf.jobs") == []


async def test_many_submissions_at_once_fill_a_backlog_and_do_not_pass_it(domain, acme, monkeypatch):
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 60)
    limits = Backlog(pool_limit=1000, tenant_limit=50)
    outcomes = await asyncio.gather(*(refusal(domain, limits, acme) for _ in range(100)))
    assert (outcomes.count(None), outcomes.count("tenant_backlog_full")) == (50, 50)
    assert len(domain.rows("SELECT id FROM wharf.tasks")) == 50


async def test_a_submission_that_commits_while_others_count_is_counted(domain, acme, monkeypatch):
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 0)
    monkeypatch.setattr(backlog, "COUNT_AGAIN_FACTOR", 0)
    limits = Backlog(pool_limit=100, tenant_limit=10)
    real = pools.seen_backlog

    async def too_early(*arguments, **named):
        found = await real(*arguments, **named)
        go_on.set()
        await first
        return found

    admitted, go_on = asyncio.Event(), asyncio.Event()

    async def submit_slowly() -> None:
        async with limits.admission() as admission, domain.api.transaction(acme) as transaction:
            await admission.admit(transaction, acme, POOL, 6)
            admitted.set()
            await go_on.wait()

    first = asyncio.create_task(submit_slowly())
    await admitted.wait()
    monkeypatch.setattr(pools, "seen_backlog", too_early)
    assert await refusal(domain, limits, acme, 5) == "tenant_backlog_full"


async def test_submissions_are_counted_before_they_commit_however_often_that_is(domain, acme, monkeypatch):
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 0)
    monkeypatch.setattr(backlog, "COUNT_AGAIN_FACTOR", 0)
    limits = Backlog(pool_limit=1000, tenant_limit=50)
    outcomes = await asyncio.gather(*(refusal(domain, limits, acme) for _ in range(100)))
    assert len(domain.rows("SELECT id FROM wharf.tasks")) == outcomes.count(None) <= 50
    assert await refusal(domain, limits, acme, 50 - outcomes.count(None) + 1) == "tenant_backlog_full"


async def test_a_submission_that_came_to_nothing_takes_no_room(domain, acme):
    limits = Backlog(pool_limit=10, tenant_limit=10)
    assert await refusal(domain, limits, acme, 2) is None
    for _ in range(3):
        with contextlib.suppress(RuntimeError):
            async with limits.admission() as admission, domain.api.transaction(acme) as transaction:
                await admission.admit(transaction, acme, POOL, 8)
                raise RuntimeError("the file was not there")
    assert await refusal(domain, limits, acme, 8) is None


async def test_what_others_submitted_and_workers_took_shows_within_a_second(domain, acme, monkeypatch):
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(backlog, "COUNT_AGAIN_FACTOR", 0)
    limits, others = (Backlog(pool_limit=10, tenant_limit=10) for _ in range(2))
    assert await refusal(domain, limits, acme) is None
    assert await refusal(domain, others, acme, 9) is None
    await asyncio.sleep(0.15)
    assert await refusal(domain, limits, acme) == "tenant_backlog_full"
    await domain.claim(3)
    await asyncio.sleep(0.15)
    assert await refusal(domain, limits, acme, 3) is None
    assert await refusal(domain, limits, acme, 1) == "tenant_backlog_full"


async def test_nobody_waits_for_a_count_that_another_makes_unless_it_is_the_first(domain, acme, monkeypatch):
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 0)
    monkeypatch.setattr(backlog, "COUNT_AGAIN_FACTOR", 0)
    limits = Backlog(pool_limit=100, tenant_limit=10)
    assert await refusal(domain, limits, acme, 4) is None
    counting = asyncio.Event()

    async def for_ever(*_, **__):
        counting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(pools, "seen_backlog", for_ever)
    slow = asyncio.create_task(submit(domain, limits, acme))
    await counting.wait()
    async with asyncio.timeout(5):
        assert await refusal(domain, limits, acme, 6) is None
        assert await refusal(domain, limits, acme, 1) == "tenant_backlog_full"
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)


async def test_what_waits_is_counted_once_a_second_however_many_submit(domain, acme, monkeypatch):
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 60)
    counts = 0
    real = pools.backlog

    async def counting(*arguments, **named):
        nonlocal counts
        counts += 1
        return await real(*arguments, **named)

    monkeypatch.setattr(pools, "backlog", counting)
    limits = Backlog(pool_limit=1000, tenant_limit=1000)
    await asyncio.gather(*(submit(domain, limits, acme) for _ in range(40)))
    async with domain.api.transaction(acme) as transaction:
        assert await limits.waiting(transaction, POOL) == 40
    assert counts == 1


async def test_lines_that_nobody_stands_in_are_forgotten(domain, acme, monkeypatch):
    monkeypatch.setattr(backlog, "COUNT_AGAIN_SECONDS", 0)
    monkeypatch.setattr(backlog, "COUNT_AGAIN_FACTOR", 0)
    monkeypatch.setattr(backlog, "FORGET_SECONDS", 0)
    limits = Backlog(pool_limit=1000, tenant_limit=1000)
    for number in range(5):
        await submit(domain, limits, acme, pool=f"pool-{number}")
    assert len(limits._lines) <= 2


@pytest.mark.parametrize(
    "query",
    ["SELECT wharf.pool_backlog('digits', 100)", "SELECT wharf.pool_running('digits')", pools.SEEN],
    ids=["of all", "running", "of a tenant"],
)
async def test_a_backlog_is_counted_in_an_index_and_not_in_the_table(domain, acme, query):
    """However many tasks have ended: a sequential scan would read them all, once a second."""
    await domain.submit(acme, inputs=20_000)
    domain.rows("UPDATE wharf.tasks SET state = 'cancelled', ended_at = now() WHERE input > 20")
    await domain.submit(acme, inputs=20, pool="birds")
    await domain.claim(5)
    domain.rows("VACUUM ANALYZE wharf.tasks")
    async with domain.api.transaction(acme) as transaction:
        await transaction.execute(query, {"pool": POOL, "most": 1000})
        found = await transaction.execute(
            "SELECT seq_scan, idx_scan FROM pg_stat_xact_all_tables WHERE relname = 'tasks'"
        )
        scans = await found.fetchone()
    assert scans["seq_scan"] == 0
    assert scans["idx_scan"] > 0
