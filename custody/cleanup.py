"""What nobody needs any more: how it is found, and how its rows go. Of every step there are two statements or three:
one finds candidates, without a lock; the next, in a transaction of its own, locks those that nobody else has; the last
tests and acts, and sees all that was committed before the locks were had. As one statement it would act on a snapshot
older than its locks.

`custody/removal` does the same for the bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from custody.database import Transaction
from custody.errors import CustodyError
from custody.ids import new_id

FAILURES = (psycopg.Error, CustodyError)
"""What a step may raise for some of its candidates while the others are well."""

LOOK_AGAIN = timedelta(minutes=1)
"""For bytes that only a task, or a file on its way out, refers to."""

RUNS_KEPT = timedelta(days=90)

# No EXISTS: the planner may turn that into a look at the whole table.
NO_OPEN_TASK = """
    (SELECT true FROM wharf.tasks t WHERE t.sha256 = {sha256} AND t.state IN ('queued', 'running') LIMIT 1) IS NULL
"""
NO_FILE = "(SELECT true FROM wharf.files f WHERE f.sha256 = {sha256} LIMIT 1) IS NULL"
NO_LIVE_FILE = "(SELECT true FROM wharf.files f WHERE f.sha256 = {sha256} AND f.deleted_at IS NULL LIMIT 1) IS NULL"
JOB_HAS_ENDED = """
    (SELECT true FROM wharf.tasks t WHERE t.job_id = j.id AND t.state IN ('queued', 'running') LIMIT 1) IS NULL
"""
GOING = "(f.deleted_at IS NOT NULL OR (NOT f.pinned AND f.expires_at <= now()))"


@dataclass(frozen=True)
class Retention:
    """How long a tenant's things are kept where it has not said so itself."""

    files: timedelta
    jobs: timedelta


@dataclass
class Run:
    """One cleanup, as its history tells it. `stopped`: `done`, out of `time`, `asked` to stop, `error`, `killed`; None
    while it runs. `swept_to`: folders of the volume that the orphan sweep has seen; None where none was begun.
    `under_pressure`: it ran because the volume was nearly full."""

    id: UUID = field(default_factory=new_id)
    started_at: datetime | None = None
    ended_at: datetime | None = None
    stopped: str | None = None
    without_grace: bool = False
    under_pressure: bool = False
    expired_files: int = 0
    expired_jobs: int = 0
    removed_blobs: int = 0
    freed_bytes: int = 0
    staging: int = 0
    orphans: int = 0
    missing: int = 0
    errors: int = 0
    first_errors: list[str] = field(default_factory=list)
    swept_to: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            name: value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, UUID) else value
            for name, value in asdict(self).items()
        }


RUN = ", ".join(column.name for column in fields(Run))


@dataclass(frozen=True)
class Plan:
    """What a cleanup would do now."""

    expired_files: int
    expired_jobs: int
    removed_blobs: int
    freed_bytes: int


# The history


async def begin_run(transaction: Transaction, run: Run) -> datetime:
    """Gives when it began. Those of former cleanups that have no end were killed: no two run at a time."""
    await transaction.execute("UPDATE wharf.cleanup_runs SET stopped = 'killed' WHERE stopped IS NULL")
    await transaction.execute("DELETE FROM wharf.cleanup_runs WHERE started_at < now() - %s", [RUNS_KEPT])
    begun = await transaction.execute(
        "INSERT INTO wharf.cleanup_runs (id, without_grace, under_pressure) VALUES (%s, %s, %s) RETURNING started_at",
        [run.id, run.without_grace, run.under_pressure],
    )
    row = await begun.fetchone()
    assert row is not None
    began: datetime = row["started_at"]
    return began


async def save_run(transaction: Transaction, run: Run) -> None:
    """How far it is, or, where `stopped` is set, how and when it ended."""
    saved = await transaction.execute(
        """
        UPDATE wharf.cleanup_runs SET
            ended_at = CASE WHEN %(stopped)s::text IS NOT NULL THEN now() END, stopped = %(stopped)s,
            expired_files = %(expired_files)s, expired_jobs = %(expired_jobs)s, removed_blobs = %(removed_blobs)s,
            freed_bytes = %(freed_bytes)s, staging = %(staging)s, orphans = %(orphans)s, missing = %(missing)s,
            errors = %(errors)s, first_errors = %(first_errors)s, swept_to = %(swept_to)s
        WHERE id = %(id)s RETURNING ended_at
        """,
        {**asdict(run), "first_errors": Jsonb(run.first_errors)},
    )
    row = await saved.fetchone()
    run.ended_at = row["ended_at"] if row else None


async def list_runs(transaction: Transaction, limit: int) -> list[Run]:
    """The newest first."""
    found = await transaction.execute(f"SELECT {RUN} FROM wharf.cleanup_runs ORDER BY id DESC LIMIT %s", [limit])
    return [Run(**row) for row in await found.fetchall()]


async def last_sweep(transaction: Transaction) -> Run | None:
    found = await transaction.execute(
        f"SELECT {RUN} FROM wharf.cleanup_runs WHERE swept_to IS NOT NULL ORDER BY id DESC LIMIT 1"
    )
    row = await found.fetchone()
    return None if row is None else Run(**row)


# Files


async def find_undated(transaction: Transaction, after: DictRow | None, limit: int) -> list[DictRow]:
    return await _rows(
        transaction,
        f"""
        SELECT id FROM wharf.files WHERE expires_at IS NULL AND deleted_at IS NULL AND NOT pinned
        {"AND id > %(id)s" if after else ""} ORDER BY id LIMIT %(limit)s
        """,
        {**(after or {}), "limit": limit},
    )


async def date_files(transaction: Transaction, files: Sequence[UUID], retention: Retention) -> None:
    """Files of an older release, which knew no end, are kept from now on for as long as new ones."""
    await transaction.execute(
        """
        WITH undated AS MATERIALIZED (
            SELECT id FROM wharf.files WHERE id = ANY (%s) AND expires_at IS NULL FOR UPDATE SKIP LOCKED
        )
        UPDATE wharf.files f SET expires_at = now() + coalesce(t.file_retention, %s)
        FROM undated u, wharf.tenants t WHERE f.id = u.id AND t.id = f.tenant_id
        """,
        [list(files), retention.files],
    )


async def find_expired(transaction: Transaction, after: DictRow | None, limit: int) -> list[DictRow]:
    return await _rows(
        transaction,
        f"""
        SELECT expires_at, id FROM wharf.files
        WHERE deleted_at IS NULL AND NOT pinned AND expires_at <= now()
        {"AND (expires_at, id) > (%(expires_at)s, %(id)s)" if after else ""} ORDER BY expires_at, id LIMIT %(limit)s
        """,
        {**(after or {}), "limit": limit},
    )


async def find_deleted(transaction: Transaction, after: DictRow | None, limit: int) -> list[DictRow]:
    return await _rows(
        transaction,
        f"""
        SELECT id FROM wharf.files WHERE deleted_at IS NOT NULL
        {"AND id > %(id)s" if after else ""} ORDER BY id LIMIT %(limit)s
        """,
        {**(after or {}), "limit": limit},
    )


async def remove_files(transaction: Transaction, files: Sequence[UUID]) -> int:
    """Takes away the rows of those that are over and have no task that has not ended; gives how many. A tenant's last
    one of some bytes takes along what was cached of them. With the bytes' rows locked nobody adds a task meanwhile.
    What goes is put on the list of suspects by a trigger."""
    locked = await _rows(
        transaction,
        """
        SELECT f.id FROM wharf.files f JOIN wharf.blobs b USING (sha256) WHERE f.id = ANY (%(files)s)
        FOR UPDATE OF f, b SKIP LOCKED
        """,
        {"files": list(files)},
    )
    removed = await _rows(
        transaction,
        f"""
        DELETE FROM wharf.files f
        WHERE f.id = ANY (%(files)s) AND {GOING} AND {NO_OPEN_TASK.format(sha256="f.sha256")}
        RETURNING f.tenant_id, f.sha256
        """,
        {"files": [row["id"] for row in locked]},
    )
    # The tenant could not ask for them any more.
    await transaction.execute(
        """
        DELETE FROM wharf.cached_results c USING unnest(%s::uuid[], %s::bytea[]) gone (tenant_id, sha256)
        WHERE c.sha256 = gone.sha256 AND c.tenant_id = gone.tenant_id AND (
            SELECT true FROM wharf.files f WHERE f.sha256 = c.sha256 AND f.tenant_id = c.tenant_id LIMIT 1) IS NULL
        """,
        [[row["tenant_id"] for row in removed], [row["sha256"] for row in removed]],
    )
    return len(removed)


# Jobs and idempotency keys


async def find_old_jobs(
    transaction: Transaction, after: DictRow | None, limit: int, retention: Retention
) -> list[DictRow]:
    """With the number of their inputs (`total`)."""
    return await _rows(
        transaction,
        f"""
        SELECT j.tenant_id, j.finished_at, j.id, j.total FROM wharf.tenants t CROSS JOIN LATERAL (
            SELECT j.tenant_id, j.finished_at, j.id, j.total FROM wharf.jobs j
            WHERE j.tenant_id = t.id AND j.state <> 'open'
              AND j.finished_at <= now() - coalesce(t.job_retention, %(kept)s)
              {"AND (t.id > %(tenant_id)s OR (j.finished_at, j.id) > (%(finished_at)s, %(id)s))" if after else ""}
            ORDER BY j.finished_at, j.id LIMIT %(limit)s
        ) j
        {"WHERE t.id >= %(tenant_id)s" if after else ""} ORDER BY t.id, j.finished_at, j.id LIMIT %(limit)s
        """,
        {**(after or {}), "limit": limit, "kept": retention.jobs},
    )


async def remove_jobs(transaction: Transaction, jobs: Sequence[UUID]) -> int:
    """Takes away those that have ended to their last task, with tasks, results, and what they or older ones have left
    in the cache; gives how many. What somebody reruns now is left for the next time.

    Jobs are locked before their tasks: a rerun holds the job and waits for its bytes, a purge holds bytes and
    waits for tasks. Whoever held tasks and waited for the job would close the circle."""
    ended = await _rows(
        transaction,
        f"""
        SELECT j.id FROM wharf.jobs j WHERE j.id = ANY (%(jobs)s) AND j.state <> 'open' AND {JOB_HAS_ENDED}
        FOR UPDATE OF j SKIP LOCKED
        """,
        {"jobs": list(jobs)},
    )
    going = [row["id"] for row in ended]
    # In the order of all who lock several tasks, and before their results, as a purge does.
    await transaction.execute("SELECT id FROM wharf.tasks WHERE job_id = ANY (%s) ORDER BY id FOR UPDATE", [going])
    await transaction.execute(
        "DELETE FROM wharf.results r USING wharf.tasks t WHERE t.job_id = ANY (%s) AND r.task_id = t.id", [going]
    )
    await transaction.execute(
        """
        DELETE FROM wharf.cached_results c USING wharf.tasks t
        WHERE t.job_id = ANY (%s) AND c.sha256 = t.sha256 AND c.tenant_id = t.tenant_id AND c.created_at <= t.ended_at
        """,
        [going],
    )
    await transaction.execute("DELETE FROM wharf.tasks WHERE job_id = ANY (%s)", [going])
    removed = await transaction.execute("DELETE FROM wharf.jobs WHERE id = ANY (%s)", [going])
    return removed.rowcount


async def find_old_keys(
    transaction: Transaction, after: DictRow | None, limit: int, retention: Retention
) -> list[DictRow]:
    """Idempotency keys older than whatever they can name."""
    return await _rows(
        transaction,
        f"""
        SELECT created_at, tenant_id, key FROM wharf.idempotency_keys
        WHERE created_at <= now() - (
            SELECT greatest(%(files)s, %(jobs)s, max(file_retention), max(job_retention)) FROM wharf.tenants)
        {"AND (created_at, tenant_id, key) > (%(created_at)s, %(tenant_id)s, %(key)s)" if after else ""}
        ORDER BY created_at, tenant_id, key LIMIT %(limit)s
        """,
        {**(after or {}), "limit": limit, "files": retention.files, "jobs": retention.jobs},
    )


async def remove_keys(transaction: Transaction, keys: Sequence[Mapping[str, Any]]) -> None:
    await transaction.execute(
        """
        DELETE FROM wharf.idempotency_keys k USING unnest(%s::uuid[], %s::text[]) AS old (tenant_id, key)
        WHERE k.tenant_id = old.tenant_id AND k.key = old.key
        """,
        [[row["tenant_id"] for row in keys], [row["key"] for row in keys]],
    )


# Bytes


async def find_suspects(
    transaction: Transaction, after: DictRow | None, limit: int, grace: timedelta | None
) -> list[DictRow]:
    """`grace`: since the last reference went; None: all, also those that were to be looked at later. `since` is text:
    it may be -infinity, which no datetime is."""
    return await _rows(
        transaction,
        f"""
        SELECT since::text, sha256 FROM wharf.suspects s
        WHERE {"true" if grace is None else "since <= now() - %(grace)s AND look_at <= now()"}
        {"AND (s.since, sha256) > (%(since)s::timestamptz, %(sha256)s)" if after else ""}
        ORDER BY s.since, sha256 LIMIT %(limit)s
        """,
        {**(after or {}), "limit": limit, "grace": grace},
    )


async def mark(transaction: Transaction, suspects: Sequence[bytes]) -> int:
    """Turns to `deleting` those that nothing refers to; gives how many. The list is left alone by all whose bytes
    somebody else has locked."""
    listed = await _rows(
        transaction,
        "SELECT sha256 FROM wharf.suspects WHERE sha256 = ANY (%(suspects)s) FOR UPDATE SKIP LOCKED",
        {"suspects": list(suspects)},
    )
    ours = [row["sha256"] for row in listed]
    locked = await _rows(
        transaction,
        "SELECT sha256 FROM wharf.blobs WHERE sha256 = ANY (%(ours)s) ORDER BY sha256 FOR UPDATE SKIP LOCKED",
        {"ours": ours},
    )
    marked = await transaction.execute(
        f"""
        WITH seen AS MATERIALIZED (
            SELECT w.sha256, {NO_LIVE_FILE.format(sha256="w.sha256")} AS let_go,
                   {NO_FILE.format(sha256="w.sha256")} AND {NO_OPEN_TASK.format(sha256="w.sha256")} AS free
            FROM unnest(%(locked)s::bytea[]) w (sha256)
        ),
        -- A live file is no suspect: its own end will make it one. What is in no table of bytes is none either.
        struck_off AS (
            DELETE FROM wharf.suspects s WHERE s.sha256 = ANY (
                SELECT n.sha256 FROM seen n WHERE n.free OR NOT n.let_go
                UNION ALL
                SELECT o.sha256 FROM unnest(%(ours)s::bytea[]) o (sha256)
                WHERE (SELECT true FROM wharf.blobs b WHERE b.sha256 = o.sha256) IS NULL)
        ),
        looked_at_later AS (
            UPDATE wharf.suspects s SET look_at = now() + %(later)s
            FROM seen n WHERE n.let_go AND NOT n.free AND s.sha256 = n.sha256
        )
        UPDATE wharf.blobs b SET state = 'deleting' FROM seen n WHERE n.free AND b.sha256 = n.sha256
        """,
        {"locked": [row["sha256"] for row in locked], "ours": ours, "later": LOOK_AGAIN},
    )
    return marked.rowcount


async def find_deleting(transaction: Transaction, after: DictRow | None, limit: int) -> list[DictRow]:
    return await _rows(
        transaction,
        f"""
        SELECT sha256 FROM wharf.blobs WHERE state = 'deleting'
        {"AND sha256 > %(sha256)s" if after else ""} ORDER BY sha256 LIMIT %(limit)s
        """,
        {**(after or {}), "limit": limit},
    )


async def may_free(transaction: Transaction) -> bool:
    """Whether a cleanup without grace would find anything whose bytes may go."""
    for find in (find_expired, find_deleted, find_deleting, partial(find_suspects, grace=None)):
        if await find(transaction, None, 1):
            return True
    return False


async def lock_deleting(transaction: Transaction, wanted: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Those that may be withdrawn, their rows locked until the transaction ends, and those that something refers to in
    spite of their state, which is an error of somebody's. Whatever else there is waits for the next cleanup."""
    locked = await _rows(
        transaction,
        "SELECT sha256 FROM wharf.blobs WHERE sha256 = ANY (%(wanted)s) ORDER BY sha256 FOR UPDATE SKIP LOCKED",
        {"wanted": list(wanted)},
    )
    seen = await _rows(
        transaction,
        f"""
        SELECT b.sha256, {NO_FILE.format(sha256="b.sha256")} AND {NO_OPEN_TASK.format(sha256="b.sha256")} AS free,
               {NO_LIVE_FILE.format(sha256="b.sha256")} AND {NO_OPEN_TASK.format(sha256="b.sha256")} AS let_go
        FROM wharf.blobs b WHERE b.sha256 = ANY (%(locked)s) AND b.state = 'deleting' ORDER BY b.sha256
        """,
        {"locked": [row["sha256"] for row in locked]},
    )
    return [row["sha256"] for row in seen if row["free"]], [row["sha256"] for row in seen if not row["let_go"]]


async def forget_blobs(transaction: Transaction, gone: Sequence[bytes]) -> None:
    await transaction.execute("DELETE FROM wharf.blobs WHERE sha256 = ANY (%s)", [list(gone)])


async def lock_promised(transaction: Transaction, sha256: bytes) -> bool:
    """Whether somebody may want these bytes back: the row promises them, or they are what a verification missed. It
    is locked until the transaction ends."""
    found = await transaction.execute("SELECT state FROM wharf.blobs WHERE sha256 = %s FOR UPDATE", [sha256])
    row = await found.fetchone()
    return row is not None and row["state"] in ("present", "quarantined")


async def blobs_between(transaction: Transaction, first: bytes, last: bytes) -> dict[bytes, bool]:
    """By sha256, from `first` to `last`: whether the row promises bytes."""
    found = await transaction.execute(
        "SELECT sha256, state = 'present' AS promised FROM wharf.blobs WHERE sha256 BETWEEN %s AND %s", [first, last]
    )
    return {row["sha256"]: row["promised"] for row in await found.fetchall()}


async def still_promised(transaction: Transaction, wanted: Sequence[bytes]) -> list[bytes]:
    found = await transaction.execute(
        "SELECT sha256 FROM wharf.blobs WHERE sha256 = ANY (%s) AND state = 'present' ORDER BY sha256", [list(wanted)]
    )
    return [row["sha256"] for row in await found.fetchall()]


async def adopt_orphans(transaction: Transaction, orphans: Mapping[bytes, int]) -> int:
    """A row that promises nothing for bytes that have none, by sha256 with their sizes; the removal comes to it as to
    any other. Gives how many were new."""
    added = await transaction.execute(
        """
        INSERT INTO wharf.blobs (sha256, size, state)
        SELECT o.sha256, greatest(o.size, 1), 'deleting' FROM unnest(%s::bytea[], %s::bigint[]) o (sha256, size)
        ON CONFLICT (sha256) DO NOTHING
        """,
        [sorted(orphans), [orphans[sha256] for sha256 in sorted(orphans)]],
    )
    return added.rowcount


# What would go


async def plan(transaction: Transaction, retention: Retention, grace: timedelta | None) -> Plan:
    """Counts everything and changes nothing. `grace` as for `find_suspects`."""
    gone = GOING if grace is None else "(f.deleted_at IS NOT NULL)"
    (row,) = await _rows(
        transaction,
        f"""
        WITH over AS MATERIALIZED (
            SELECT f.id, f.sha256 FROM wharf.files f WHERE {GOING} AND {NO_OPEN_TASK.format(sha256="f.sha256")}
        ),
        candidates AS (
            SELECT sha256 FROM wharf.suspects
            WHERE {"true" if grace is None else "since <= now() - %(grace)s AND look_at <= now()"}
            UNION SELECT sha256 FROM wharf.blobs WHERE state = 'deleting'
            {"UNION SELECT sha256 FROM over" if grace is None else ""}
        ),
        free AS (
            SELECT b.size FROM candidates c JOIN wharf.blobs b USING (sha256)
            WHERE {NO_OPEN_TASK.format(sha256="c.sha256")} AND (
                SELECT true FROM wharf.files f WHERE f.sha256 = c.sha256 AND NOT {gone} LIMIT 1) IS NULL
        )
        SELECT (SELECT count(*) FROM over) AS expired_files, (
            SELECT count(*) FROM wharf.jobs j JOIN wharf.tenants t ON t.id = j.tenant_id
            WHERE j.state <> 'open' AND j.finished_at <= now() - coalesce(t.job_retention, %(kept)s)
              AND {JOB_HAS_ENDED}
        ) AS expired_jobs, (SELECT count(*) FROM free) AS removed_blobs,
        (SELECT coalesce(sum(size), 0)::bigint FROM free) AS freed_bytes
        """,
        {"grace": grace, "kept": retention.jobs},
    )
    return Plan(**row)


async def _rows(transaction: Transaction, statement: str, values: Mapping[str, Any]) -> list[DictRow]:
    found = await transaction.execute(statement.encode(), values)
    return await found.fetchall()
