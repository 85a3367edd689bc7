"""`wharf migrate`: any number of times, on any server it may meet, and never half."""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from broker.maintenance.migrate import command
from broker.maintenance.migrate import migration as maintenance
from broker.maintenance.migrate.logins import ensure_logins, process_urls
from broker.maintenance.migrate.migration import (
    admit_key,
    first_key,
    key_works,
    migrate,
    read_key,
    roles_script,
    wait_until_migrated,
    write_key,
)
from custody.database import Database
from custody.errors import StartError
from custody.ids import new_id
from custody.volume import Volume
from standalone.database_cluster import programs_of_the_wheel
from standalone.postgres import Postgres
from wharfinger.command import app

pytestmark = pytest.mark.postgres

MIGRATIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "schema" / "migrations").glob("*.sql"))
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
OPTIONS_OF_A_DUMP, OPTIONS_OF_A_RESTORE = (
    re.findall(r"--[a-z-]+(?:=\w+)?", options)
    for options in re.findall(r"^    pg_(?:dump|restore) (.*?) --(?:file|dbname)", OPERATIONS, re.MULTILINE)
)


@pytest.fixture
def fresh(postgres):
    """The URL of a database without a schema, on a server that has the roles."""
    name = f"fresh_{os.urandom(4).hex()}"
    run(postgres.url(), f"CREATE DATABASE {name}")
    yield postgres.url("postgres", name)
    run(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def bare_server():
    """A server of its own, where nobody has made the roles."""
    folder = Path(tempfile.mkdtemp(prefix="wharf-bare-"))
    programs = os.environ.get("WHARF_TEST_POSTGRES")
    server = Postgres(folder / "postgres", Path(programs) if programs else None, durable=False)
    asyncio.run(server.start())
    run(server.url(), "CREATE ROLE dba LOGIN CREATEROLE")
    run(server.url(), "CREATE ROLE plain LOGIN")
    yield server
    asyncio.run(server.stop())
    shutil.rmtree(folder)


@pytest.fixture
def bare(bare_server):
    """That server with a database `wharf` of nobody's; afterwards it is as it was."""
    for name in ("wharf", "other"):
        run(bare_server.url(), f"CREATE DATABASE {name}")
    yield bare_server
    for name in ("wharf", "other"):
        run(bare_server.url(), f"DROP DATABASE {name} WITH (FORCE)")
    for role in maintenance.ROLES:
        run(bare_server.url(), f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def passwords(bare):
    """That server, asking for passwords of all but those who make the others."""
    rules = Path(run(bare.url(), "SHOW hba_file")[0][0])
    before = rules.read_text()
    rules.write_text("local all postgres,dba trust\nlocal all all scram-sha-256\n")
    run(bare.url(), "SELECT pg_reload_conf()")
    yield bare
    rules.write_text(before)
    run(bare.url(), "SELECT pg_reload_conf()")


@pytest.fixture
def schema(tmp_path, monkeypatch):
    """The project's schema folder, copied, for tests that change it."""
    folder = tmp_path / "schema"
    shutil.copytree(Path(__file__).parents[2] / "schema", folder)
    monkeypatch.setattr(maintenance, "_schema_folder", lambda: folder)
    return folder


async def test_the_first_migrate_applies_everything_and_the_second_nothing(fresh, tmp_path):
    volume = Volume(tmp_path / "volume", instance="migrate")
    assert await migrate(fresh, volume) == MIGRATIONS
    [applied] = run(fresh, "SELECT array_agg(version ORDER BY version), max(applied_at) FROM wharf.migrations")
    assert applied[0] == [int(name.partition("_")[0]) for name in MIGRATIONS]
    identity = volume.identity()
    assert await migrate(fresh, volume) == []
    assert run(fresh, "SELECT array_agg(version ORDER BY version), max(applied_at) FROM wharf.migrations") == [applied]
    assert run(fresh, "SELECT volume_id FROM wharf.installation") == [(identity,)]
    assert volume.identity() == identity


async def test_several_who_migrate_at_once_apply_everything_once(fresh, tmp_path):
    volumes = [Volume(tmp_path / "volume", instance=f"migrate-{number}") for number in range(4)]
    applied = await asyncio.gather(*(migrate(fresh, volume) for volume in volumes))
    assert sorted(name for names in applied for name in names) == MIGRATIONS
    assert run(fresh, "SELECT volume_id FROM wharf.installation") == [(volumes[0].identity(),)]


async def test_several_who_migrate_two_databases_of_a_new_server_at_once_do_not_collide(bare):
    urls = [bare.url("postgres", name) for name in ("wharf", "other") * 3]
    applied = await asyncio.gather(*(migrate(url, None) for url in urls))
    assert sorted(name for names in applied for name in names) == sorted(MIGRATIONS * 2)


async def test_a_changed_migration_is_refused(fresh, schema):
    await migrate(fresh, None)
    changed = schema / "migrations" / f"{MIGRATIONS[0]}.sql"
    changed.write_text(changed.read_text() + "\n-- a better comment\n")
    with pytest.raises(StartError, match=rf"{MIGRATIONS[0]} is not the one that was applied"):
        await migrate(fresh, None)


async def test_a_database_from_the_future_is_refused(fresh, schema):
    (schema / "migrations" / "9000_future.sql").write_text("CREATE TABLE wharf.future ();")
    assert (await migrate(fresh, None))[-1] == "9000_future"
    (schema / "migrations" / "9000_future.sql").unlink()
    with pytest.raises(StartError, match="Install the newer program"):
        await migrate(fresh, None)


def test_a_rollback_is_content_with_a_database_from_the_future(fresh, schema, monkeypatch):
    (schema / "migrations" / "9000_future.sql").write_text("CREATE TABLE wharf.future ();")
    asyncio.run(migrate(fresh, None))
    (schema / "migrations" / "9000_future.sql").unlink()
    monkeypatch.setenv("WHARF_DATABASE_URL", fresh)
    for name in ("WHARF_VOLUME", "WHARF_DIRECT_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    # It would go on logging to the runner's output, which is closed.
    monkeypatch.setattr(command, "configure_logging", lambda **_: None)
    refused = CliRunner().invoke(app, ["migrate", "--admit-key", "/none"])
    assert (refused.exit_code, "ahead of this program" in refused.output) == (1, True)
    content = CliRunner().invoke(app, ["migrate", "--admit-key", "/none", "--allow-newer"])
    assert (content.exit_code, "Nothing was done" in content.stdout) == (0, True)


async def test_a_migration_that_fails_leaves_nothing_of_itself_and_all_before_it(fresh, schema):
    broken = schema / "migrations" / "9000_broken.sql"
    broken.write_text("CREATE TABLE wharf.half (); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(fresh, None)
    assert run(fresh, "SELECT to_regclass('wharf.half') IS NULL, count(*) FROM wharf.migrations") == [
        (True, len(MIGRATIONS))
    ]
    broken.write_text("CREATE TABLE wharf.half ();")
    assert await migrate(fresh, None) == ["9000_broken"]


async def test_a_migration_does_not_wait_behind_a_lock_for_long(fresh, schema, monkeypatch):
    """Behind a waiting ALTER TABLE all others would wait as well."""
    monkeypatch.setattr(maintenance, "LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(maintenance, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(maintenance, "TRIES", 3)
    await migrate(fresh, None)
    (schema / "migrations" / "9000_column.sql").write_text("ALTER TABLE wharf.jobs ADD COLUMN more int;")
    with psycopg.connect(fresh) as long_transaction:
        long_transaction.execute("SELECT count(*) FROM wharf.jobs")
        async with asyncio.timeout(2):
            with pytest.raises(StartError, match="9000_column found its tables locked 3 times"):
                await migrate(fresh, None)
    assert await migrate(fresh, None) == ["9000_column"]


async def test_a_migration_that_met_a_lock_is_tried_again(fresh, schema, monkeypatch):
    monkeypatch.setattr(maintenance, "LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(maintenance, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(maintenance, "TRIES", 100)
    await migrate(fresh, None)
    (schema / "migrations" / "9000_column.sql").write_text("ALTER TABLE wharf.jobs ADD COLUMN more int;")
    with psycopg.connect(fresh) as long_transaction:
        long_transaction.execute("SELECT count(*) FROM wharf.jobs")
        migrating = asyncio.create_task(migrate(fresh, None))
        await asyncio.sleep(0.3)
        assert not migrating.done()
    assert await migrating == ["9000_column"]


async def test_a_volume_of_another_database_is_refused_and_left_as_it_is(fresh, installation, tmp_path):
    mine = Volume(tmp_path / "mine", instance="migrate")
    theirs = Volume(installation.volume, instance="migrate")
    await migrate(fresh, mine)
    identity = theirs.identity()
    with pytest.raises(StartError, match="they do not belong together"):
        await migrate(fresh, theirs)
    assert theirs.identity() == identity
    assert run(fresh, "SELECT volume_id FROM wharf.installation") == [(mine.identity(),)]


async def test_the_two_halves_of_a_pair_find_each_other_whichever_is_older(fresh, tmp_path):
    """A volume that was prepared first gives its id to the database; a new disk gets the database's."""
    older = Volume(tmp_path / "older", instance="migrate")
    older.prepare(new_id())
    await migrate(fresh, older)
    assert run(fresh, "SELECT volume_id FROM wharf.installation") == [(older.identity(),)]
    new = Volume(tmp_path / "new", instance="migrate")
    await migrate(fresh, new)
    assert new.identity() == older.identity()


# Who may migrate


async def test_the_databases_owner_with_createrole_migrates_without_being_a_superuser(bare):
    run(bare.url(), "ALTER DATABASE wharf OWNER TO dba")
    assert await migrate(bare.url("dba", "wharf"), None) == MIGRATIONS
    assert await migrate(bare.url("dba", "wharf"), None) == []
    async with Database(bare.url("wharf_api", "wharf"), name="test"):
        pass


async def test_a_plain_user_migrates_once_a_dba_has_prepared_what_is_printed(bare):
    url = bare.url("plain", "wharf")
    with pytest.raises(
        StartError, match=r"(?s)plain may not.*--print-roles.*GRANT wharf_owner.*GRANT CREATE ON DATABASE"
    ):
        await migrate(url, None)
    run(bare.url(), roles_script())
    with pytest.raises(StartError, match="GRANT wharf_owner TO"):
        await migrate(url, None)
    run(bare.url(), "GRANT wharf_owner TO plain")
    with pytest.raises(StartError, match="GRANT CREATE ON DATABASE wharf"):
        await migrate(url, None)
    run(bare.url(), "GRANT CREATE ON DATABASE wharf TO wharf_owner")
    assert await migrate(url, None) == MIGRATIONS
    assert await migrate(url, None) == []


async def test_the_owner_saves_and_puts_back_all_rows_as_the_manual_says(bare, tmp_path):
    """docs/operations.md has the options. Without them a dump ends at the first table of the tenants' wall."""
    for name in ("wharf", "other"):
        run(bare.url(), f"ALTER DATABASE {name} OWNER TO dba")
    await migrate(bare.url("dba", "wharf"), None)
    key = await first_key(bare.url("dba", "wharf"), "default")
    saved = tmp_path / "wharf.dump"
    with pytest.raises(subprocess.CalledProcessError):
        program("pg_dump", f"--file={saved}", bare.url("dba", "wharf"))
    program("pg_dump", *OPTIONS_OF_A_DUMP, f"--file={saved}", bare.url("dba", "wharf"))
    run(bare.url("dba", "other"), "GRANT CREATE ON DATABASE other TO wharf_owner")
    program("pg_restore", *OPTIONS_OF_A_RESTORE, "--dbname", bare.url("dba", "other"), str(saved))
    assert await migrate(bare.url("dba", "other"), None) == []
    assert await key_works(bare.url("postgres", "other"), key)
    walls = "SELECT count(*) FROM pg_class WHERE relrowsecurity AND relforcerowsecurity"
    assert run(bare.url("postgres", "other"), walls) == run(bare.url("postgres", "wharf"), walls) != [(0,)]


async def test_everything_belongs_to_the_owners_role_whoever_migrates(bare):
    run(bare.url(), "ALTER DATABASE wharf OWNER TO dba")
    await migrate(bare.url("dba", "wharf"), None)
    assert run(
        bare.url("postgres", "wharf"),
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'wharf'::regnamespace",
    ) == [("wharf_owner",)]


async def test_a_server_that_is_not_there_is_told_without_the_password(tmp_path):
    with pytest.raises(StartError, match="does not answer") as told:
        await migrate(f"postgresql://postgres:geheim@/wharf?host={tmp_path}", None)
    assert "geheim" not in str(told.value)


# The way in


async def test_the_first_key_is_an_admins_of_the_operators_tenant(installation):
    url = installation.url()
    secrets = [await first_key(url, "default") for _ in range(2)]
    assert len(set(secrets)) == 2
    for secret in secrets:
        assert await key_works(url, secret)
    assert not await key_works(url, "wharf_unknown")
    assert (
        run(url, "SELECT t.name, t.operator, k.role FROM wharf.tenants t JOIN wharf.api_keys k ON true")
        == [("default", True, "admin")] * 2
    )


def test_a_key_is_written_for_its_owners_eyes_and_over_nothing(tmp_path):
    path = tmp_path / "api-key"
    write_key(path, "wharf_secret")
    assert path.read_text() == "wharf_secret\n"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StartError, match=r"File exists.*Name a new file"):
        write_key(path, "another")
    assert path.read_text() == "wharf_secret\n"


async def test_a_key_that_somebody_made_is_admitted_as_an_admins_once(installation, tmp_path):
    url, file = installation.url(), tmp_path / "key"
    file.write_text(f"wharf_{'k' * 32}\n")
    secret = read_key(file)
    for _ in range(2):
        await admit_key(url, "default", secret)
    assert await key_works(url, f"wharf_{'k' * 32}")
    assert run(url, "SELECT t.name, t.operator, k.role FROM wharf.tenants t JOIN wharf.api_keys k ON true") == [
        ("default", True, "admin")
    ]
    with pytest.raises(StartError, match="already one of default's, with the role admin"):
        await admit_key(url, "another", secret)
    assert run(url, "SELECT name FROM wharf.tenants") == [("default",)]
    run(url, "UPDATE wharf.api_keys SET revoked_at = now()")
    with pytest.raises(StartError, match="was revoked"):
        await admit_key(url, "default", secret)
    assert not await key_works(url, secret)


@pytest.mark.parametrize("content", ["", "wharf_short", f"wharf_{'k' * 32} {'k' * 32}", "k" * 64])
def test_what_is_no_key_is_not_admitted_and_not_told(tmp_path, content):
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(StartError, match="holds no key") as told:
        read_key(file)
    assert not content or content not in str(told.value)


async def test_the_users_of_the_urls_in_a_folder_may_log_in_each_in_its_role(passwords, tmp_path):
    url = passwords.url("dba", "wharf")
    run(passwords.url(), "ALTER DATABASE wharf OWNER TO dba")
    await migrate(url, None)
    urls = dict(zip(maintenance.ROLES[1:], ("api", "relay", "worker", "wharf_cleanup"), strict=True))
    try:
        for password in ("first", "p@ss'word"):
            for role, user in urls.items():
                (tmp_path / role).write_text(f"postgresql://{user}:{quote(password)}@nowhere:5432/wharf\n")
            for _ in range(2):
                assert await ensure_logins(url, tmp_path) == list(urls.values())
            for role, user in urls.items():
                login = make_conninfo(passwords.url(user, "wharf"), password=password)
                async with Database(login, name="test", role=role, size=1):
                    pass
                with pytest.raises(StartError, match="password authentication failed"):
                    await Database(make_conninfo(login, password="another"), name="test").open()
    finally:
        for user in ("api", "relay", "worker"):
            run(passwords.url(), f"DROP ROLE IF EXISTS {user}")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({}, "has none of the files wharf_api"),
        ({"wharf_api": "postgresql://api@db/wharf"}, "no URL with a user and a password"),
        ({"wharf_api": "geheim://"}, "no URL with a user and a password"),
        ({"wharf_api": "postgresql://postgres:geheim@db/wharf"}, "postgres is a superuser"),
        (dict.fromkeys(("wharf_api", "wharf_relay"), "postgresql://same:geheim@db/wharf"), "name the same user"),
    ],
)
async def test_logins_that_cannot_be_are_refused_without_telling_a_password(installation, tmp_path, content, fault):
    for role, text in content.items():
        (tmp_path / role).write_text(text)
    before = run(installation.url(), "SELECT rolname, rolpassword FROM pg_authid ORDER BY 1")
    with pytest.raises(StartError, match=fault) as told:
        await ensure_logins(installation.url(), tmp_path)
    assert "geheim" not in str(told.value)
    assert run(installation.url(), "SELECT rolname, rolpassword FROM pg_authid ORDER BY 1") == before


async def test_who_may_not_make_logins_is_told_what_an_admin_must_run_and_needs_no_more_once_it_was(
    passwords, tmp_path
):
    run(passwords.url(), roles_script())
    run(
        passwords.url(),
        "ALTER DATABASE wharf OWNER TO plain; ALTER ROLE plain PASSWORD 'own'; GRANT wharf_owner TO plain",
    )
    url = make_conninfo(passwords.url("plain", "wharf"), password="own")
    await migrate(url, None)
    run(passwords.url(), "CREATE ROLE \"the relay\" LOGIN PASSWORD 'old'")
    for role, user in (("wharf_api", "api"), ("wharf_relay", "the%20relay"), ("wharf_cleanup", "wharf_cleanup")):
        (tmp_path / role).write_text(f"postgresql://{user}:geheim@nowhere/wharf")
    try:
        with pytest.raises(StartError, match="may not make logins") as told:
            await ensure_logins(url, tmp_path)
        statements = str(told.value).splitlines()[1:]
        assert statements == [
            f"CREATE ROLE \"api\" LOGIN PASSWORD '...' IN ROLE wharf_api;  -- {tmp_path / 'wharf_api'}",
            f'GRANT wharf_relay TO "the relay";  -- {tmp_path / "wharf_relay"}',
            f"ALTER ROLE \"the relay\" LOGIN PASSWORD '...';  -- {tmp_path / 'wharf_relay'}",
            f"ALTER ROLE \"wharf_cleanup\" LOGIN PASSWORD '...';  -- {tmp_path / 'wharf_cleanup'}",
        ]
        assert "geheim" not in str(told.value)
        run(passwords.url(), "\n".join(statements).replace("'...'", "'geheim'"))
        assert await ensure_logins(url, tmp_path) == ["api", "the relay", "wharf_cleanup"]
        for role, user in (("wharf_api", "api"), ("wharf_relay", "the relay"), ("wharf_cleanup", "wharf_cleanup")):
            login = make_conninfo(passwords.url(user, "wharf"), password="geheim")
            async with Database(login, name="test", role=role, size=1):
                pass
    finally:
        run(passwords.url(), "ALTER DATABASE wharf OWNER TO postgres; ALTER ROLE plain PASSWORD NULL")
        for user in ("api", '"the relay"'):
            run(passwords.url(), f"DROP ROLE IF EXISTS {user}")


async def test_a_superuser_that_somebody_else_made_is_no_login_either(bare, tmp_path):
    run(bare.url(), roles_script())
    (tmp_path / "wharf_api").write_text("postgresql://postgres:geheim@db/wharf")
    with pytest.raises(StartError, match="postgres is a superuser"):
        await ensure_logins(bare.url("plain", "wharf"), tmp_path)


async def test_waiting_ends_when_the_volume_is_prepared_too(fresh, tmp_path):
    volume = Volume(tmp_path / "volume", instance="migrate")
    await migrate(fresh, None)
    await wait_until_migrated(fresh, 10)
    with pytest.raises(StartError, match=r"Not within 0\.1 s.*is not prepared"):
        await wait_until_migrated(fresh, 0.1, volume)
    waiting = asyncio.create_task(wait_until_migrated(fresh, 60, volume))
    await asyncio.sleep(0)
    await migrate(fresh, volume)
    await waiting


async def test_every_process_gets_a_login_of_its_own_that_cannot_go_around_the_wall(bare):
    url = bare.url("postgres", "wharf")
    await migrate(url, None)
    try:
        for _ in range(2):
            urls = await process_urls(url, "mine")
            assert set(urls) == set(maintenance.ROLES[1:])
            for role, login in urls.items():
                async with Database(login, name="test") as database, database.transaction() as transaction:
                    found = await transaction.execute("SELECT current_user AS name, pg_has_role(%s, 'USAGE')", [role])
                    assert await found.fetchone() == {"name": f"{role}_mine", "pg_has_role": True}
    finally:
        for role in maintenance.ROLES[1:]:
            run(url, f"DROP ROLE IF EXISTS {role}_mine")


def program(name: str, *arguments: str) -> None:
    """One of PostgreSQL's own."""
    folder = os.environ.get("WHARF_TEST_POSTGRES") or programs_of_the_wheel()
    subprocess.run([Path(folder) / name, *arguments], check=True, capture_output=True)


def run(url: str, statements: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statements)
        return found.fetchall() if found.description else []
