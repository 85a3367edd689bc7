"""Tasks: claim, lease and end. A task is one input of a job, and its row is the queue's only truth.

Delivery is at least once; the end is a conditional UPDATE fenced by the attempt, so the result is stored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from custody.database import Transaction
from custody.instance import HOLDS_ITS_NAME
from custody.turns import JOB_IS_OPEN, POOL_RUNS, READY, in_turn
from custody.volume import blob_path
from custody.wire import Detection, EngineReference, FileState, ModelReference, Parameters, Priority, Timings

CLAIMED = """
    t.id, t.job_id, t.attempt, t.attempt - t.spared AS spent, t.sha256, t.media_type, t.orientation, j.parameters,
    extract(epoch FROM t.claimed_at - t.created_at)::float8 * 1000 AS queue_ms, t.tenant_id, j.traceparent,
    t.error_code IS NOT DISTINCT FROM 'worker_lost' AS alone, f.fault
"""

ENDED = "t.job_id, t.pool, t.class, t.state"

# Claims what `next` has locked. Its messages are out of the queue.
CLAIM = f"""
    unqueued AS (
        DELETE FROM wharf.released r USING next
        WHERE r.pool = %(pool)s AND r.class = next.class AND r.tenant_id = next.tenant_id AND r.task_id = next.id
        RETURNING r.task_id, r.released_at
    ),
    claimed AS (
        UPDATE wharf.tasks t
        SET state = 'running', attempt = t.attempt + 1, worker = %(worker)s, claimed_at = now(),
            released_at = unqueued.released_at, lease_until = now() + make_interval(secs => %(lease)s)
        FROM next LEFT JOIN unqueued ON unqueued.task_id = next.id WHERE t.id = next.id
        RETURNING t.*
    )
    SELECT {CLAIMED} FROM claimed t JOIN wharf.jobs j ON j.id = t.job_id
    LEFT JOIN wharf.blob_faults((SELECT array_agg(c.sha256) FROM claimed c)) f ON f.sha256 = t.sha256
    ORDER BY t.id
"""

# Locked in id order, as a cancel locks them: two that lock several tasks never wait in a circle.
HELD = """
    held AS MATERIALIZED (
        SELECT t.id FROM wharf.tasks t
        JOIN unnest(%(tasks)s::uuid[], %(attempts)s::int[]) AS claimed (id, attempt) USING (id, attempt)
        WHERE t.state = 'running' ORDER BY t.id FOR UPDATE OF t
    )
"""


@dataclass(frozen=True)
class Claim:
    """The right to end one task, until its lease runs out or somebody takes it over.

    `attempt` fences; `spent` attempts count against the limit; `path` is relative to the volume; `queue_ms` is the
    time from submission to this claim; `traceparent` (W3C) is that of the request that submitted it. `alone`: a worker
    died while it held the task, which may be why, so nothing else is to be at stake while it runs. `fault`: its bytes
    are quarantined, `corrupt` or `missing`; there is nothing to read."""

    task_id: UUID
    job_id: UUID
    tenant_id: UUID
    attempt: int
    spent: int
    sha256: bytes
    path: str
    media_type: str
    orientation: int
    parameters: Parameters
    queue_ms: float
    traceparent: str | None
    alone: bool
    fault: FileState | None


@dataclass(frozen=True)
class Ended:
    """What a reconcile or retry made of a task: `queued` again or `failed` for good."""

    job_id: UUID
    pool: str
    priority: Priority
    state: str


@dataclass(frozen=True)
class Offer:
    """A message that names a task. `redelivered`: somebody received it before and never settled it."""

    task_id: UUID
    redelivered: bool


class Tasks:
    """`lease_seconds`: how long a silent worker keeps its tasks; `max_attempts`: tries before a task fails."""

    def __init__(self, *, lease_seconds: float = 30.0, max_attempts: int = 3) -> None:
        self.lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    async def claim_next(
        self, transaction: Transaction, *, pool: str, priority: Priority, worker: str, limit: int
    ) -> list[Claim]:
        """Up to `limit` queued tasks of the pool: the tenants in turn, each one's oldest
        first. Never waits for a lock."""
        found = await transaction.execute(
            f"""
            WITH RECURSIVE in_flight AS (
                SELECT t.tenant_id, count(*) AS tasks FROM wharf.tasks t
                WHERE t.state = 'running' AND t.pool = %(pool)s AND t.class = %(class)s GROUP BY t.tenant_id
            ),
            {in_turn()},
            next AS MATERIALIZED (
                SELECT t.id, t.class, t.tenant_id FROM wharf.tasks t JOIN in_turn USING (id)
                WHERE {READY} ORDER BY in_turn.turn, t.id LIMIT %(limit)s FOR UPDATE OF t SKIP LOCKED
            ),
            {CLAIM}
            """,
            # More than are wanted: others may be claiming the first ones now.
            {
                **self._claiming(pool, worker),
                "class": priority.value,
                "limit": limit,
                "candidates": 4 * limit + 16,
                "busy": [],
            },
        )
        return [_claim(row) for row in await found.fetchall()]

    async def claim(
        self, transaction: Transaction, offers: Sequence[Offer], *, pool: str, worker: str
    ) -> tuple[list[Claim], list[Ended]]:
        """Those of the offered tasks that are this worker's to run now, in the order of the offers, and those whose
        last attempt died with another worker. The messages of all others are void.

        A redelivered task is taken over at once where the worker that held it is gone; where it lives, it has only
        lost its queue, and goes on."""
        lost = [offer.task_id for offer in offers if offer.redelivered]
        ended = []
        if lost:
            condition = f"t.id = ANY (%(lost)s) AND t.pool = %(pool)s AND NOT {HOLDS_ITS_NAME}"
            ended = await self._take_back(transaction, condition, {"lost": lost, "pool": pool})
        found = await transaction.execute(
            f"""
            WITH next AS MATERIALIZED (
                SELECT t.id, t.class, t.tenant_id FROM wharf.tasks t
                WHERE t.id = ANY (%(offered)s) AND t.pool = %(pool)s AND t.state = 'queued' AND t.not_before <= now()
                  AND {JOB_IS_OPEN} AND {POOL_RUNS}
                ORDER BY t.id FOR UPDATE OF t
            ),
            {CLAIM}
            """,
            {**self._claiming(pool, worker), "offered": [offer.task_id for offer in offers]},
        )
        claims = {row["id"]: _claim(row) for row in await found.fetchall()}
        in_order = dict.fromkeys(offer.task_id for offer in offers)
        return [claims[task] for task in in_order if task in claims], [one for one in ended if one.state == "failed"]

    async def held_by_others(self, transaction: Transaction, tasks: Sequence[UUID], worker: str) -> set[UUID]:
        """Those of the tasks that run in other workers' hands."""
        found = await transaction.execute(
            "SELECT id FROM wharf.tasks WHERE id = ANY (%s) AND state = 'running' AND worker <> %s",
            [list(tasks), worker],
        )
        return {row["id"] for row in await found.fetchall()}

    async def extend(self, transaction: Transaction, claims: Sequence[Claim]) -> set[UUID]:
        """Renews the leases; gives the tasks still held. The others were cancelled or taken over: let go of them."""
        found = await transaction.execute(
            f"""
            WITH {HELD}
            UPDATE wharf.tasks t SET lease_until = now() + make_interval(secs => %(lease)s)
            FROM held WHERE t.id = held.id AND {JOB_IS_OPEN}
            RETURNING t.id
            """,
            {"lease": self.lease_seconds, **_named(claims)},
        )
        return {row["id"] for row in await found.fetchall()}

    async def succeed(
        self,
        transaction: Transaction,
        claim: Claim,
        *,
        model: ModelReference,
        detections: Sequence[Detection],
        timings: Timings,
        engine: EngineReference | None = None,
        verified: bool = False,
    ) -> bool:
        """Ends the task with its result. `verified`: the SHA-256 of what was decoded was compared. False: somebody
        else ended or took it, and nothing was changed."""
        ended = await transaction.execute(
            f"""
            WITH ended AS (
                UPDATE wharf.tasks t
                SET state = 'succeeded', lease_until = NULL, ended_at = now(), error_code = NULL, error_detail = NULL
                WHERE t.id = %(task)s AND t.attempt = %(attempt)s AND t.state = 'running' AND {JOB_IS_OPEN}
                RETURNING t.id, t.tenant_id, t.attempt
            )
            INSERT INTO wharf.results
                (task_id, tenant_id, attempt, model, model_version, model_digest, engine, engine_version, verified,
                 detections, timings)
            SELECT id, tenant_id, attempt, %(model)s, %(version)s, %(digest)s, %(engine)s, %(engine_version)s,
                %(verified)s, %(detections)s, %(timings)s
            FROM ended
            """,
            {
                "task": claim.task_id,
                "attempt": claim.attempt,
                "model": model.name,
                "version": model.version,
                "digest": bytes.fromhex(model.digest),
                "engine": engine.name if engine else None,
                "engine_version": engine.version if engine else None,
                "verified": verified,
                "detections": Jsonb([detection.model_dump() for detection in detections]),
                "timings": Jsonb(timings.model_dump()),
            },
        )
        return ended.rowcount == 1

    async def fail(self, transaction: Transaction, claim: Claim, *, code: str, detail: str) -> bool:
        """Ends the task for good: it ran and failed. `code` is one of `custody.errors`. False as in `succeed`."""
        return await self._end_without_result(transaction, claim, "failed", code, detail)

    async def refuse(self, transaction: Transaction, claim: Claim, *, code: str, detail: str) -> bool:
        """Ends the task for good: its input can never work. False as in `succeed`."""
        return await self._end_without_result(transaction, claim, "unprocessable", code, detail)

    async def report_corrupt(self, transaction: Transaction, claim: Claim) -> bool:
        """The worker that holds the task has found other bytes than were taken into custody: they are quarantined, and
        nobody is promised them until they are uploaded again. False: an upload has put new ones in place since the
        claim, or it is void."""
        found = await transaction.execute(
            "SELECT wharf.report_corrupt(%s, %s) AS quarantined", [claim.task_id, claim.attempt]
        )
        row = await found.fetchone()
        return row is not None and bool(row["quarantined"])

    async def retry(
        self, transaction: Transaction, claim: Claim, *, code: str, detail: str, after_seconds: float
    ) -> Ended | None:
        """Queues the task again for later, or fails it where its attempts are spent. None: no longer ours to say."""
        changed = await transaction.execute(
            f"""
            UPDATE wharf.tasks t
            SET state = CASE WHEN {self._spent} THEN 'failed' ELSE 'queued' END,
                ended_at = CASE WHEN {self._spent} THEN now() END,
                not_before = now() + make_interval(secs => %(after)s),
                lease_until = NULL, error_code = %(code)s, error_detail = %(detail)s
            WHERE t.id = %(task)s AND t.attempt = %(attempt)s AND t.state = 'running' AND {JOB_IS_OPEN}
            RETURNING {ENDED}
            """,
            {"task": claim.task_id, "attempt": claim.attempt, "after": after_seconds, "code": code, "detail": detail},
        )
        row = await changed.fetchone()
        return None if row is None else _ended(row)

    async def give_back(self, transaction: Transaction, claims: Sequence[Claim]) -> None:
        """Queues tasks that were claimed and never begun; the attempt does not count."""
        await transaction.execute(
            f"""
            WITH {HELD}
            UPDATE wharf.tasks t SET state = 'queued', lease_until = NULL, spared = t.spared + 1
            FROM held WHERE t.id = held.id
            """,
            _named(claims),
        )

    async def give_back_former(self, transaction: Transaction, worker: str) -> list[Ended]:
        """What a former process of this worker's name still held. It may have died of one of them: attempts count."""
        return await self._take_back(transaction, "t.worker = %(worker)s", {"worker": worker})

    async def requeue_expired(self, transaction: Transaction, *, limit: int = 500) -> list[Ended]:
        """Tasks whose worker went silent: queued again, or failed where their attempts are spent."""
        return await self._take_back(transaction, "t.lease_until < now()", {"limit": limit})

    async def cancel_open(self, transaction: Transaction, job_id: UUID) -> int:
        """The tasks of a cancelled or expired job follow it, in id order so that two never wait in a circle."""
        cancelled = await transaction.execute(
            """
            WITH open AS MATERIALIZED (
                SELECT id FROM wharf.tasks
                WHERE job_id = %s AND state IN ('queued', 'running') ORDER BY id FOR UPDATE
            )
            UPDATE wharf.tasks t SET state = 'cancelled', lease_until = NULL, ended_at = now()
            FROM open WHERE t.id = open.id
            """,
            [job_id],
        )
        return cancelled.rowcount

    async def _end_without_result(
        self, transaction: Transaction, claim: Claim, state: str, code: str, detail: str
    ) -> bool:
        ended = await transaction.execute(
            f"""
            UPDATE wharf.tasks t SET state = %(state)s, lease_until = NULL, ended_at = now(),
                error_code = %(code)s, error_detail = %(detail)s
            WHERE t.id = %(task)s AND t.attempt = %(attempt)s AND t.state = 'running' AND {JOB_IS_OPEN}
            """,
            {"task": claim.task_id, "attempt": claim.attempt, "state": state, "code": code, "detail": detail},
        )
        return ended.rowcount == 1

    async def _take_back(self, transaction: Transaction, condition: str, values: dict[str, object]) -> list[Ended]:
        changed = await transaction.execute(
            f"""
            WITH silent AS MATERIALIZED (
                SELECT t.id FROM wharf.tasks t WHERE t.state = 'running' AND {condition}
                ORDER BY t.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
            )
            UPDATE wharf.tasks t
            SET state = CASE WHEN {self._spent} THEN 'failed' ELSE 'queued' END,
                ended_at = CASE WHEN {self._spent} THEN now() END,
                not_before = now(), lease_until = NULL, error_code = 'worker_lost',
                error_detail = 'The worker that held it went silent in attempt ' || t.attempt - t.spared || '.'
            FROM silent WHERE t.id = silent.id
            RETURNING {ENDED}
            """,
            {"limit": None, **values},
        )
        return [_ended(row) for row in await changed.fetchall()]

    def _claiming(self, pool: str, worker: str) -> dict[str, object]:
        return {"pool": pool, "worker": worker, "lease": self.lease_seconds}

    @property
    def _spent(self) -> str:
        return f"t.attempt - t.spared >= {self._max_attempts:d}"


def _named(claims: Sequence[Claim]) -> dict[str, object]:
    return {"tasks": [claim.task_id for claim in claims], "attempts": [claim.attempt for claim in claims]}


def _claim(row: DictRow) -> Claim:
    return Claim(
        task_id=row["id"],
        job_id=row["job_id"],
        tenant_id=row["tenant_id"],
        attempt=row["attempt"],
        spent=row["spent"],
        sha256=row["sha256"],
        path=blob_path(row["sha256"]),
        media_type=row["media_type"],
        orientation=row["orientation"],
        parameters=Parameters(**row["parameters"]),
        queue_ms=row["queue_ms"],
        traceparent=row["traceparent"],
        alone=row["alone"],
        fault=None if row["fault"] is None else FileState(row["fault"]),
    )


def _ended(row: DictRow) -> Ended:
    return Ended(row["job_id"], row["pool"], Priority(row["class"]), row["state"])
