"""Jobs: submission, what a user sees of them, and the statements that write `jobs.state`: the finish, the early end by
a cancel or a deadline, and the finish of a job of one task, which is a part of that task's end."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import DictRow
from psycopg.types.json import Json, Jsonb

from custody import models
from custody.cache import ADD_ANSWERS
from custody.database import Transaction
from custody.errors import CustodyError
from custody.ids import new_id
from custody.pools import WORKER_SILENT_SECONDS
from custody.wire import (
    Detection,
    EngineReference,
    File,
    InputError,
    InputResult,
    Job,
    JobState,
    ModelReference,
    Parameters,
    Priority,
    Progress,
    Timings,
)

INLINE_RESULTS = 100
"""A job of up to so many inputs carries its results, unless their detections are larger than `PAGE_BYTES`."""

PAGE_BYTES = 4 << 20
"""Of detections in one answer: some 30,000 boxes, or a thousand masks. The page that passes it ends there."""

COUNT_AGAIN_SECONDS = 1.0
"""An open job's progress is counted at most this often, however many watch it."""

COLUMNS = """
    j.id, j.state, j.model, j.parameters, j.priority, j.metadata, j.total, j.done, j.failed, j.created_at,
    j.finished_at, j.expires_at, j.rerun_of
"""

COUNTED = """
    count(*) FILTER (WHERE t.state = 'succeeded')::int AS done,
    count(*) FILTER (WHERE t.state IN ('failed', 'unprocessable'))::int AS failed,
    count(*) FILTER (WHERE t.attempt > t.spared)::int AS begun
"""

# The tasks of a job that was ended early follow it a moment later, and none of them ends otherwise meanwhile.
SEEN_STATE = """
    CASE WHEN j.state <> 'open' AND t.state IN ('queued', 'running') THEN 'cancelled' ELSE t.state END
"""

READY_WORKERS = f"""
    (SELECT count(*)::int FROM wharf.workers w
     WHERE w.pool = j.model AND w.seen_at > now() - make_interval(secs => {WORKER_SILENT_SECONDS}))
"""

RESULT = """
    page.input, page.input_state, page.file_id, page.filename, page.sha256, page.width, page.height, page.attempts,
    page.error_code, page.error_detail, page.purged_at, page.result_model, page.model_version, page.model_digest,
    page.engine, page.engine_version, page.verified, page.detections, page.timings, page.cached
"""

# Of the job `j`, in the order of the inputs, unless it has more than %(most)s of them.
RESULTS = f"""
    SELECT {RESULT} FROM (
        SELECT t.input, {SEEN_STATE} AS input_state, t.file_id, t.filename, t.sha256, t.width, t.height,
               t.attempt - t.spared AS attempts, t.error_code, t.error_detail, t.purged_at,
               r.model AS result_model, r.model_version, r.model_digest, r.engine, r.engine_version, r.verified,
               r.detections, r.timings, r.cached,
               sum(octet_length(r.detections::text)) OVER (
                   ORDER BY t.input ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
        FROM wharf.tasks t
        LEFT JOIN wharf.results r ON r.task_id = t.id
        WHERE t.job_id = j.id AND j.total <= coalesce(%(most)s, j.total) AND t.input > %(after)s
        ORDER BY t.input LIMIT %(limit)s
    ) page WHERE coalesce(page.bytes_before, 0) < %(page_bytes)s
"""

TASK_FIELDS = {"id", "filename", "sha256", "size", "media_type", "width", "height", "orientation"}
"""Of its file, what a task has too: it outlives the file."""

# No NOT EXISTS: the planner would read all tasks of the job for it, at each task's end.
NO_TASK_IS_OPEN = """
    (SELECT true FROM wharf.tasks t WHERE t.job_id = j.id AND t.state IN ('queued', 'running') LIMIT 1) IS NULL
"""


# With the end `ended` of a job's only task: no other one could see this one open.
FINISH_OF_ONE = """
    UPDATE wharf.jobs j SET state = 'succeeded', done = 1, failed = 0, finished_at = now()
    FROM ended WHERE j.id = ended.job_id AND j.total = 1 AND j.state = 'open' RETURNING j.id
"""


@dataclass(frozen=True)
class _Count:
    done: int
    failed: int
    begun: int
    at: float


@dataclass(frozen=True)
class Submitted:
    """`answered`: so many of its inputs, from the cache."""

    job_id: UUID
    answered: int


class Jobs:
    def __init__(self) -> None:
        self._counts: dict[UUID, _Count] = {}

    async def submit(
        self,
        transaction: Transaction,
        tenant: UUID,
        *,
        model: str,
        files: Sequence[File],
        parameters: Parameters,
        priority: Priority,
        metadata: Mapping[str, Any],
        expires_in: float | None = None,
        traceparent: str | None = None,
        job_id: UUID | None = None,
        cache: bool = False,
    ) -> Submitted:
        """The job and its tasks, one for each file. The caller holds the files' bytes in this transaction.
        `expires_in`: seconds to the job's deadline; `traceparent` (W3C): that of the request; `job_id`: a new one,
        for whoever waits for the job from before it is there; `cache`: its inputs may be answered from the cache, and
        what they give is kept there. Where all are answered, the job has succeeded."""
        job_id = job_id or new_id()
        submitted = await transaction.execute(
            f"""
            WITH current AS MATERIALIZED (
                SELECT wharf.recipe(m.name, m.digest, m.pipeline, %(parameters)s) AS recipe FROM wharf.models m
                WHERE %(cache)s AND m.name = %(model)s AND m.state = 'active' ORDER BY m.version DESC LIMIT 1
            ),
            wanted AS MATERIALIZED (
                SELECT w.task, w.input, w.id, w.filename, decode(w.sha256, 'hex') AS sha256, w.size, w.media_type,
                    w.width, w.height, w.orientation, known.recipe
                FROM json_to_recordset(%(tasks)s) AS w (task uuid, input int, id uuid, filename text, sha256 text,
                    size bigint, media_type text, width int, height int, orientation smallint)
                -- By its key, one by one: as a join, the planner may read all that the tenant's cache has.
                LEFT JOIN LATERAL (
                    SELECT c.recipe FROM wharf.cached_results c
                    WHERE c.sha256 = decode(w.sha256, 'hex') AND c.tenant_id = %(tenant)s
                      AND c.recipe = (SELECT recipe FROM current) LIMIT 1
                ) known ON true
            ),
            job AS (
                INSERT INTO wharf.jobs
                    (id, tenant_id, model, parameters, priority, metadata, total, expires_at, traceparent, cache,
                     state, done, failed, finished_at)
                SELECT %(job)s, %(tenant)s, %(model)s, %(parameters)s, %(priority)s, %(metadata)s, %(total)s,
                    now() + make_interval(secs => %(expires_in)s::float8), %(traceparent)s, %(cache)s,
                    CASE WHEN every.known THEN 'succeeded' ELSE 'open' END, CASE WHEN every.known THEN %(total)s END,
                    CASE WHEN every.known THEN 0 END, CASE WHEN every.known THEN now() END
                FROM (SELECT bool_and(recipe IS NOT NULL) AS known FROM wanted) every
            ),
            added AS (
                INSERT INTO wharf.tasks (id, tenant_id, job_id, pool, class, input,
                    file_id, filename, sha256, size, media_type, width, height, orientation, recipe, state, ended_at)
                SELECT w.task, %(tenant)s, %(job)s, %(model)s, %(priority)s, w.input,
                    w.id, w.filename, w.sha256, w.size, w.media_type, w.width, w.height, w.orientation, w.recipe,
                    CASE WHEN w.recipe IS NULL THEN 'queued' ELSE 'succeeded' END,
                    CASE WHEN w.recipe IS NOT NULL THEN now() END
                FROM wanted w
                RETURNING id, tenant_id, attempt, recipe
            ),
            answered AS (SELECT id, tenant_id, attempt FROM added WHERE recipe IS NOT NULL),
            answers AS ({ADD_ANSWERS})
            SELECT count(recipe)::int AS answered FROM wanted
            """,
            {
                "job": job_id,
                "tenant": tenant,
                "model": model,
                "parameters": Jsonb(parameters.model_dump()),
                "priority": priority.value,
                "metadata": Jsonb(dict(metadata)),
                "total": len(files),
                "expires_in": expires_in,
                "traceparent": traceparent,
                "cache": cache,
                "tasks": Json([_task(number, file) for number, file in enumerate(files)]),
            },
        )
        row = await submitted.fetchone()
        assert row is not None
        return Submitted(job_id, row["answered"])

    async def repeat(
        self, transaction: Transaction, original: UUID, inputs: Sequence[int], *, traceparent: str | None = None
    ) -> UUID:
        """A new job on these inputs of the original, numbered from 0 in this order, with its model, parameters,
        priority and metadata, and without a deadline. The caller holds the inputs' bytes in this transaction."""
        job_id = new_id()
        await transaction.execute(
            """
            INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, metadata, total, traceparent, rerun_of)
            SELECT %s, tenant_id, model, parameters, priority, metadata, %s, %s, id FROM wharf.jobs WHERE id = %s
            """,
            [job_id, len(inputs), traceparent, original],
        )
        added = await transaction.execute(
            """
            INSERT INTO wharf.tasks (id, tenant_id, job_id, pool, class, input,
                file_id, filename, sha256, size, media_type, width, height, orientation)
            SELECT n.task_id, t.tenant_id, %(job)s, t.pool, t.class, n.number - 1,
                t.file_id, t.filename, t.sha256, t.size, t.media_type, t.width, t.height, t.orientation
            FROM unnest(%(tasks)s::uuid[], %(inputs)s::int[]) WITH ORDINALITY AS n (task_id, input, number)
            JOIN wharf.tasks t ON t.job_id = %(original)s AND t.input = n.input
            """,
            {"job": job_id, "original": original, "tasks": [new_id() for _ in inputs], "inputs": list(inputs)},
        )
        if added.rowcount != len(inputs):
            raise CustodyError("not_found", "The job was removed meanwhile.")
        return job_id

    async def get(self, transaction: Transaction, job_id: UUID) -> Job | None:
        found = await transaction.execute(
            f"""
            SELECT {COLUMNS}, {RESULT}, CASE WHEN j.state = 'open' THEN {READY_WORKERS} END AS ready_workers
            FROM wharf.jobs j LEFT JOIN LATERAL ({RESULTS}) page ON true
            WHERE j.id = %(job)s ORDER BY page.input
            """,
            {"job": job_id, "most": INLINE_RESULTS, "after": -1, "limit": INLINE_RESULTS, "page_bytes": PAGE_BYTES},
        )
        rows = await found.fetchall()
        if not rows:
            return None
        job = rows[0]
        if job["input"] is None or len(rows) < job["total"]:
            counts = await self._count(transaction, [job])
            return _job(job, counts[job_id], job["ready_workers"], None)
        results = [_result(row) for row in rows]
        return _job(job, _counted(job, results), job["ready_workers"], results)

    async def total(self, transaction: Transaction, job_id: UUID) -> int | None:
        """How many inputs it has; None where the tenant has no such job."""
        found = await transaction.execute("SELECT total FROM wharf.jobs WHERE id = %s", [job_id])
        row = await found.fetchone()
        return None if row is None else int(row["total"])

    async def page(
        self,
        transaction: Transaction,
        *,
        before: UUID | None,
        limit: int,
        state: JobState | None = None,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Job]:
        """Newest first, without results; `before`: the last id of the page before; `metadata`: pairs it contains."""
        found = await transaction.execute(
            f"""
            SELECT {COLUMNS} FROM wharf.jobs j
            WHERE (%(before)s::uuid IS NULL OR j.id < %(before)s)
              AND (%(state)s::text IS NULL OR j.state = %(state)s)
              AND (%(begun)s::boolean IS NULL OR %(begun)s = EXISTS (
                    SELECT FROM wharf.tasks t WHERE t.job_id = j.id AND t.attempt > t.spared))
              AND (%(model)s::text IS NULL OR j.model = %(model)s)
              AND (%(metadata)s::jsonb IS NULL OR j.metadata @> %(metadata)s)
            ORDER BY j.id DESC LIMIT %(limit)s
            """,
            {
                "before": before,
                "state": None if state is None else state.value if state.ended else "open",
                "begun": None if state is None or state.ended else state is JobState.RUNNING,
                "model": model,
                "metadata": None if metadata is None else Jsonb(dict(metadata)),
                "limit": limit,
            },
        )
        rows = await found.fetchall()
        counts = await self._count(transaction, rows)
        workers = await _ready_workers(transaction, rows)
        return [_job(row, counts[row["id"]], workers.get(row["model"], 0), None) for row in rows]

    async def results(
        self, transaction: Transaction, job_id: UUID, *, after: int | None, limit: int
    ) -> list[InputResult]:
        """In the order of the inputs; `after`: the last input of the page before. A page ends before `limit` where its
        detections would pass `PAGE_BYTES`, but has one result at least."""
        found = await transaction.execute(
            f"""
            SELECT {RESULT}, j.parameters FROM wharf.jobs j CROSS JOIN LATERAL ({RESULTS}) page
            WHERE j.id = %(job)s ORDER BY page.input
            """,
            {
                "job": job_id,
                "most": None,
                "after": -1 if after is None else after,
                "limit": limit,
                "page_bytes": PAGE_BYTES,
            },
        )
        return [_result(row) for row in await found.fetchall()]

    async def cancel(self, transaction: Transaction, job_id: UUID) -> bool:
        """True where this call ended the job. Its tasks follow in a transaction of their own: see `freeze`."""
        return await self._end_early(transaction, job_id, JobState.CANCELLED)

    async def expire(self, transaction: Transaction, job_id: UUID) -> bool:
        """Ends a job of `overdue`. As `cancel`, but for the state."""
        return await self._end_early(transaction, job_id, JobState.EXPIRED)

    async def finish(self, transaction: Transaction, job_id: UUID) -> bool:
        """Ends the job if none of its tasks is open. Call it after the commit of a task's end: inside, the last two
        tasks would each see the other one open. True where this call ended it."""
        changed = await transaction.execute(
            f"""
            UPDATE wharf.jobs j
            SET (state, done, failed, finished_at) = (
                SELECT CASE WHEN count(*) FILTER (WHERE t.state = 'succeeded') = j.total
                            THEN 'succeeded' ELSE 'failed' END,
                       count(*) FILTER (WHERE t.state = 'succeeded'),
                       count(*) FILTER (WHERE t.state IN ('failed', 'unprocessable')), now()
                FROM wharf.tasks t WHERE t.job_id = j.id)
            WHERE j.id = %s AND j.state = 'open' AND {NO_TASK_IS_OPEN}
            """,
            [job_id],
        )
        return changed.rowcount == 1

    async def freeze(self, transaction: Transaction, job_id: UUID) -> None:
        """Writes down the last count of a job that was ended early, once its tasks have followed."""
        await transaction.execute(
            f"""
            UPDATE wharf.jobs j SET (done, failed) = (
                SELECT done, failed FROM (SELECT {COUNTED} FROM wharf.tasks t WHERE t.job_id = j.id) counted)
            WHERE j.id = %s AND j.state <> 'open' AND j.done IS NULL
            """,
            [job_id],
        )

    async def may_look(self, transaction: Transaction) -> bool:
        """Until the transaction ends, only one process looks for jobs to mend: all would find the same ones."""
        found = await transaction.execute("SELECT pg_try_advisory_xact_lock(hashtext('wharf.reconcile')) AS alone")
        row = await found.fetchone()
        assert row is not None
        return bool(row["alone"])

    async def unfinished(self, transaction: Transaction, *, limit: int = 500) -> list[UUID]:
        """Open jobs without an open task: somebody died between a task's end and the finish."""
        found = await transaction.execute(
            f"""
            SELECT j.id FROM wharf.jobs j WHERE j.state = 'open' AND {NO_TASK_IS_OPEN}
            ORDER BY j.id LIMIT %s
            """,
            [limit],
        )
        return [row["id"] for row in await found.fetchall()]

    async def unfrozen(self, transaction: Transaction, *, limit: int = 500) -> list[UUID]:
        """Jobs ended early whose tasks have not followed yet."""
        found = await transaction.execute(
            "SELECT id FROM wharf.jobs WHERE state <> 'open' AND done IS NULL ORDER BY id LIMIT %s", [limit]
        )
        return [row["id"] for row in await found.fetchall()]

    async def overdue(self, transaction: Transaction, *, limit: int = 500) -> list[UUID]:
        """Open jobs whose deadline has passed while a task is open; where none is, the finish is on its way."""
        found = await transaction.execute(
            f"""
            SELECT j.id FROM wharf.jobs j
            WHERE j.state = 'open' AND j.expires_at <= now() AND NOT {NO_TASK_IS_OPEN}
            ORDER BY j.expires_at LIMIT %s
            """,
            [limit],
        )
        return [row["id"] for row in await found.fetchall()]

    async def _end_early(self, transaction: Transaction, job_id: UUID, state: JobState) -> bool:
        changed = await transaction.execute(
            "UPDATE wharf.jobs SET state = %s, finished_at = now() WHERE id = %s AND state = 'open'",
            [state.value, job_id],
        )
        return changed.rowcount == 1

    async def _count(self, transaction: Transaction, jobs: Sequence[DictRow]) -> Mapping[UUID, _Count]:
        """What is frozen, what was counted a moment ago, and the rest counted now."""
        now = time.monotonic()
        self._counts = {job: count for job, count in self._counts.items() if now - count.at < COUNT_AGAIN_SECONDS}
        ended = [job for job in jobs if job["done"] is not None]
        frozen = {job["id"]: _Count(job["done"], job["failed"], job["total"], now) for job in ended}
        moving = [job["id"] for job in jobs if job["id"] not in frozen and job["id"] not in self._counts]
        if moving:
            found = await transaction.execute(
                f"SELECT t.job_id, {COUNTED} FROM wharf.tasks t WHERE t.job_id = ANY (%s) GROUP BY t.job_id", [moving]
            )
            for row in await found.fetchall():
                self._counts[row["job_id"]] = _Count(row["done"], row["failed"], row["begun"], now)
        return {**self._counts, **frozen}


async def _ready_workers(transaction: Transaction, jobs: Sequence[DictRow]) -> Mapping[str, int]:
    """By model, of the open ones among these jobs."""
    open_models = {job["model"] for job in jobs if job["state"] == "open"}
    return await models.ready_workers(transaction, open_models) if open_models else {}


def _counted(job: DictRow, results: Sequence[InputResult]) -> _Count:
    """As they stand in the results of all its inputs, or were frozen."""
    if job["done"] is not None:
        return _Count(job["done"], job["failed"], job["total"], 0)
    states = Counter(result.state for result in results)
    return _Count(
        states["succeeded"],
        states["failed"] + states["unprocessable"],
        sum(result.attempts > 0 for result in results),
        0,
    )


def _job(row: DictRow, count: _Count, ready_workers: int, results: list[InputResult] | None) -> Job:
    is_open = row["state"] == "open"
    open_state = JobState.RUNNING if count.begun else JobState.QUEUED
    return Job(
        id=row["id"],
        state=open_state if is_open else JobState(row["state"]),
        model=row["model"],
        parameters=Parameters(**row["parameters"]),
        priority=Priority(row["priority"]),
        metadata=row["metadata"],
        progress=Progress(done=count.done, failed=count.failed, total=row["total"]),
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        expires_at=row["expires_at"],
        rerun_of=row["rerun_of"],
        ready_workers=ready_workers if is_open else None,
        results=results,
    )


def _task(number: int, file: File) -> dict[str, Any]:
    described = file.model_dump(mode="json", include=TASK_FIELDS)
    return {"task": str(new_id()), "input": number, **described}


def _result(row: DictRow) -> InputResult:
    model = engine = timings = detections = error = None
    if row["result_model"] is not None:
        model = ModelReference(name=row["result_model"], version=row["model_version"], digest=row["model_digest"].hex())
        if row["engine"] is not None:
            engine = EngineReference(name=row["engine"], version=row["engine_version"])
        detections = [Detection(**detection) for detection in row["detections"]]
        timings = Timings(**row["timings"])
    if row["input_state"] in ("failed", "unprocessable"):
        error = InputError(code=row["error_code"], detail=row["error_detail"])
    return InputResult(
        input=row["input"],
        state=row["input_state"],
        file_id=row["file_id"],
        filename=row["filename"],
        sha256=row["sha256"].hex(),
        width=row["width"],
        height=row["height"],
        attempts=row["attempts"],
        model=model,
        engine=engine,
        verified=row["verified"],
        parameters=Parameters(**row["parameters"]),
        detections=detections,
        timings=timings,
        cached=bool(row["cached"]),
        error=error,
        purged_at=row["purged_at"],
    )
