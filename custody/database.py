"""The connection pool, and the transaction every statement of the service runs in."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from custody.errors import CustodyError, StartError

Transaction = AsyncConnection[DictRow]
"""A connection inside an open transaction, or one of `Database.statements`: what the store methods take. The caller
opens it; none of them commits."""

UNAVAILABLE = (
    psycopg.OperationalError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
)
UNAVAILABLE_CLASSES = ("08", "40", "53", "55", "57")
"""Of SQLSTATE: connection lost, rolled back for others, no resources, locked by others for too long, server going
down."""

BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = {idle:d}; SET LOCAL lock_timeout = '20s'"
SEE_FROM_NOW = "; SET LOCAL wharf.tenant = '{tenant}'"
"""These open every transaction, in one message. Nobody waits, or lets others wait, for ever: for a volume that hangs,
say."""

SEE_AS = "SELECT set_config('wharf.tenant', %s, true)"
"""From this statement to its end, the transaction sees what row-level security lets this tenant see."""

BY_INDEX = b"SET enable_seqscan = off"
PLAN_ONCE = b"SET plan_cache_mode = force_generic_plan"

OLDEST_POSTGRES = 15

NEEDED_MIGRATION = 19
"""The newest migration of this release: processes start on its schema or a newer one, which still suits them."""

ROLES = ("wharf_owner", "wharf_api", "wharf_worker", "wharf_relay", "wharf_cleanup")


class Connection(AsyncConnection[DictRow]):
    """`seen_by`: the tenant whose row-level security each statement alone is seen through; None: what the transaction
    says."""

    seen_by: UUID | None = None

    async def execute(self, query: Any, params: Any = None, **named: Any) -> AsyncCursor[DictRow]:
        if self.seen_by is None:
            return await super().execute(query, params, **named)
        # Without a BEGIN, what is sent up to the end of a pipeline is one transaction.
        async with self.pipeline():
            await super().execute(SEE_AS, [str(self.seen_by)])
            return await super().execute(query, params, **named)


class Database:
    """One pool of connections under one role.

    `url`: a libpq connection string; `name`: what the server's activity view shows; `role`: the role of
    `schema/roles.sql` that the login must have, and no other of them (None: any); `size`: most connections held;
    `idle_seconds`: after so long without a word inside a transaction, as of a process that was paused or cut off, the
    server ends it and lets go of its locks; `by_index`: no statement reads a whole table. A queue's tables are empty
    one minute and large the next, and a plan that was made for the empty one is kept; `plans_once`: none is planned
    anew for its values, for whoever sends the same few all the time; `prepares`: statements are prepared when they come
    again, which a transaction pooler in between would send to other sessions than their executions."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        role: str | None = None,
        size: int = 16,
        idle_seconds: float = 30.0,
        by_index: bool = False,
        plans_once: bool = False,
        prepares: bool = True,
    ) -> None:
        self._url = url
        self._role = role
        self._settings = [setting for setting, wanted in ((BY_INDEX, by_index), (PLAN_ONCE, plans_once)) if wanted]
        self._size = size
        self._idle_milliseconds = round(idle_seconds * 1000)
        self._checking: asyncio.Task[None] | None = None
        self._pool = AsyncConnectionPool[Connection](
            url,
            connection_class=Connection,
            # Transactions are begun by a statement of ours.
            kwargs={
                "row_factory": dict_row,
                "application_name": name,
                "autocommit": True,
                **({} if prepares else {"prepare_threshold": None}),
            },
            min_size=1,
            max_size=size,
            configure=self._configure,
            timeout=5,
            open=False,
        )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Raises `StartError` where the server does not answer, is too old, has a schema older than this
        program needs or none, or the role could go around row-level security."""
        await _check(self._url, self._role)
        await self._pool.open()

    async def close(self) -> None:
        if self._checking:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self, tenant: UUID | None = None) -> AsyncIterator[Transaction]:
        """One transaction, seen through the row-level security of `tenant`. READ COMMITTED: the custody protocol
        relies on every statement seeing what was committed before it began.

        Raises `CustodyError("database_unavailable")` where the server does not answer or goes away."""
        with _told("Nothing was changed; try again shortly."):
            connection = await self._begin(tenant)
            try:
                yield connection
                await _commit(connection)
            except BaseException:
                with suppress(psycopg.Error):
                    await connection.rollback()
                raise
            finally:
                await self._pool.putconn(connection)

    @asynccontextmanager
    async def statements(self, tenant: UUID | None = None) -> AsyncIterator[Transaction]:
        """A connection on which each statement is a transaction by itself, which saves two messages each time, seen
        through the row-level security of `tenant`. For statements that may be done twice: where the server goes away,
        nobody knows whether the last one was done. Raises `CustodyError("database_unavailable")`."""
        with _told("What was asked last may have been done; asking again does no harm."):
            connection = await self._living()
            connection.seen_by = tenant
            try:
                yield connection
            except psycopg.OperationalError:
                # After a restart of the server every pooled connection is broken: they are replaced together.
                if self._checking is None or self._checking.done():
                    self._checking = asyncio.create_task(self._pool.check(), name="check-connections")
                raise
            finally:
                connection.seen_by = None
                await self._pool.putconn(connection)

    async def _configure(self, connection: Transaction) -> None:
        for setting in self._settings:
            await connection.execute(setting)

    async def _living(self) -> Connection:
        """A connection that the server has not closed, as far as is known here: after its restart all are."""
        for _ in range(self._size):
            connection = await self._pool.getconn()
            with suppress(psycopg.OperationalError):
                connection.pgconn.consume_input()
                return connection
            await self._pool.putconn(connection)
        return await self._pool.getconn()

    async def _begin(self, tenant: UUID | None) -> Connection:
        # After a restart of the server every pooled connection is broken. Each is found out here, by the statement
        # that opens the transaction, and the next one tried: nothing has been asked for yet, so nothing is doubled.
        begin = BEGIN.format(idle=self._idle_milliseconds) + (SEE_FROM_NOW.format(tenant=tenant) if tenant else "")
        for spare in reversed(range(self._size + 1)):
            connection = await self._pool.getconn()
            try:
                await connection.execute(begin.encode())
            except BaseException as error:
                with suppress(psycopg.Error):
                    await connection.rollback()
                await self._pool.putconn(connection)
                if spare and isinstance(error, psycopg.OperationalError):
                    continue
                raise
            return connection
        raise AssertionError("unreachable: the last try returns or raises")


@contextmanager
def _told(consequence: str) -> Iterator[None]:
    """Errors of a server that is away, as `CustodyError`."""
    try:
        yield
    except psycopg.Error as error:
        if not (isinstance(error, UNAVAILABLE) or (error.sqlstate or "")[:2] in UNAVAILABLE_CLASSES):
            raise
        what = "has no room left on its disk" if isinstance(error, psycopg.errors.DiskFull) else "does not answer"
        raise CustodyError(
            "database_unavailable",
            f"The database {what} ({type(error).__name__}). {consequence}",
            retry_after=2,
        ) from error


async def _commit(connection: Transaction) -> None:
    try:
        await connection.commit()
    except psycopg.OperationalError as error:
        raise CustodyError(
            "database_unavailable",
            "The database went away while it was told to keep the change, which may have been done. "
            "Send it again with the same Idempotency-Key, or look first.",
            retry_after=2,
        ) from error


@dataclass(frozen=True)
class Server:
    """`clock`: its time, in seconds since 1970."""

    version: str
    user: str
    clock: float


async def describe(transaction: Transaction) -> Server:
    """The server that answers, and who we are to it."""
    found = await transaction.execute(
        """
        SELECT current_setting('server_version') AS version, current_user AS "user",
               extract(epoch FROM clock_timestamp())::float8 AS clock
        """
    )
    row = await found.fetchone()
    assert row is not None
    return Server(**row)


async def may_read(transaction: Transaction, *tables: str) -> bool:
    """Whether our role may read all of these tables of ours."""
    found = await transaction.execute(
        "SELECT bool_and(has_table_privilege('wharf.' || name, 'SELECT')) AS may FROM unnest(%s::text[]) AS name",
        [list(tables)],
    )
    row = await found.fetchone()
    assert row is not None
    return bool(row["may"])


async def schema_version(connection: AsyncConnection[DictRow]) -> int:
    """The newest migration that was applied; 0 where there is none, or none that processes may see."""
    found = await connection.execute(
        """
        SELECT has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, 'version', 'SELECT') AS readable
        FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
        WHERE n.nspname = 'wharf' AND c.relname = 'migrations'
        """
    )
    row = await found.fetchone()
    if row is None or not row["readable"]:
        return 0
    found = await connection.execute("SELECT coalesce(max(version), 0) AS version FROM wharf.migrations")
    row = await found.fetchone()
    assert row is not None
    return int(row["version"])


async def _check(url: str, role: str | None) -> None:
    try:
        async with await AsyncConnection.connect(url, connect_timeout=10, row_factory=dict_row) as connection:
            found = await connection.execute(
                """
                SELECT current_setting('server_version_num')::int / 10000 AS version,
                       current_user AS "user",
                       r.rolsuper OR r.rolbypassrls AS unwalled,
                       ARRAY (SELECT o.rolname::text FROM pg_roles o
                              WHERE o.rolname = ANY (%s) AND pg_has_role(o.oid, 'MEMBER')) AS roles
                FROM pg_roles r WHERE r.rolname = current_user
                """,
                [list(ROLES)],
            )
            row = await found.fetchone()
            version = await schema_version(connection)
    except psycopg.Error as error:
        raise StartError(
            f"WHARF_DATABASE_URL: the database does not answer: {str(error).strip()}\n"
            "Start it, or correct the URL, for example postgresql://wharf_api:SECRET@postgres:5432/wharf"
        ) from error
    assert row is not None
    if row["version"] < OLDEST_POSTGRES:
        raise StartError(f"PostgreSQL {row['version']} is too old: Wharfinger needs {OLDEST_POSTGRES} or newer.")
    if row["unwalled"] or "wharf_owner" in row["roles"]:
        raise StartError(
            f"WHARF_DATABASE_URL: role {row['user']} is a superuser, owns the tables or bypasses row-level security, "
            "which is the wall between tenants. Use a role of this process: wharf_api for the broker, wharf_worker "
            "for a worker (`wharf migrate --print-roles` shows them)."
        )
    if role is not None and row["roles"] != [role]:
        raise StartError(
            f"WHARF_DATABASE_URL: {row['user']} has the roles {', '.join(row['roles']) or '(none of ours)'}; this "
            f"process needs {role} and no other. Make it a login of its own: CREATE ROLE name LOGIN IN ROLE {role}"
        )
    if version < NEEDED_MIGRATION:
        raise StartError(
            f"The database's schema is at migration {version or 'none'}, this program needs {NEEDED_MIGRATION}: "
            "run `wharf migrate` of this release with the owner's URL first."
        )
