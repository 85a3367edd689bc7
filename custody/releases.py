"""Releases: which tasks are named by a message in the queue, which come next, and what the queue has lost.

A task is released while its message is in the queue: `released_at` says since when. The queue may lose it, and the row
is what counts: then the release is undone, and the task has its turn again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import DictRow

from custody.database import Transaction
from custody.turns import IN_TURN
from custody.wire import Priority

OVERLOOKED = """
    t.state = 'queued' AND t.pool = %(pool)s AND t.class = %(class)s
    AND t.released_at < now() - greatest(make_interval(secs => %(least)s), 3 * (
        SELECT max(r.claimed_at - r.released_at) FROM wharf.tasks r WHERE r.state = 'running' AND r.pool = %(pool)s))
"""


@dataclass(frozen=True)
class Releasable:
    """A task that is ready to be put into its pool's queue, and all that a message says of it."""

    task_id: UUID
    tenant_id: UUID
    model: str
    sha256: bytes
    size: int
    media_type: str
    attempt: int
    traceparent: str | None


async def choose(
    transaction: Transaction,
    *,
    pool: str,
    priority: Priority,
    window: int,
    limit: int,
    busy: Sequence[UUID] = (),
) -> list[Releasable]:
    """Up to `limit` tasks to put into the queue next, so that no more than `window` are there: the tenants in turn,
    each one's oldest first. `busy` are on their way already."""
    found = await transaction.execute(
        f"""
        WITH RECURSIVE in_flight AS (
            SELECT t.tenant_id, count(*) AS tasks FROM wharf.tasks t
            WHERE t.state = 'queued' AND t.released_at IS NOT NULL AND t.pool = %(pool)s AND t.class = %(class)s
            GROUP BY t.tenant_id
        ),
        room AS MATERIALIZED (
            SELECT greatest(0, least(%(limit)s, %(window)s - %(count)s - coalesce(sum(tasks), 0))) AS tasks
            FROM in_flight
        ),
        {IN_TURN}
        SELECT t.id, t.tenant_id, t.pool, t.sha256, t.size, t.media_type, t.attempt, j.traceparent
        FROM in_turn JOIN wharf.tasks t USING (id) JOIN wharf.jobs j ON j.id = t.job_id
        ORDER BY in_turn.turn, t.id LIMIT (SELECT tasks FROM room)
        """,
        {
            "pool": pool,
            "class": priority.value,
            "window": window,
            "limit": limit,
            "busy": list(busy),
            "count": len(busy),
            "candidates": limit,
        },
    )
    return [_releasable(row) for row in await found.fetchall()]


async def mark(transaction: Transaction, released: Sequence[Releasable]) -> None:
    """The queue has them. Those that were claimed, cancelled or tried in the meantime are past it."""
    await transaction.execute(
        """
        WITH held AS MATERIALIZED (
            SELECT t.id FROM wharf.tasks t
            JOIN unnest(%(tasks)s::uuid[], %(attempts)s::int[]) AS published (id, attempt) USING (id, attempt)
            WHERE t.state = 'queued' AND t.released_at IS NULL ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
        )
        UPDATE wharf.tasks t SET released_at = now() FROM held WHERE t.id = held.id
        """,
        {"tasks": [task.task_id for task in released], "attempts": [task.attempt for task in released]},
    )


async def undo(transaction: Transaction, tasks: Sequence[UUID]) -> None:
    """Their messages are gone or void: those that are still queued are to be released again."""
    await _undo(transaction, "t.id = ANY (%(tasks)s)", {"tasks": list(tasks)})


async def dispatch_again(transaction: Transaction, task: UUID, *, after_seconds: float = 10.0) -> bool:
    """The queue gave up on the task's message: if it is still queued, it is released again after a while."""
    changed = await transaction.execute(
        """
        UPDATE wharf.tasks SET released_at = NULL, not_before = now() + make_interval(secs => %s)
        WHERE id = %s AND state = 'queued'
        """,
        [after_seconds, task],
    )
    return changed.rowcount == 1


async def undo_pool(transaction: Transaction, pool: str, priority: Priority | None = None) -> int:
    """The pool's queue is gone, or there is none any more: all that it held is to be released again."""
    condition = "t.pool = %(pool)s AND (%(class)s::text IS NULL OR t.class = %(class)s)"
    return await _undo(transaction, condition, {"pool": pool, "class": priority and priority.value})


async def overlooked(transaction: Transaction, pool: str, priority: Priority, least_seconds: float) -> int:
    """How many tasks were released long ago and never claimed: longer than `least_seconds`, and than three times
    what those that run now have waited. They wait in the queue, or the queue has lost them."""
    found = await transaction.execute(
        f"SELECT count(*)::int AS tasks FROM wharf.tasks t WHERE {OVERLOOKED}",
        {"pool": pool, "class": priority.value, "least": least_seconds},
    )
    row = await found.fetchone()
    assert row is not None
    return int(row["tasks"])


async def undo_overlooked(transaction: Transaction, pool: str, priority: Priority, least_seconds: float) -> int:
    """The queue has lost some of the `overlooked`: all of them are to be released again."""
    return await _undo(transaction, OVERLOOKED, {"pool": pool, "class": priority.value, "least": least_seconds})


async def room(transaction: Transaction, pool: str, priority: Priority, window: int) -> int:
    """How many more tasks the queue may hold."""
    found = await transaction.execute(
        """
        SELECT %s - count(*)::int AS room FROM wharf.tasks t
        WHERE t.state = 'queued' AND t.released_at IS NOT NULL AND t.pool = %s AND t.class = %s
        """,
        [window, pool, priority.value],
    )
    row = await found.fetchone()
    assert row is not None
    return max(0, int(row["room"]))


async def seconds_to_next(transaction: Transaction, pool: str, priority: Priority) -> float | None:
    """Until the first of the tasks that wait for their time is due; None where none waits. For when all that is
    ready has been released: it would read it."""
    found = await transaction.execute(
        """
        SELECT extract(epoch FROM min(t.not_before) - now())::float8 AS seconds FROM wharf.tasks t
        WHERE t.pool = %s AND t.class = %s AND t.state = 'queued' AND t.released_at IS NULL
          AND t.not_before > now()
        """,
        [pool, priority.value],
    )
    row = await found.fetchone()
    assert row is not None
    seconds: float | None = row["seconds"]
    return seconds


async def _undo(transaction: Transaction, condition: str, values: dict[str, object]) -> int:
    changed = await transaction.execute(
        f"""
        WITH released AS MATERIALIZED (
            SELECT t.id FROM wharf.tasks t
            WHERE t.state = 'queued' AND t.released_at IS NOT NULL AND {condition}
            ORDER BY t.id FOR UPDATE SKIP LOCKED
        )
        UPDATE wharf.tasks t SET released_at = NULL FROM released WHERE t.id = released.id
        """,
        values,
    )
    return changed.rowcount


def _releasable(row: DictRow) -> Releasable:
    return Releasable(
        task_id=row["id"],
        tenant_id=row["tenant_id"],
        model=row["pool"],
        sha256=row["sha256"],
        size=row["size"],
        media_type=row["media_type"],
        attempt=row["attempt"],
        traceparent=row["traceparent"],
    )
