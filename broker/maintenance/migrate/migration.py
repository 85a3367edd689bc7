"""Brings a database and its volume to the present shape: roles, migrations, folders. Run it as often as you like."""

import asyncio
import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow, dict_row

from custody import models, tenants
from custody.database import ROLES, schema_version
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.volume import Volume

log = structlog.get_logger()

LOCK = 0x77686172  # "whar": one migration at a time
LOCK_TIMEOUT = "400ms"
"""Shorter than PostgreSQL's deadlock_timeout of 1 s: in a circle of waits, the migration is the one that gives way."""
TRIES = 100
PAUSE_SECONDS = 1.0
ASK_AGAIN_SECONDS = 0.5

WIDENS_JOBS = re.compile(r"ALTER\s+TABLE\s+wharf\.jobs\b[^;]*\bADD\s+COLUMN\b", re.IGNORECASE)
"""What the broker of v0.1.0, which reads jobs with SELECT *, must be led over: see `_end_sessions`."""

ADMITTED_KEY = re.compile(r"wharf_[A-Za-z0-9_-]{32,}")

NOT_IN_A_TRANSACTION = re.compile(r"(?:--[^\n]*\n)*?-- not in a transaction\n")
STATEMENT = re.compile(
    r"""(?: --[^\n]* | '(?:[^']|'')*' | "[^"]*" | (\$\w*\$).*?\1 | \bBEGIN\s+ATOMIC\b.*?\bEND\s*(?=;) | [^;] )+""",
    re.DOTALL | re.VERBOSE,
)
CONCURRENT_INDEX = re.compile(
    r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS\s+(\w+)\s", re.IGNORECASE
)


class NewerSchemaError(StartError):
    """A newer release has migrated. Its schema suits the processes of the release before."""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    text: str

    @property
    def checksum(self) -> bytes:
        return hashlib.sha256(self.text.encode()).digest()

    @property
    def in_transaction(self) -> bool:
        """False for what waits for others without keeping them waiting, which no transaction may hold: each of its
        statements, CREATE INDEX CONCURRENTLY IF NOT EXISTS, DROP INDEX CONCURRENTLY IF EXISTS or ALTER TABLE VALIDATE
        CONSTRAINT say, may be done twice."""
        return NOT_IN_A_TRANSACTION.match(self.text) is None

    def statements(self) -> list[str]:
        """Without comments before them."""
        found = (re.sub(r"\A(?:\s|--[^\n]*\n?)+", "", match[0]).strip() for match in STATEMENT.finditer(self.text))
        return [statement for statement in found if statement]


async def migrate(owner_url: str, volume: Volume | None) -> list[str]:
    """Applies what is missing, each migration in a transaction of its own where it can be; gives the names of those
    applied. Whatever ended an earlier run, and wherever, this one completes it.

    `owner_url` logs in as a role that owns the database or is a superuser. Without a `volume` only the database is
    brought up. Raises `StartError`."""
    try:
        return await _migrate(owner_url, volume)
    except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout) as error:
        raise StartError(
            f"The database did not finish this: {str(error).strip()}\nWhat is applied stays. Run `wharf migrate` again."
        ) from error
    except OSError as error:
        raise StartError(
            f"WHARF_VOLUME: {error.filename or 'the volume'} cannot be written: {error.strerror}. What is done stays. "
            "Set that right, then run `wharf migrate` again."
        ) from error


async def _migrate(owner_url: str, volume: Volume | None) -> list[str]:
    async with await connect(owner_url) as connection:
        await be_the_only_one(connection)
        try:
            await _ensure_roles(connection)
            await _become_owner(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise StartError(
                f"{connection.info.user} may not set up the roles ({str(error).strip()}). Have a DBA run what "
                "`wharf migrate --print-roles` prints, then `GRANT wharf_owner TO` this user and "
                f"`GRANT CREATE ON DATABASE {connection.info.dbname} TO wharf_owner`, and try again."
            ) from error
        applied = [await _apply(connection, migration) for migration in await _missing(connection)]
        if volume is not None:
            volume.prepare(await _volume_id(connection, volume))
    return applied


async def first_key(owner_url: str, tenant: str) -> str:
    """The secret of a new admin's key of the operator's tenant, which is made where it is missing."""
    async with await connect(owner_url) as connection:
        await connection.execute("SET ROLE wharf_owner")
        key = await tenants.first_key(connection, tenant)
    assert key.secret is not None
    return key.secret


def read_key(path: Path) -> str:
    """A key that somebody else has made. Raises `StartError` where the file holds none."""
    try:
        secret = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"--admit-key: {path} cannot be read: {error}") from None
    if not ADMITTED_KEY.fullmatch(secret):
        raise StartError(f"--admit-key: {path} holds no key: `wharf_` and 32 random letters, digits, - or _ or more.")
    return secret


async def admit_key(owner_url: str, tenant: str, secret: str) -> None:
    """From now on it is an admin's key of the operator's tenant, which is made where it is missing. Raises
    `StartError` where it is another's, or was revoked."""
    async with await connect(owner_url) as connection:
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL ROLE wharf_owner")
                await tenants.admit_key(connection, tenant, secret)
        except CustodyError as error:
            raise StartError(f"--admit-key: {error.detail}") from None


async def key_works(owner_url: str, secret: str) -> bool:
    async with await connect(owner_url) as connection:
        await connection.execute("SET ROLE wharf_api")
        return await tenants.authenticate(connection, secret) is not None


def write_key(path: Path, secret: str) -> None:
    """For its owner's eyes only, from the first byte on. Raises `StartError` where the file exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StartError(f"The key cannot be written to {path}: {error.strerror}. Name a new file.") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secret}\n")


async def clear_worker(owner_url: str, worker: str) -> None:
    async with await connect(owner_url) as connection:
        await connection.execute("SET ROLE wharf_owner")
        await models.forget_worker(connection, worker)


async def ensure_database(server_url: str, name: str) -> None:
    """Makes the database where it is missing; `server_url` reaches any other database of the server."""
    async with await connect(server_url) as connection:
        found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if await found.fetchone() is None:
            await connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(
                sql.Identifier(name)
            ))  # fmt: skip


def roles_script() -> str:
    """The statements that make the roles, for a DBA to run."""
    return _schema_folder().joinpath("roles.sql").read_text()


async def wait_until_migrated(url: str, seconds: float, volume: Volume | None = None) -> None:
    """Until the schema has all of this program's migrations, be it newer or not, and the volume, where there is one, is
    prepared. `url` may be a process's. Raises `StartError` where that takes longer."""
    needed = _migrations()[-1]
    cause: str | None = None
    try:
        async with asyncio.timeout(seconds):
            while (found := await _lacks(url, needed) or _unprepared(volume)) is not None:
                if found != cause:
                    log.warning("waits_for_migration", migration=needed.name, cause=found)
                cause = found
                await asyncio.sleep(ASK_AGAIN_SECONDS)
    except TimeoutError:
        raise StartError(
            f"Not within {seconds:g} s: migration {needed.name} ({cause or 'the database does not answer'}). "
            "Run `wharf migrate` of this release with the owner's URL, and WHARF_VOLUME where there is a volume."
        ) from None


def _unprepared(volume: Volume | None) -> str | None:
    try:
        return None if volume is None or volume.is_prepared() else f"the volume {volume.root} is not prepared"
    except OSError as error:
        return f"the volume cannot be read: {error}"


async def _lacks(url: str, needed: Migration) -> str | None:
    try:
        async with await connect(url) as connection:
            version = await schema_version(connection)
    except (StartError, psycopg.OperationalError) as error:
        return str(error).partition("\n")[0]
    return None if version >= needed.version else f"the schema is at {version}"


async def connect(url: str) -> AsyncConnection[DictRow]:
    try:
        return await AsyncConnection.connect(
            url, autocommit=True, row_factory=dict_row, application_name="wharf migrate", connect_timeout=10
        )
    except psycopg.Error as error:
        raise StartError(
            f"WHARF_DATABASE_URL: the database does not answer: {str(error).strip()}\n"
            "Start it, or correct the URL, for example postgresql://postgres:SECRET@localhost:5432/wharf"
        ) from error


async def be_the_only_one(connection: AsyncConnection[DictRow]) -> None:
    # By asking again and again: one that waits in a statement is waited for by CREATE INDEX CONCURRENTLY, in a circle.
    told = False
    while True:
        found = await connection.execute("SELECT pg_try_advisory_lock(%s) AS mine", [LOCK])
        row = await found.fetchone()
        assert row is not None
        if row["mine"]:
            break
        if not told:
            log.warning("migration_waits_for_another")
            told = True
        await asyncio.sleep(0.2)
    # One that is killed in the middle of a statement does not keep the lock, and its tables, until that is done.
    with suppress(psycopg.errors.InvalidParameterValue):
        await connection.execute("SET client_connection_check_interval = '1s'")


async def _ensure_roles(connection: AsyncConnection[DictRow]) -> None:
    for role in ROLES:
        if not await role_exists(connection, role):
            statement = re.search(rf"^CREATE ROLE {role}\b[^;]*;", roles_script(), re.MULTILINE)
            assert statement is not None
            # The migration of another database of this server may be at it too.
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                await connection.execute(statement[0].encode())
    # What a DBA has granted already is not granted again: that would take the DBA's rights.
    become = "SET" if connection.info.server_version >= 160000 else "MEMBER"
    found = await connection.execute(
        """
        SELECT pg_has_role('wharf_owner', %s) AS member,
               has_database_privilege('wharf_owner', current_database(), 'CREATE') AS creator
        """,
        [become],
    )
    granted = await found.fetchone()
    assert granted is not None
    if not granted["member"]:
        await connection.execute("GRANT wharf_owner TO current_user")
    if not granted["creator"]:
        await connection.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO wharf_owner").format(sql.Identifier(connection.info.dbname))
        )


async def _become_owner(connection: AsyncConnection[DictRow]) -> None:
    await connection.execute("SET ROLE wharf_owner")
    await connection.execute("CREATE SCHEMA IF NOT EXISTS wharf AUTHORIZATION wharf_owner")
    await connection.execute(
        """
        CREATE TABLE IF NOT EXISTS wharf.migrations (
            version integer PRIMARY KEY, name text NOT NULL, checksum bytea NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    # For processes, which refuse a schema that is older than they need. Not granted again: that would write each time.
    for role in ROLES[1:]:
        found = await connection.execute(
            "SELECT has_column_privilege(%s, 'wharf.migrations', 'version', 'SELECT') AS granted", [role]
        )
        row = await found.fetchone()
        assert row is not None
        if not row["granted"]:
            await connection.execute(
                sql.SQL("GRANT SELECT (version) ON wharf.migrations TO {}").format(sql.Identifier(role))
            )


async def _missing(connection: AsyncConnection[DictRow]) -> list[Migration]:
    found = await connection.execute("SELECT version, checksum FROM wharf.migrations ORDER BY version")
    applied = {row["version"]: row["checksum"] for row in await found.fetchall()}
    known = _migrations()
    if newer := set(applied) - {migration.version for migration in known}:
        raise NewerSchemaError(
            f"The database is ahead of this program: it has migration {max(newer)}. Install the newer program; "
            "migrations only go forward."
        )
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise StartError(
                f"Migration {migration.name} is not the one that was applied. Never change an applied migration: "
                "restore its text and add a new one."
            )
    return [migration for migration in known if migration.version not in applied]


async def _apply(connection: AsyncConnection[DictRow], migration: Migration) -> str:
    # A short lock timeout, tried again: a migration must not queue behind a long transaction and block all behind it.
    for tries_left in reversed(range(TRIES)):
        try:
            if migration.in_transaction:
                await _apply_at_once(connection, migration)
            else:
                await _apply_by_statements(connection, migration)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if not tries_left:
                raise StartError(
                    f"Migration {migration.name} found its tables locked {TRIES} times. Try later."
                ) from None
            log.warning("migration_waits_for_lock", migration=migration.name)
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            break
    log.info("migration_applied", migration=migration.name)
    return migration.name


async def _apply_at_once(connection: AsyncConnection[DictRow], migration: Migration) -> None:
    async with connection.transaction():
        # Nor is anybody to wait for a migration that was paused.
        await connection.execute(
            f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL idle_in_transaction_session_timeout = '10s'".encode()
        )
        await connection.execute(migration.text.encode())
        await _record(connection, migration)
        if WIDENS_JOBS.search(migration.text):
            await _end_sessions(connection)


async def _apply_by_statements(connection: AsyncConnection[DictRow], migration: Migration) -> None:
    # Their locks keep no request waiting, so they may wait for any transaction: there is no lock timeout.
    for statement in migration.statements():
        if index := CONCURRENT_INDEX.match(statement):
            await _drop_invalid(connection, index[1])
        await connection.execute(statement.encode())
    await _record(connection, migration)


async def _drop_invalid(connection: AsyncConnection[DictRow], index: str) -> None:
    """What a build that was cut off leaves; IF NOT EXISTS would take it for the index."""
    found = await connection.execute(
        """
        SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relname = %s AND c.relnamespace = 'wharf'::regnamespace AND NOT i.indisvalid
        """,
        [index],
    )
    if found.rowcount:
        await connection.execute(sql.SQL("DROP INDEX CONCURRENTLY wharf.{}").format(sql.Identifier(index)))


async def _record(connection: AsyncConnection[DictRow], migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO wharf.migrations (version, name, checksum) VALUES (%s, %s, %s)",
        [migration.version, migration.name, migration.checksum],
    )


async def _end_sessions(connection: AsyncConnection[DictRow]) -> None:
    """Those of brokers. That of v0.1.0 has prepared SELECT * of a table that now has more columns, and PostgreSQL
    refuses that for as long as the session lasts; on a new one, which the broker opens by itself, it works. While the
    table is still locked: so nobody comes in between. Who was at work on one is told 503, and to try again."""
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE NONE")
            await connection.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pg_has_role(usesysid, 'wharf_api', 'MEMBER')
                  AND NOT pg_has_role(usesysid, 'wharf_owner', 'MEMBER')
                """
            )
            await connection.execute("SET LOCAL ROLE wharf_owner")
    except psycopg.errors.InsufficientPrivilege:
        log.warning("brokers_of_v0_1_0_must_be_restarted")


async def _volume_id(connection: AsyncConnection[DictRow], volume: Volume) -> UUID:
    """The id that both carry; a new pair gets a new one. Raises `StartError` for two halves of different pairs."""
    found = await connection.execute("SELECT volume_id FROM wharf.installation")
    row = await found.fetchone()
    marked = volume.identity() if volume.is_prepared() else None
    if row is None:
        volume_id = marked or new_id()
        await connection.execute("INSERT INTO wharf.installation (volume_id) VALUES (%s)", [volume_id])
        return volume_id
    if marked is not None and marked != row["volume_id"]:
        raise StartError(
            f"WHARF_VOLUME: {volume.root} carries the id {marked}, this database expects {row['volume_id']}: "
            "they do not belong together. Mount the right volume or name the right database."
        )
    return UUID(str(row["volume_id"]))


async def role_exists(connection: AsyncConnection[DictRow], role: str) -> bool:
    found = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
    return await found.fetchone() is not None


def _migrations() -> list[Migration]:
    paths = sorted(_schema_folder().joinpath("migrations").glob("*.sql"))
    return [Migration(int(path.stem.partition("_")[0]), path.stem, path.read_text()) for path in paths]


def _schema_folder() -> Path:
    """Beside the packages in a checkout, inside this one in an installed wheel."""
    installed = Path(__file__).with_name("schema")
    return installed if installed.is_dir() else Path(__file__).parents[3] / "schema"
