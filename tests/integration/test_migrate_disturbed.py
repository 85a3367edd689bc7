"""`wharf migrate` beside others who are at work, killed, or cut off; and processes that meet the wrong schema."""

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest

from broker.maintenance.migrate import migration as maintenance
from broker.maintenance.migrate.migration import migrate, wait_until_migrated
from custody.database import NEEDED_MIGRATION, Database
from custody.errors import StartError
from standalone.postgres import Postgres
from tests.conftest import ROOT
from tests.e2e.service import WHARF, clean_environment

pytestmark = pytest.mark.postgres

OF_V0_1_0 = 4
TABLES = (
    *(
        "api_keys",
        "blobs",
        "files",
        "idempotency_keys",
        "installation",
        "jobs",
        "models",
        "results",
        "tasks",
        "tenants",
    ),
    "workers",
)
INDEX = "-- not in a transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_by_model ON wharf.jobs (model);\n"
VALID = "SELECT bool_and(indisvalid) FROM pg_index WHERE indexrelid = to_regclass('wharf.jobs_by_model')"


@pytest.fixture
def schema(tmp_path, monkeypatch):
    """The project's schema folder, copied, for tests that change it."""
    folder = tmp_path / "schema"
    shutil.copytree(ROOT / "schema", folder)
    monkeypatch.setattr(maintenance, "_schema_folder", lambda: folder)
    return folder


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(maintenance, "LOCK_TIMEOUT", "100ms")
    monkeypatch.setattr(maintenance, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(maintenance, "TRIES", 1000)


# Beside transactions of others


@pytest.mark.parametrize("table", TABLES)
async def test_nobody_waits_behind_the_migrations_since_v0_1_0_while_a_long_transaction_holds_a_table(
    fresh, schema, impatient, table
):
    later = [path for path in (schema / "migrations").iterdir() if int(path.name[:4]) > OF_V0_1_0]
    for path in later:
        path.rename(schema / path.name)
    await migrate(fresh, None)
    for path in later:
        (schema / path.name).rename(path)
    async with await psycopg.AsyncConnection.connect(fresh) as long_transaction:
        await long_transaction.execute(f"SELECT count(*) FROM wharf.{table}")
        migrating = asyncio.create_task(migrate(fresh, None))
        written = 0
        async with asyncio.timeout(60):
            while written < 20 and not migrating.done():
                for each in TABLES:
                    async with await psycopg.AsyncConnection.connect(fresh) as request:
                        await request.execute(f"LOCK TABLE wharf.{each} IN ROW EXCLUSIVE MODE")
                written += 1
    assert await migrating == sorted(path.stem for path in later)


async def test_a_migration_that_alters_a_table_in_use_waits_for_the_long_transaction_and_no_request_for_it(
    fresh, schema, impatient
):
    await migrate(fresh, None)
    (schema / "migrations" / "9000_column.sql").write_text("ALTER TABLE wharf.jobs ADD COLUMN more int;")
    async with await psycopg.AsyncConnection.connect(fresh) as long_transaction:
        await long_transaction.execute("SELECT count(*) FROM wharf.jobs")
        migrating = asyncio.create_task(migrate(fresh, None))
        async with asyncio.timeout(60):
            await waits_for_a_lock(fresh)
            for _ in range(20):
                async with await psycopg.AsyncConnection.connect(fresh) as request:
                    await request.execute("LOCK TABLE wharf.jobs IN ROW EXCLUSIVE MODE")
        assert not migrating.done()
    assert await migrating == ["9000_column"]


async def test_in_a_circle_of_waits_the_migration_gives_way(fresh, schema):
    """PostgreSQL ends whoever has waited for its deadlock_timeout, which may be the request."""
    waits_less = "SELECT %s::interval < current_setting('deadlock_timeout')::interval"
    assert run(fresh, waits_less, maintenance.LOCK_TIMEOUT) == [(True,)]
    await migrate(fresh, None)
    (schema / "migrations" / "9000_two.sql").write_text(
        "ALTER TABLE wharf.jobs ADD COLUMN more int; ALTER TABLE wharf.tasks ADD COLUMN more int;"
    )
    async with await psycopg.AsyncConnection.connect(fresh) as request:
        await request.execute("LOCK TABLE wharf.tasks IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate(fresh, None))
        await waits_for_a_lock(fresh)
        await request.execute("LOCK TABLE wharf.jobs IN ROW EXCLUSIVE MODE")
    assert await migrating == ["9000_two"]


async def test_a_migration_that_was_ended_to_break_a_circle_is_tried_again(fresh, schema, impatient, monkeypatch):
    monkeypatch.setattr(maintenance, "LOCK_TIMEOUT", "30s")
    await migrate(fresh, None)
    (schema / "migrations" / "9000_two.sql").write_text(
        "ALTER TABLE wharf.jobs ADD COLUMN more int; SELECT pg_sleep(1); ALTER TABLE wharf.tasks ADD COLUMN more int;"
    )
    async with await psycopg.AsyncConnection.connect(fresh) as request:
        await request.execute("SET deadlock_timeout = '60s'")
        await request.execute("LOCK TABLE wharf.tasks IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate(fresh, None))
        async with asyncio.timeout(30):
            while not run(fresh, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
                await asyncio.sleep(0.02)
            await request.execute("LOCK TABLE wharf.jobs IN ROW EXCLUSIVE MODE")
    assert await migrating == ["9000_two"]


# Outside a transaction


async def test_an_index_is_built_while_a_transaction_goes_on_and_writes(fresh, schema, impatient):
    await migrate(fresh, None)
    (schema / "migrations" / "9000_index.sql").write_text(INDEX)
    async with await psycopg.AsyncConnection.connect(fresh) as long_transaction:
        await long_transaction.execute("LOCK TABLE wharf.jobs IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate(fresh, None))
        await waits_for_a_lock(fresh)
        async with await psycopg.AsyncConnection.connect(fresh) as request:
            await request.execute("SET lock_timeout = '10s'")
            await request.execute("LOCK TABLE wharf.jobs IN ROW EXCLUSIVE MODE")
    assert await migrating == ["9000_index"]
    assert run(fresh, VALID) == [(True,)]


async def test_two_who_build_an_index_at_once_do_not_wait_for_each_other_in_a_circle(fresh, schema):
    await migrate(fresh, None)
    (schema / "migrations" / "9000_index.sql").write_text(INDEX)
    async with await psycopg.AsyncConnection.connect(fresh) as long_transaction:
        await long_transaction.execute("LOCK TABLE wharf.jobs IN ROW EXCLUSIVE MODE")
        first = asyncio.create_task(migrate(fresh, None))
        await waits_for_a_lock(fresh)
        second = asyncio.create_task(migrate(fresh, None))
        await asyncio.sleep(0.5)
    assert (await first, await second) == (["9000_index"], [])
    assert run(fresh, VALID) == [(True,)]


async def test_an_index_whose_build_was_killed_is_built_anew(fresh, schema):
    await migrate(fresh, None)
    (schema / "migrations" / "9000_index.sql").write_text(INDEX)
    async with await psycopg.AsyncConnection.connect(fresh) as long_transaction:
        await long_transaction.execute("LOCK TABLE wharf.jobs IN ROW EXCLUSIVE MODE")
        killed = fork(fresh, None)
        await waits_for_a_lock(fresh)
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        async with asyncio.timeout(30):
            while run(fresh, "SELECT pid FROM pg_stat_activity WHERE starts_with(query, 'CREATE INDEX')"):
                await asyncio.sleep(0.05)
    assert run(fresh, VALID) == [(False,)]
    assert await migrate(fresh, None) == ["9000_index"]
    assert run(fresh, VALID) == [(True,)]


# Killed, cut off


async def test_a_restart_of_the_database_is_told_and_the_next_run_completes_it(tmp_path, schema, monkeypatch):
    server = Postgres(tmp_path / "postgres", programs(), durable=False)
    await server.start()
    try:
        url = server.url()
        await migrate(url, None)
        (schema / "migrations" / "9000_column.sql").write_text("ALTER TABLE wharf.jobs ADD COLUMN more int;")
        holder = psycopg.connect(url)
        holder.execute("SELECT count(*) FROM wharf.jobs")
        migrating = asyncio.create_task(migrate(url, None))
        await waits_for_a_lock(url)
        await server.stop()
        holder.close()
        with pytest.raises(StartError, match=r"(?s)the database does not answer|did not finish.*again"):
            await migrating
        await server.start()
        assert await migrate(server.url(), None) == ["9000_column"]
    finally:
        await server.stop()


# Who meets which schema


async def test_a_process_refuses_a_schema_that_is_older_than_it_needs_and_takes_a_newer_one(installation):
    run(installation.url(), "INSERT INTO wharf.migrations VALUES (9000, 'future', '')")
    await opened(installation.url("wharf_api"))
    run(installation.url(), "DELETE FROM wharf.migrations WHERE version >= %s", NEEDED_MIGRATION)
    with pytest.raises(StartError, match=rf"needs {NEEDED_MIGRATION}: run `wharf migrate`"):
        await opened(installation.url("wharf_api"))


async def test_a_schema_whose_migrations_no_process_may_see_counts_as_older(installation):
    """That of v0.1.0, before anything is migrated."""
    run(installation.url(), "REVOKE SELECT (version) ON wharf.migrations FROM wharf_api")
    with pytest.raises(StartError, match=r"at migration none.*run `wharf migrate`"):
        await opened(installation.url("wharf_api"))
    assert await migrate(installation.url(), None) == []
    await opened(installation.url("wharf_api"))


@pytest.mark.parametrize("role", ["wharf_api", "wharf_worker", "wharf_relay", "wharf_cleanup"])
async def test_any_process_may_wait_until_somebody_has_migrated(fresh, postgres, role):
    url = postgres.url(role, psycopg.conninfo.conninfo_to_dict(fresh)["dbname"])
    with pytest.raises(StartError, match=r"Not within 0\.3 s: migration \d{4}_\w+ \(the schema is at 0\)"):
        await wait_until_migrated(url, 0.3)
    waiting = asyncio.create_task(wait_until_migrated(url, 60))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await migrate(fresh, None)
    await waiting
    run(fresh, "INSERT INTO wharf.migrations VALUES (9000, 'future', '')")
    await wait_until_migrated(url, 5)


async def test_whoever_waits_outlives_a_database_that_is_not_there_yet(postgres):
    name = f"later_{os.urandom(4).hex()}"
    waiting = asyncio.create_task(wait_until_migrated(postgres.url("wharf_worker", name), 60))
    await asyncio.sleep(0.3)
    run(postgres.url(), f"CREATE DATABASE {name}")
    try:
        await migrate(postgres.url("postgres", name), None)
        await waiting
    finally:
        run(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


def test_migrate_wait_says_what_it_waits_for_and_ends(fresh):
    def wharf(*arguments):
        environment = clean_environment({"WHARF_DATABASE_URL": fresh})
        return subprocess.run([*WHARF, "migrate", *arguments], env=environment, capture_output=True, text=True)

    waited = wharf("--wait", "0.3")
    assert (waited.returncode, waited.stdout) == (1, "")
    assert "wharf migrate: Not within 0.3 s" in waited.stderr
    assert run(fresh, "SELECT to_regnamespace('wharf') IS NULL") == [(True,)]
    assert wharf("30").returncode == 2
    assert wharf().returncode == 0
    migrated = wharf("--wait")
    assert (migrated.returncode, migrated.stdout) == (0, "The database is up to date.\n")


def test_what_a_cluster_says_to_migrate_may_be_said_any_number_of_times(fresh, tmp_path):
    (tmp_path / "api-key").write_text(f"wharf_{'a' * 43}")
    (tmp_path / "wharf_relay").write_text("postgresql://wharf_relay:geheim@postgres:5432/wharf")
    volume = tmp_path / "volume"
    environment = clean_environment({"WHARF_DATABASE_URL": fresh, "WHARF_VOLUME": str(volume)})
    cluster = ("--admit-key", str(tmp_path / "api-key"), "--logins", str(tmp_path), "--tenant", "operators")
    for arguments in (cluster, cluster, ("--wait", "5")):
        ended = subprocess.run([*WHARF, "migrate", *arguments], env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert f"The database is up to date. The volume {volume} is ready." in ended.stdout
        assert "geheim" not in ended.stdout + ended.stderr
        assert "aaaa" not in ended.stdout + ended.stderr
    assert run(fresh, "SELECT t.name FROM wharf.tenants t JOIN wharf.api_keys k ON k.tenant_id = t.id") == [
        ("operators",)
    ]
    [(verifier,)] = run(fresh, "SELECT rolpassword FROM pg_authid WHERE rolname = 'wharf_relay'")
    assert verifier.startswith("SCRAM-SHA-256$")
    run(fresh, "ALTER ROLE wharf_relay PASSWORD NULL")


def run(url, statement, *values):
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement, values)
        return found.fetchall() if found.description else []


async def waits_for_a_lock(url):
    async with asyncio.timeout(30):
        while not run(url, "SELECT pid FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.005)


async def opened(url):
    async with Database(url, name="test"):
        pass


def programs():
    named = os.environ.get("WHARF_TEST_POSTGRES")
    return Path(named) if named else None


def fork(url, killed_at):
    """`migrate` in a process of its own, which kills itself before it sends its `killed_at`th message."""
    process = multiprocessing.get_context("fork").Process(target=_migrate, args=(url, killed_at))
    process.start()
    return process


def _migrate(url, killed_at):
    sent = 0
    wait = psycopg.AsyncConnection.wait

    async def counted(self, *arguments, **options):
        nonlocal sent
        sent += 1
        if sent == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return await wait(self, *arguments, **options)

    psycopg.AsyncConnection.wait = counted
    asyncio.run(migrate(url, None))
