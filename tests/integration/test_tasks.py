"""Tasks: claim, lease and end, each as one conditional statement, and the indexes these statements rely on."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from custody import releases
from custody.database import Database
from custody.jobs import Jobs
from custody.tasks import Tasks
from custody.wire import Priority
from tests.support.domain import DETECTIONS, MODEL, POOL, TIMINGS

pytestmark = pytest.mark.postgres


async def test_many_who_claim_at_once_share_the_tasks_and_none_is_claimed_twice(domain, acme):
    await domain.submit(acme, inputs=100)

    async def claim_all(worker: str) -> list:
        claimed = []
        while claims := await domain.claim(3, worker=worker):
            claimed += claims
        return claimed

    claimed = [claim for one in await asyncio.gather(*(claim_all(f"w{n}") for n in range(8))) for claim in one]
    assert set(Counter(claim.task_id for claim in claimed).values()) == {1}
    assert len(claimed) == 100


async def test_a_claim_passes_by_rows_that_others_have_locked(domain, acme):
    await domain.submit(acme, inputs=4)
    async with domain.worker.transaction() as transaction:
        first = await domain.tasks.claim_next(
            transaction, pool=POOL, priority=Priority.INTERACTIVE, worker="slow", limit=2
        )
        async with asyncio.timeout(5):
            second = await domain.claim(4)
    assert len(first.claims) == len(second) == 2
    assert not {claim.task_id for claim in first.claims} & {claim.task_id for claim in second}


async def test_a_lease_lasts_as_long_as_was_set_and_an_extension_begins_anew(domain, acme):
    await domain.submit(acme, inputs=2)
    claims = await domain.claim(2)
    assert leases(domain) == pytest.approx([30, 30], abs=5)
    hour = Tasks(lease_seconds=3600)
    async with domain.worker.transaction() as transaction:
        assert await hour.extend(transaction, claims) == {claim.task_id for claim in claims}
    assert leases(domain) == pytest.approx([3600, 3600], abs=5)


async def test_an_extension_tells_what_was_taken_over_cancelled_or_ended(domain, acme):
    lost, ended, cancelled, held = [await domain.submit(acme) for _ in range(4)]
    [silent] = await domain.claim(worker="silent")
    await release(domain, silent)
    await domain.claim(worker="other")
    claims = {claim.job_id: claim for claim in [silent, *await domain.claim(3)]}
    assert silent.job_id == lost
    await domain.end(claims[ended])
    async with domain.api.transaction(acme) as transaction:
        await domain.jobs.cancel(transaction, cancelled)
    async with domain.worker.transaction() as transaction:
        ours = await domain.tasks.extend(transaction, list(claims.values()))
    assert ours == {claims[held].task_id}


async def test_an_extension_is_no_end_to_an_expired_lease_that_nobody_has_taken_notice_of(domain, acme):
    await domain.submit(acme)
    claims = await domain.claim()
    await domain.expire_leases()
    async with domain.worker.transaction() as transaction:
        assert await domain.tasks.extend(transaction, claims)
    async with domain.worker.transaction() as transaction:
        assert await domain.tasks.requeue_expired(transaction) == []


async def test_an_end_after_the_lease_but_before_anybody_noticed_still_counts(domain, acme):
    job = await domain.submit(acme)
    [claim] = await domain.claim()
    await domain.expire_leases()
    assert await domain.succeed(claim)
    async with domain.worker.transaction() as transaction:
        assert await domain.tasks.requeue_expired(transaction) == []
    assert domain.task_states(job) == ["succeeded"]


async def test_only_the_newest_attempt_ends_a_task(domain, acme):
    job = await domain.submit(acme)
    [old] = await domain.claim(worker="old")
    await release(domain, old)
    assert not await domain.succeed(old)
    [new] = await domain.claim(worker="new")
    assert new.attempt == old.attempt + 1
    for late_word in (domain.succeed, domain.fail, domain.retry):
        assert not await late_word(old)
    assert domain.task_states(job) == ["running"]
    assert await domain.succeed(new)
    for late_word in (domain.succeed, domain.fail, domain.retry):
        assert not await late_word(new)
    [result] = domain.rows("SELECT attempt, detections, timings FROM wharf.results")
    assert result["attempt"] == new.attempt
    assert result["detections"] == [detection.model_dump() for detection in DETECTIONS]
    assert result["timings"] == TIMINGS.model_dump()


async def test_a_result_that_is_rolled_back_leaves_its_task_running(domain, acme):
    job = await domain.submit(acme)
    [claim] = await domain.claim()

    async def end_and_die() -> None:
        async with domain.worker.transaction() as transaction:
            assert await domain.tasks.succeed(transaction, claim, model=MODEL, detections=[], timings=TIMINGS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await end_and_die()
    assert domain.task_states(job) == ["running"]
    assert domain.rows("SELECT task_id FROM wharf.results") == []
    assert await domain.succeed(claim)


async def test_retries_are_counted_and_the_last_one_fails_with_its_code(domain, acme):
    job = await domain.submit(acme)
    states = []
    for _ in range(3):
        [claim] = await domain.claim()
        states.append(await domain.retry(claim))
    assert states == ["queued", "queued", "failed"]
    assert await domain.finish(job)
    [result] = (await domain.get(acme, job)).results
    assert (result.attempts, result.error.code, result.error.detail) == (3, "worker_crashed", "It died.")


async def test_a_success_after_a_retry_leaves_no_error(domain, acme):
    job = await domain.submit(acme)
    [claim] = await domain.claim()
    await domain.retry(claim)
    [claim] = await domain.claim()
    await domain.end(claim)
    [result] = (await domain.get(acme, job)).results
    assert (result.state, result.attempts, result.error) == ("succeeded", 2, None)


async def test_a_worker_that_starts_frees_what_its_former_self_held_and_nothing_else(domain, acme):
    await domain.submit(acme, inputs=3)
    former = await domain.claim(2, worker="w1")
    [other] = await domain.claim(1, worker="w2")
    async with domain.worker.transaction() as transaction:
        released = await domain.tasks.give_back_former(transaction, "w1")
    assert [(task.pool, task.state) for task in released] == [(POOL, "queued")] * 2
    claims = await domain.claim(3, worker="w1")
    assert {claim.task_id for claim in claims} == {claim.task_id for claim in former}
    # It may have died of one of them.
    assert [claim.spent for claim in claims] == [2, 2]
    assert await domain.succeed(other)


async def test_expired_leases_are_mended_in_bounded_batches(domain, acme):
    await domain.submit(acme, inputs=7)
    await domain.claim(7)
    await domain.expire_leases()
    sizes = []
    for _ in range(4):
        async with domain.worker.transaction() as transaction:
            sizes.append(len(await domain.tasks.requeue_expired(transaction, limit=3)))
    assert sizes == [3, 3, 1, 0]


async def test_two_who_mend_at_once_do_not_wait_for_each_other(domain, acme):
    await domain.submit(acme, inputs=4)
    await domain.claim(4)
    await domain.expire_leases()
    async with domain.worker.transaction() as one, domain.worker.transaction() as other:
        first = await domain.tasks.requeue_expired(one, limit=2)
        async with asyncio.timeout(5):
            second = await domain.tasks.requeue_expired(other)
    assert len(first) == len(second) == 2


@pytest.mark.parametrize(
    "change",
    [
        "state = 'running', attempt = 1, worker = 'w'",
        "state = 'running', attempt = 1, lease_until = now()",
        "state = 'running', worker = 'w', lease_until = now()",
        "lease_until = now()",
        "state = 'succeeded'",
        "state = 'failed', ended_at = now()",
        "state = 'succeeded', ended_at = now(), error_code = 'worker_lost'",
        "ended_at = now()",
        "spared = 1",
        "state = 'lost', ended_at = now()",
        "class = 'urgent'",
    ],
)
def test_the_database_refuses_a_state_that_contradicts_itself(seasoned, change):
    with psycopg.connect(seasoned.url()) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(f"UPDATE wharf.tasks SET {change} WHERE state = 'queued'")


# Plans. The statements are the ones that are sent; the rows are those of a service that has worked for a while and was
# then given a job of very many inputs.


class Recorded:
    """A transaction that remembers the statements sent through it."""

    def __init__(self, transaction) -> None:
        self._transaction = transaction
        self.sent = []

    async def execute(self, statement, values=None):
        self.sent.append((statement, values))
        return await self._transaction.execute(statement, values)


INTERACTIVE = {"pool": POOL, "priority": Priority.INTERACTIVE}
BATCH = {"pool": POOL, "priority": Priority.BATCH}
BIRDS = {"pool": "birds", "priority": Priority.BATCH}


@pytest.fixture(scope="module")
def seasoned(shared_installation):
    statements = """
        INSERT INTO wharf.tenants (id, name) VALUES (gen_random_uuid(), 'acme');
        INSERT INTO wharf.blobs (sha256, size) VALUES (sha256('a picture'), 1);
        INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total, state, done, failed, finished_at)
            SELECT gen_random_uuid(), id, 'digits', '{}', 'batch', 10, 'succeeded', 10, 0, now()
            FROM wharf.tenants, generate_series(1, 2000);
        INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total)
            SELECT gen_random_uuid(), id, 'digits', '{}', 'batch', 20000 FROM wharf.tenants;
        INSERT INTO wharf.tasks (id, tenant_id, job_id, pool, class, input, sha256, size, media_type,
                width, height, orientation, state, ended_at, attempt, worker, lease_until)
            SELECT gen_random_uuid(), j.tenant_id, j.id, CASE WHEN i % 10 = 9 THEN 'birds' ELSE 'digits' END, 'batch',
                i, sha256('a picture'), 1, 'image/png', 1, 1, 1,
                CASE WHEN j.state <> 'open' THEN 'succeeded' WHEN i < 60 THEN 'running' ELSE 'queued' END,
                CASE WHEN j.state <> 'open' THEN now() END,
                CASE WHEN j.state <> 'open' OR i < 60 THEN 1 ELSE 0 END,
                CASE WHEN j.state <> 'open' OR i < 60 THEN 'w' || i END,
                CASE WHEN j.state = 'open' AND i < 60 THEN now() + interval '30 s' END
            FROM wharf.jobs j, generate_series(0, j.total - 1) i;
        INSERT INTO wharf.tenants (id, name) SELECT gen_random_uuid(), 'small-' || i FROM generate_series(1, 20) i;
        INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total)
            SELECT gen_random_uuid(), id, 'digits', '{}', 'batch', 10 FROM wharf.tenants WHERE name <> 'acme';
        INSERT INTO wharf.tasks (id, tenant_id, job_id, pool, class, input, sha256, size, media_type,
                width, height, orientation)
            SELECT gen_random_uuid(), j.tenant_id, j.id, 'digits', 'batch',
                i, sha256('a picture'), 1, 'image/png', 1, 1, 1
            FROM wharf.jobs j, generate_series(0, 9) i WHERE j.total = 10 AND j.state = 'open';
        INSERT INTO wharf.released (pool, class, tenant_id, task_id) SELECT pool, class, tenant_id, id FROM wharf.tasks
            WHERE state = 'queued' AND input < 150 AND pool = 'digits'
            AND job_id = (SELECT id FROM wharf.jobs WHERE total = 20000);
        INSERT INTO wharf.cached_results (sha256, tenant_id, recipe, model, model_version, model_digest, detections,
                timings)
            SELECT sha256(i::text::bytea), id, sha256('a recipe'), 'digits', 1, sha256('a model'), '[]', '{}'
            FROM wharf.tenants, generate_series(1, 200) i;
        ANALYZE;
    """
    with psycopg.connect(shared_installation.url(), autocommit=True) as connection:
        for statement in statements.split(";"):
            connection.execute(statement)
    return shared_installation


RELEASE = {"limit": 100, "in_flight": {str(UUID(int=1)): 3}}


@pytest.mark.parametrize(
    ("role", "call", "indexes", "most_rows"),
    [
        ("worker", lambda tx: Tasks().claim_next(tx, **INTERACTIVE, worker="w", limit=4), {"tasks_ready"}, 200),
        ("worker", lambda tx: Tasks().claim_next(tx, **BATCH, worker="w", limit=4), {"tasks_ready"}, 400),
        ("worker", lambda tx: Tasks().claim_next(tx, **BIRDS, worker="w", limit=1), {"tasks_ready"}, 400),
        ("relay", lambda tx: releases.release(tx, **BATCH, **RELEASE), {"tasks_ready"}, 2000),
        ("relay", lambda tx: releases.release(tx, **BATCH, **RELEASE, behind=False), {"released_pkey"}, 2000),
        ("relay", lambda tx: releases.in_flight(tx, POOL, Priority.BATCH), set(), 0),
        ("relay", lambda tx: releases.undo_pool(tx, POOL), set(), 0),
        ("relay", lambda tx: releases.overlooked(tx, POOL, Priority.BATCH, 60), set(), 200),
        ("relay", lambda tx: Tasks().requeue_expired(tx), {"tasks_leases"}, 200),
        ("worker", lambda tx: Tasks().give_back_former(tx, "w1"), set(), 200),
        ("relay", lambda tx: Jobs().unfinished(tx), {"jobs_open", "tasks_open"}, 200),
        ("relay", lambda tx: Jobs().unfrozen(tx), {"jobs_not_frozen"}, 200),
        ("relay", lambda tx: Jobs().overdue(tx), {"jobs_deadlines"}, 200),
    ],
    ids=[
        "claim where none is", "claim", "claim of a smaller pool", "release", "release onwards", "in flight",
        "queue gone", "overlooked",
        "expired leases", "former self", "unfinished jobs", "cancelled jobs", "overdue jobs",
    ],
)  # fmt: skip
async def test_what_runs_all_the_time_reads_an_index_and_few_rows(seasoned, role, call, indexes, most_rows):
    url = seasoned.url(f"wharf_{role}")
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as transaction:
        recorded = Recorded(transaction)
        await call(recorded)
        [(statement, values)] = recorded.sent
        await transaction.rollback()
        explained = await transaction.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
        [row] = await explained.fetchall()
        await transaction.rollback()
    nodes = list(walk(row["QUERY PLAN"][0]["Plan"]))
    said = json.dumps(row["QUERY PLAN"], indent=1)
    assert {node.get("Index Name") for node in nodes} >= indexes, said
    # The pools that somebody paused are a handful, and what is released is a window of each pool.
    tables = [node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"]
    assert set(tables) <= {"pools", "released"}, said
    read = sum(_rows_read(node) for node in nodes if node.get("Relation Name") == "tasks")
    assert read <= most_rows, said


async def test_a_plan_that_was_made_for_no_values_serves_the_claims_of_every_pool(seasoned):
    rows = "SELECT (seq_tup_read + idx_tup_fetch)::int AS read FROM pg_stat_xact_user_tables WHERE relname = 'tasks'"
    url = seasoned.url("wharf_worker")
    async with Database(url, name="worker", size=1, by_index=True, plans_once=True) as database:
        before = 0
        for which in (INTERACTIVE, BATCH, BIRDS):
            async with database.transaction() as transaction:
                await Tasks().claim_next(transaction, **which, worker="w", limit=4)
                [row] = await (await transaction.execute(rows)).fetchall()
                await transaction.rollback()
            assert row["read"] - before <= 400
            before = row["read"]
        async with database.statements() as statements:
            [mode] = await (await statements.execute("SHOW plan_cache_mode")).fetchall()
    assert mode == {"plan_cache_mode": "force_generic_plan"}


def _rows_read(node: dict) -> float:
    return (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]


def walk(node: dict) -> Iterator[dict]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


def leases(domain) -> list[float]:
    found = domain.rows("SELECT extract(epoch FROM lease_until - now())::float8 AS left FROM wharf.tasks")
    return [row["left"] for row in found]


async def release(domain, claim) -> None:
    """The claim's lease runs out, and that is noticed."""
    await domain.expire_leases(
        domain.rows("SELECT worker FROM wharf.tasks WHERE id = %s", [claim.task_id])[0]["worker"]
    )
    async with domain.worker.transaction() as transaction:
        await domain.tasks.requeue_expired(transaction)
