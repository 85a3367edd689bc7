"""What a cleanup reads where there are a million rows of others: as much as there is to do, and no table as a whole."""

import time
from datetime import timedelta

import psycopg

from broker.maintenance.cleanup.cleanup import Cleanup, Rules
from custody.cleanup import Retention
from custody.database import Database
from custody.volume import Volume

ROWS = 1_000_000
DUE = 1_000
"""Of each kind, a thousandth."""

TABLES = ("files", "blobs", "tasks", "jobs", "results", "idempotency_keys")

ENTRIES_FOR_EACH = 40
"""Index entries read for each thing that goes, at most: what a file, its bytes and their checks take."""

FURNISH = (
    "SET session_replication_role = replica",  # No foreign keys: what is written here is whole.
    "INSERT INTO wharf.tenants (id, name) SELECT gen_random_uuid(), 'tenant-' || n FROM generate_series(1, 3) n",
    """
    CREATE UNLOGGED TABLE thing AS
    SELECT n, lpad(to_hex(n), 32, '0')::uuid AS id, decode(lpad(to_hex(n), 64, '0'), 'hex') AS sha256,
           (SELECT array_agg(id) FROM wharf.tenants)[1 + n %% 3] AS tenant_id, n <= %(due)s AS due
    FROM generate_series(1, %(rows)s) n
    """,
    "INSERT INTO wharf.blobs (sha256, size, state) SELECT sha256, 9, 'present' FROM thing",
    """
    INSERT INTO wharf.files (id, tenant_id, sha256, size, media_type, width, height, expires_at)
    SELECT id, tenant_id, sha256, 9, 'image/png', 1, 1,
           now() + CASE WHEN due THEN -1 ELSE 1 END * interval '20 days' FROM thing
    """,
    """
    INSERT INTO wharf.jobs
        (id, tenant_id, model, parameters, priority, total, state, done, failed, finished_at)
    SELECT id, tenant_id, 'digits', '{}', 'batch', 1, 'succeeded', 1, 0,
           now() - CASE WHEN due THEN 100 ELSE 10 END * interval '1 day' FROM thing WHERE n <= %(rows)s / 20
    """,
    """
    INSERT INTO wharf.tasks (id, tenant_id, job_id, input, sha256, size, media_type, width, height, orientation,
                             pool, class, state, ended_at)
    SELECT id, tenant_id, id, 0, sha256, 9, 'image/png', 1, 1, 1, 'digits', 'batch', 'succeeded', now()
    FROM thing WHERE n <= %(rows)s / 20
    """,
    """
    INSERT INTO wharf.results
        (task_id, tenant_id, attempt, model, model_version, model_digest, detections, timings)
    SELECT id, tenant_id, 1, 'digits', 1, sha256, '[]', '{}' FROM thing WHERE n <= %(rows)s / 20
    """,
    """
    INSERT INTO wharf.idempotency_keys (tenant_id, key, fingerprint, status, resource, created_at)
    SELECT tenant_id, n::text, sha256, 201, '{}', now() - CASE WHEN due THEN 100 ELSE 10 END * interval '1 day'
    FROM thing WHERE n <= %(rows)s / 20
    """,
    "DROP TABLE thing",
    "SET session_replication_role = origin",
    "ANALYZE",
)

READ = """
    SELECT (SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE schemaname = 'wharf' AND relname = ANY (%(tables)s))
               AS whole_tables,
           (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
            WHERE schemaname = 'wharf' AND relname = ANY (%(tables)s)) AS entries
"""


async def test_a_cleanup_reads_what_is_due_and_no_more(installation):
    with psycopg.connect(installation.url(), autocommit=True) as connection:
        for statement in FURNISH:
            connection.execute(statement, {"rows": ROWS, "due": DUE})
    before = read(installation)
    rules = Rules(
        retention=Retention(files=timedelta(days=30), jobs=timedelta(days=90)),
        receipt_days=365,
        grace=None,
        staging=timedelta(days=1),
        orphan_fraction=0.1,
        sweep=False,
    )
    url = installation.url("wharf_cleanup")
    async with Database(url, name="cleanup", role="wharf_cleanup", size=2, by_index=True) as database:
        run = await Cleanup(database, Volume(installation.volume, instance="cleanup.test"), rules).run()
    assert (run.stopped, run.errors, run.first_errors) == ("done", 0, [])
    assert (run.expired_files, run.expired_jobs, run.removed_blobs) == (DUE, DUE, DUE)
    whole_tables, entries = (after - former for after, former in zip(read(installation), before, strict=True))
    assert whole_tables == 0
    assert entries < ENTRIES_FOR_EACH * DUE


def read(installation) -> tuple[int, int]:
    """Whole tables, and index entries, that were read until now. A session tells of itself when it ends."""
    with psycopg.connect(installation.url(), autocommit=True) as connection:
        for _ in range(100):
            others = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            ).fetchall()
            if not others:
                break
            time.sleep(0.05)
        found = connection.execute(READ, {"tables": list(TABLES)}).fetchone()
    assert found is not None
    return int(found[0]), int(found[1])
