"""Releases: which tasks a message in a queue names, which come next, and what the queue has lost.

A task is written down as released just before its message is published, and until it is claimed. The queue may lose
the message, and the task's row is what counts: then the release is undone, and the task has its turn again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import DictRow

from custody.database import Transaction
from custody.turns import FROM_THE_FIRST, QUEUED, READY, in_turn
from custody.wire import Priority

NOT_RELEASED = """
    NOT EXISTS (
        SELECT FROM wharf.released r
        WHERE r.pool = t.pool AND r.class = t.class AND r.tenant_id = t.tenant_id AND r.task_id = t.id)
"""

UNRELEASED = f"{READY} AND {NOT_RELEASED}"

LAST_RELEASED = f"""
    coalesce((
        SELECT r.task_id FROM wharf.released r
        WHERE r.pool = %(pool)s AND r.class = %(class)s AND r.tenant_id = w.tenant_id
        ORDER BY r.task_id DESC LIMIT 1), {FROM_THE_FIRST})
"""

OVERLOOKED = """
    r.pool = %(pool)s AND r.class = %(class)s
    AND r.released_at < now() - greatest(make_interval(secs => %(least)s), 3 * (
        SELECT max(t.claimed_at - t.released_at) FROM wharf.tasks t WHERE t.state = 'running' AND t.pool = %(pool)s))
"""


@dataclass(frozen=True)
class Released:
    """A task that is to be put into its pool's queue, and all that a message says of it. Its ids as text: they are only
    passed on, by the ten thousand."""

    task_id: str
    tenant_id: str
    model: str
    sha256: bytes
    size: int
    media_type: str
    traceparent: str | None


async def in_flight(transaction: Transaction, pool: str, priority: Priority) -> Counter[str]:
    """How many tasks of each tenant are released and not claimed."""
    found = await transaction.execute(
        """
        SELECT r.tenant_id::text, count(*)::int AS tasks FROM wharf.released r
        WHERE r.pool = %s AND r.class = %s GROUP BY r.tenant_id
        """,
        [pool, priority.value],
    )
    return Counter({row["tenant_id"]: row["tasks"] for row in await found.fetchall()})


async def release(
    transaction: Transaction,
    *,
    pool: str,
    priority: Priority,
    limit: int,
    in_flight: Mapping[str, int],
    behind: bool = True,
) -> list[Released]:
    """Up to `limit` tasks to put into the queue now: the tenants in turn by what they have `in_flight`, each one's
    oldest first. They count as released; `undo` it where that comes to nothing.

    Without `behind`, those that lie behind a tenant's last released one are not looked for, retries say: that would
    read all that is released, with each batch of a long row of them."""
    next_ones = in_turn(UNRELEASED) if behind else in_turn(READY, LAST_RELEASED)
    found = await transaction.execute(
        f"""
        WITH RECURSIVE in_flight AS (
            SELECT f.tenant_id, f.tasks FROM unnest(%(tenants)s::uuid[], %(counts)s::int[]) AS f (tenant_id, tasks)
        ),
        {next_ones},
        chosen AS MATERIALIZED (
            SELECT t.id, t.tenant_id, t.pool, t.class, t.sha256, t.size, t.media_type, j.traceparent
            FROM in_turn JOIN wharf.tasks t USING (id) JOIN wharf.jobs j ON j.id = t.job_id
            ORDER BY in_turn.turn, t.id
        ),
        released AS (
            INSERT INTO wharf.released (pool, class, tenant_id, task_id)
            SELECT pool, class, tenant_id, id FROM chosen ON CONFLICT DO NOTHING
        )
        SELECT id::text, tenant_id::text, pool, sha256, size, media_type, traceparent FROM chosen
        """,
        {
            "pool": pool,
            "class": priority.value,
            "candidates": limit,
            "tenants": list(in_flight),
            "counts": list(in_flight.values()),
        },
    )
    return [_released(row) for row in await found.fetchall()]


async def undo(transaction: Transaction, tasks: Sequence[UUID | str]) -> None:
    """Their messages were refused or void."""
    await transaction.execute(
        """
        DELETE FROM wharf.released r USING wharf.tasks t
        WHERE t.id = ANY (%s::uuid[])
          AND r.pool = t.pool AND r.class = t.class AND r.tenant_id = t.tenant_id AND r.task_id = t.id
        """,
        [list(tasks)],
    )


async def put_back(transaction: Transaction, tasks: Sequence[UUID]) -> None:
    """They were claimed and given back, and their messages with them."""
    await transaction.execute(
        """
        INSERT INTO wharf.released (pool, class, tenant_id, task_id)
        SELECT pool, class, tenant_id, id FROM wharf.tasks WHERE id = ANY (%s) AND state = 'queued'
        ON CONFLICT DO NOTHING
        """,
        [list(tasks)],
    )


async def undo_pool(transaction: Transaction, pool: str, priority: Priority | None = None) -> int:
    """The pool's queue is gone, or there is none any more. Gives how many releases were undone."""
    changed = await transaction.execute(
        """
        DELETE FROM wharf.released r
        WHERE r.pool = %(pool)s AND (%(class)s::text IS NULL OR r.class = %(class)s)
        """,
        {"pool": pool, "class": priority and priority.value},
    )
    return changed.rowcount


async def undo_newest(transaction: Transaction, pool: str, priority: Priority, in_queue: int) -> int:
    """For a relay that begins: of more releases than there are messages `in_queue`, the newest ones may never have been
    published, since its former self died before; the oldest are in the hands of workers."""
    changed = await transaction.execute(
        """
        DELETE FROM wharf.released r USING (
            SELECT task_id FROM wharf.released WHERE pool = %(pool)s AND class = %(class)s
            ORDER BY released_at, task_id OFFSET %(in_queue)s
        ) newest
        WHERE r.pool = %(pool)s AND r.class = %(class)s AND r.task_id = newest.task_id
        """,
        {"pool": pool, "class": priority.value, "in_queue": in_queue},
    )
    return changed.rowcount


async def undo_ended(transaction: Transaction, pool: str, priority: Priority) -> None:
    """Tasks that were cancelled, or claimed without their message, wait in no queue."""
    await transaction.execute(
        """
        DELETE FROM wharf.released r USING wharf.tasks t
        WHERE r.pool = %(pool)s AND r.class = %(class)s AND t.id = r.task_id AND t.state <> 'queued'
        """,
        {"pool": pool, "class": priority.value},
    )


async def overlooked(transaction: Transaction, pool: str, priority: Priority, least_seconds: float) -> int:
    """How many tasks were released long ago and never claimed: longer than `least_seconds`, and than three times
    what those that run now have waited. They wait in the queue, or the queue has lost them."""
    found = await transaction.execute(
        f"SELECT count(*)::int AS tasks FROM wharf.released r WHERE {OVERLOOKED}",
        {"pool": pool, "class": priority.value, "least": least_seconds},
    )
    row = await found.fetchone()
    assert row is not None
    return int(row["tasks"])


async def undo_overlooked(transaction: Transaction, pool: str, priority: Priority, least_seconds: float) -> int:
    """The queue has lost some of the `overlooked`: all of them are to be released again."""
    changed = await transaction.execute(
        f"DELETE FROM wharf.released r WHERE {OVERLOOKED}",
        {"pool": pool, "class": priority.value, "least": least_seconds},
    )
    return changed.rowcount


async def dispatch_again(transaction: Transaction, task: UUID, *, after_seconds: float = 10.0) -> bool:
    """The queue gave up on the task's message: if it is still queued, it is released again after a while."""
    await undo(transaction, [task])
    changed = await transaction.execute(
        "UPDATE wharf.tasks SET not_before = now() + make_interval(secs => %s) WHERE id = %s AND state = 'queued'",
        [after_seconds, task],
    )
    return changed.rowcount == 1


async def seconds_to_next(transaction: Transaction, pool: str, priority: Priority) -> float | None:
    """Until the first of the tasks that wait for their time is due, below 0 where it came a moment ago; None where none
    waits. For when all that is ready has been released: it would read it."""
    found = await transaction.execute(
        f"""
        SELECT extract(epoch FROM min(t.not_before) - now())::float8 AS seconds FROM wharf.tasks t
        WHERE {QUEUED} AND t.not_before > now() - interval '1 second' AND {NOT_RELEASED}
        """,
        {"pool": pool, "class": priority.value},
    )
    row = await found.fetchone()
    assert row is not None
    seconds: float | None = row["seconds"]
    return seconds


def _released(row: DictRow) -> Released:
    return Released(
        task_id=row["id"],
        tenant_id=row["tenant_id"],
        model=row["pool"],
        sha256=row["sha256"],
        size=row["size"],
        media_type=row["media_type"],
        traceparent=row["traceparent"],
    )
