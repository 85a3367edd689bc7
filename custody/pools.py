"""Pools: what waits for each model, who works on it, and whether it may begin. A pool's name is its model's."""

from collections.abc import Awaitable, Callable

from custody.database import Transaction
from custody.errors import CustodyError
from custody.tenants import operators_only
from custody.wire import Pool, PoolState, Worker

WORKER_SILENT_SECONDS = 30.0
"""A worker that has not been seen for longer does not count as living."""

DRAINING_SECONDS = 30
"""After which to ask again whether a drained pool accepts jobs: an operator does not change it every second."""

Count = Callable[[Transaction, str], Awaitable[int]]
"""How many inputs wait in a pool: `backlog`, or what somebody remembers of it."""

# Both classes are named, so that the walk through the index can skip to the tenant's own.
SEEN = """
    SELECT count(*)::int AS waiting FROM (
        SELECT FROM wharf.tasks WHERE pool = %(pool)s AND class IN ('interactive', 'batch') AND state = 'queued'
        LIMIT %(most)s
    ) waiting
"""


async def names(transaction: Transaction) -> list[str]:
    """Of every pool that may have tasks: a retired model's are still worked off."""
    found = await transaction.execute("SELECT DISTINCT name FROM wharf.models ORDER BY name")
    return [row["name"] for row in await found.fetchall()]


async def set_state(transaction: Transaction, name: str, state: PoolState) -> None:
    """Raises `CustodyError`: `not_found` where there is no model of this name, `forbidden` where the tenant is not the
    operator's."""
    found = await transaction.execute("SELECT 1 FROM wharf.models WHERE name = %s LIMIT 1", [name])
    if await found.fetchone() is None:
        raise no_such_pool()
    async with operators_only("pauses, resumes and drains pools"):
        await transaction.execute("SELECT wharf.set_pool_state(%s, %s)", [name, state.value])


async def backlog(transaction: Transaction, pool: str, *, most: int) -> int:
    """How many inputs wait in the pool, of all tenants, counted up to `most`."""
    return await _number(transaction, "SELECT wharf.pool_backlog(%(pool)s, %(most)s) AS waiting", pool, most)


async def seen_backlog(transaction: Transaction, pool: str, *, most: int) -> int:
    """As `backlog`, of those alone whom the transaction sees: the tenant itself in the API, all in a worker."""
    return await _number(transaction, SEEN, pool, most)


async def list_pools(transaction: Transaction, count: Count, name: str | None = None) -> list[Pool]:
    """All pools, or the one of this name, each with its living workers."""
    found = await transaction.execute(
        """
        SELECT m.name, coalesce(p.state, 'active') AS state, wharf.pool_running(m.name) AS running
        FROM (SELECT DISTINCT name FROM wharf.models) m LEFT JOIN wharf.pools p USING (name)
        WHERE %(name)s::text IS NULL OR m.name = %(name)s ORDER BY m.name
        """,
        {"name": name},
    )
    pools = await found.fetchall()
    found = await transaction.execute(
        """
        SELECT pool, name, engine, model_version, slots, release, seen_at FROM wharf.workers
        WHERE seen_at > now() - make_interval(secs => %s) ORDER BY name
        """,
        [WORKER_SILENT_SECONDS],
    )
    workers = await found.fetchall()
    return [
        Pool(
            **pool,
            waiting=await count(transaction, pool["name"]),
            workers=[Worker(**worker) for worker in workers if worker["pool"] == pool["name"]],
        )
        for pool in pools
    ]


def no_such_pool() -> CustodyError:
    return CustodyError("not_found", "There is no pool by this name. GET /v1/pools lists them.")


async def _number(transaction: Transaction, query: str, pool: str, most: int) -> int:
    found = await transaction.execute(query, {"pool": pool, "most": most})
    row = await found.fetchone()
    assert row is not None
    return int(row["waiting"])
