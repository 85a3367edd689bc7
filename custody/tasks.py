"""Tasks: claim, lease and end. A task is one input of a job, and its row is the queue's only truth.

Delivery is at least once; the end is a conditional UPDATE fenced by the attempt, so the result is stored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from psycopg.errors import UniqueViolation
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from custody.cache import ADD_ANSWERS, JUDGED, KEEP, Computation
from custody.database import Transaction
from custody.instance import HOLDS_ITS_NAME
from custody.jobs import FINISH_OF_ONE
from custody.turns import JOB_IS_OPEN, POOL_RUNS, READY, in_turn
from custody.volume import blob_path
from custody.wire import Detection, EngineReference, FileState, ModelReference, Parameters, Priority, Timings

CLAIMED = """
    t.id, t.job_id, t.attempt, t.attempt - t.spared AS spent, t.sha256, t.media_type, t.orientation, j.parameters,
    extract(epoch FROM t.claimed_at - t.created_at)::float8 * 1000 AS queue_ms, t.tenant_id, j.traceparent,
    t.error_code IS NOT DISTINCT FROM 'worker_lost' AS alone, f.fault, t.recipe, t.pool, t.class, t.state
"""

ENDED = "t.id, t.job_id, t.pool, t.class, t.state"

# Claims what `next` has locked, or answers it from the cache, or puts it off while a twin of it runs. Its messages are
# out of the queue.
CLAIM = f"""
    {JUDGED},
    unqueued AS (
        DELETE FROM wharf.released r USING next
        WHERE r.pool = %(pool)s AND r.class = next.class AND r.tenant_id = next.tenant_id AND r.task_id = next.id
        RETURNING r.task_id, r.released_at
    ),
    claimed AS (
        UPDATE wharf.tasks t
        SET state = 'running', attempt = t.attempt + 1, worker = %(worker)s, claimed_at = now(),
            released_at = unqueued.released_at, lease_until = now() + make_interval(secs => %(lease)s),
            recipe = judged.recipe, recipe_attempt = CASE WHEN judged.recipe IS NOT NULL THEN t.attempt + 1 END
        FROM next LEFT JOIN unqueued ON unqueued.task_id = next.id LEFT JOIN judged USING (id)
        WHERE t.id = next.id AND coalesce(judged.verdict, 'claimed') = 'claimed'
        RETURNING t.*
    ),
    answered AS (
        UPDATE wharf.tasks t
        SET state = 'succeeded', ended_at = now(), error_code = NULL, error_detail = NULL, recipe = judged.recipe
        FROM judged WHERE judged.verdict = 'answered' AND t.id = judged.id
        RETURNING t.*
    ),
    answers AS ({ADD_ANSWERS}),
    refused AS (
        UPDATE wharf.tasks t
        SET not_before = now() + make_interval(secs => %(lease)s), recipe = judged.recipe, recipe_attempt = NULL
        FROM judged WHERE judged.verdict = 'refused' AND t.id = judged.id
        RETURNING t.*
    )
    SELECT {CLAIMED}
    FROM (TABLE claimed UNION ALL TABLE answered UNION ALL TABLE refused) t JOIN wharf.jobs j ON j.id = t.job_id
    LEFT JOIN wharf.blob_faults((SELECT array_agg(c.sha256) FROM claimed c)) f ON f.sha256 = t.sha256
    ORDER BY t.id
"""

# Ends what `twins` has locked, each with its own copy of the answer.
ANSWER = f"""
    answered AS (
        UPDATE wharf.tasks t
        SET state = 'succeeded', ended_at = now(), error_code = NULL, error_detail = NULL, recipe = twins.recipe
        FROM twins WHERE t.id = twins.id
        RETURNING t.*
    ),
    answers AS ({ADD_ANSWERS})
    SELECT {ENDED} FROM answered t
"""

# Locked in id order, as a cancel locks them: two that lock several tasks never wait in a circle.
HELD = """
    held AS MATERIALIZED (
        SELECT t.id FROM wharf.tasks t
        JOIN unnest(%(tasks)s::uuid[], %(attempts)s::int[]) AS claimed (id, attempt) USING (id, attempt)
        WHERE t.state = 'running' ORDER BY t.id FOR UPDATE OF t
    )
"""


# Of a task `w`: others who want the same wait for it. Of a task `t`: it does.
AT_WORK = "w.state = 'running' AND w.recipe_attempt = w.attempt"
WAITS = "t.state = 'queued' AND t.recipe IS NOT NULL AND t.recipe_attempt IS NULL"


@dataclass(frozen=True)
class Claim:
    """The right to end one task, until its lease runs out or somebody takes it over.

    `attempt` fences; `spent` attempts count against the limit; `path` is relative to the volume; `queue_ms` is the
    time from submission to this claim; `traceparent` (W3C) is that of the request that submitted it. `alone`: a worker
    died while it held the task, which may be why, so nothing else is to be at stake while it runs. `fault`: its bytes
    are quarantined, `corrupt` or `missing`; there is nothing to read. `recipe`: under which its result is kept in the
    cache, and its twins wait for it; None: it has nothing to do with the cache."""

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
    recipe: bytes | None


@dataclass(frozen=True)
class Ended:
    """What became of a task without its being worked on: `queued` again, `failed` for good, or `succeeded`, with an
    answer from the cache."""

    task_id: UUID
    job_id: UUID
    pool: str
    priority: Priority
    state: str


@dataclass(frozen=True)
class Claimed:
    """`claims` are this worker's to run now. `ended`: answered from the cache, or failed, their last attempt having
    died with another worker. `refused`: a twin of theirs runs; `look_again` at them."""

    claims: list[Claim]
    ended: list[Ended]
    refused: list[UUID]


@dataclass(frozen=True)
class Success:
    """A task has ended with its result. `awaited`: twins of it may wait for an answer; `finished`: its job, of which it
    was the only one, ended with it. Others are finished after the commit."""

    awaited: bool
    finished: bool


@dataclass(frozen=True)
class Offer:
    """A message that names a task. `redelivered`: somebody received it before and never settled it."""

    task_id: UUID
    redelivered: bool


class Tasks:
    """`lease_seconds`: how long a silent worker keeps its tasks, and a task waits for a twin of which nothing is heard;
    `max_attempts`: tries before a task fails; `computes`: what a worker claims for. Without it, a claim knows no cache.

    Claims are statements of their own (see `Database.statements`): one may have to be made twice."""

    def __init__(
        self, *, lease_seconds: float = 30.0, max_attempts: int = 3, computes: Computation | None = None
    ) -> None:
        self.lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._computes = computes

    async def claim_next(
        self, transaction: Transaction, *, pool: str, priority: Priority, worker: str, limit: int
    ) -> Claimed:
        """Up to `limit` queued tasks of the pool: the tenants in turn, each one's oldest
        first. Never waits for a lock."""
        return await self._claim(
            transaction,
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
                "pool": pool,
                "worker": worker,
                "class": priority.value,
                "limit": limit,
                "candidates": 4 * limit + 16,
                "busy": [],
            },
        )

    async def claim(self, transaction: Transaction, offers: Sequence[Offer], *, pool: str, worker: str) -> Claimed:
        """Of the offered tasks, the claims in the order of the offers. The messages of all others are void.

        A redelivered task is taken over at once where the worker that held it is gone; where it lives, it has only
        lost its queue, and goes on."""
        lost = [offer.task_id for offer in offers if offer.redelivered]
        ended = []
        if lost:
            condition = f"t.id = ANY (%(lost)s) AND t.pool = %(pool)s AND NOT {HOLDS_ITS_NAME}"
            ended = await self._take_back(transaction, condition, {"lost": lost, "pool": pool})
        claimed = await self._claim(
            transaction,
            f"""
            WITH next AS MATERIALIZED (
                SELECT t.id, t.class, t.tenant_id FROM wharf.tasks t
                WHERE t.id = ANY (%(offered)s) AND t.pool = %(pool)s AND t.state = 'queued' AND t.not_before <= now()
                  AND {JOB_IS_OPEN} AND {POOL_RUNS}
                ORDER BY t.id FOR UPDATE OF t
            ),
            {CLAIM}
            """,
            {"pool": pool, "worker": worker, "offered": [offer.task_id for offer in offers]},
        )
        claims = {claim.task_id: claim for claim in claimed.claims}
        in_order = dict.fromkeys(offer.task_id for offer in offers)
        return Claimed(
            [claims[task] for task in in_order if task in claims],
            claimed.ended + [one for one in ended if one.state == "failed"],
            claimed.refused,
        )

    async def look_again(self, transaction: Transaction, refused: Sequence[UUID]) -> list[Ended]:
        """For tasks that a claim has refused, each of the statements by itself: what became of those whose twin has
        ended just then. The others wait."""
        # Who is about to end a twin holds its row, and may not have seen that anybody waits.
        await transaction.execute(
            f"""
            SELECT w.id FROM wharf.tasks w JOIN wharf.tasks t USING (sha256, tenant_id, recipe)
            WHERE t.id = ANY (%s) AND {AT_WORK} ORDER BY w.id FOR SHARE OF w
            """,
            [list(refused)],
        )
        answered = await transaction.execute(
            f"""
            WITH twins AS MATERIALIZED (
                SELECT t.id, t.recipe FROM wharf.tasks t JOIN wharf.cached_results c USING (sha256, tenant_id, recipe)
                WHERE t.id = ANY (%s) AND {WAITS} AND {JOB_IS_OPEN} ORDER BY t.id FOR UPDATE OF t
            ),
            {ANSWER}
            """,
            [list(refused)],
        )
        again = await transaction.execute(
            f"""
            WITH twins AS MATERIALIZED (
                SELECT t.id FROM wharf.tasks t WHERE t.id = ANY (%s) AND {WAITS} AND (
                    SELECT true FROM wharf.tasks w
                    WHERE w.sha256 = t.sha256 AND w.tenant_id = t.tenant_id AND w.recipe = t.recipe AND {AT_WORK}
                    LIMIT 1) IS NULL
                ORDER BY t.id FOR UPDATE OF t
            )
            UPDATE wharf.tasks t SET not_before = now(), recipe = NULL FROM twins WHERE t.id = twins.id
            RETURNING {ENDED}
            """,
            [list(refused)],
        )
        return [_ended(row) for row in (*await answered.fetchall(), *await again.fetchall())]

    async def answer_twins(self, transaction: Transaction, claim: Claim, *, limit: int) -> list[Ended]:
        """Once its success is committed: ends up to `limit` queued tasks that want the same."""
        answered = await transaction.execute(
            f"""
            WITH twins AS MATERIALIZED (
                SELECT t.id, %(recipe)s::bytea AS recipe
                FROM wharf.cached_results c JOIN wharf.tasks t USING (sha256, tenant_id)
                JOIN wharf.jobs j ON j.id = t.job_id
                WHERE c.sha256 = %(sha256)s AND c.tenant_id = %(tenant)s AND c.recipe = %(recipe)s
                  AND t.state = 'queued' AND t.pool = c.model AND {JOB_IS_OPEN}
                  AND j.cache AND j.parameters = (SELECT parameters FROM wharf.jobs WHERE id = %(job)s)
                ORDER BY t.id LIMIT %(limit)s FOR UPDATE OF t
            ),
            {ANSWER}
            """,
            {
                "sha256": claim.sha256,
                "tenant": claim.tenant_id,
                "recipe": claim.recipe,
                "job": claim.job_id,
                "limit": limit,
            },
        )
        return [_ended(row) for row in await answered.fetchall()]

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
    ) -> Success | None:
        """Ends the task with its result, which is kept in the cache too where the claim has a recipe. `verified`: the
        SHA-256 of what was decoded was compared. None: somebody else ended or took it, and nothing was changed."""
        ended = await transaction.execute(
            f"""
            WITH ended AS (
                UPDATE wharf.tasks t
                SET state = 'succeeded', lease_until = NULL, ended_at = now(), error_code = NULL, error_detail = NULL
                WHERE t.id = %(task)s AND t.attempt = %(attempt)s AND t.state = 'running' AND {JOB_IS_OPEN}
                RETURNING t.id, t.job_id, t.tenant_id, t.attempt, t.sha256, t.pool
            ),
            finished AS ({FINISH_OF_ONE}),
            kept AS ({KEEP}),
            stored AS (
                INSERT INTO wharf.results
                    (task_id, tenant_id, attempt, model, model_version, model_digest, engine, engine_version, verified,
                     detections, timings)
                SELECT id, tenant_id, attempt, %(model)s, %(version)s, %(digest)s, %(engine)s, %(engine_version)s,
                    %(verified)s, %(detections)s, %(timings)s
                FROM ended
            )
            SELECT %(recipe)s::bytea IS NOT NULL AND (
                SELECT true FROM wharf.tasks q
                WHERE q.sha256 = e.sha256 AND q.tenant_id = e.tenant_id AND q.state = 'queued' AND q.pool = e.pool
                LIMIT 1) IS NOT NULL AS awaited,
                (SELECT true FROM finished) IS NOT NULL AS finished
            FROM ended e
            """,
            {
                "recipe": claim.recipe,
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
        row = await ended.fetchone()
        return None if row is None else Success(row["awaited"], row["finished"])

    async def fail(self, transaction: Transaction, claim: Claim, *, code: str, detail: str) -> bool:
        """Ends the task for good: it ran and failed. `code` is one of `custody.errors`. False: somebody else ended or
        took it, and nothing was changed."""
        return await self._end_without_result(transaction, claim, "failed", code, detail)

    async def refuse(self, transaction: Transaction, claim: Claim, *, code: str, detail: str) -> bool:
        """Ends the task for good: its input can never work. False as in `fail`."""
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

    async def _claim(self, transaction: Transaction, statement: str, values: dict[str, object]) -> Claimed:
        # A twin may have been claimed between what the statement saw and what it did: it sees that the next time.
        # Without the cache there is nothing that it could meet.
        for computes in (self._computes, self._computes):
            try:
                return await self._claim_once(transaction, statement, values, computes)
            except UniqueViolation:
                continue
        return await self._claim_once(transaction, statement, values, None)

    async def _claim_once(
        self, transaction: Transaction, statement: str, values: dict[str, object], computes: Computation | None
    ) -> Claimed:
        found = await transaction.execute(
            statement,
            {
                **values,
                "lease": self.lease_seconds,
                "digest": computes and computes.digest,
                "pipeline": computes and computes.pipeline,
            },
        )
        rows = await found.fetchall()
        return Claimed(
            [_claim(row) for row in rows if row["state"] == "running"],
            [_ended(row) for row in rows if row["state"] == "succeeded"],
            [row["id"] for row in rows if row["state"] == "queued"],
        )

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
        recipe=row["recipe"],
    )


def _ended(row: DictRow) -> Ended:
    return Ended(row["id"], row["job_id"], row["pool"], Priority(row["class"]), row["state"])
