"""One living process for each name: two of one name would take each other's staged files and leases for leftovers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import psycopg
import structlog

from custody.errors import CustodyError, StartError

log = structlog.get_logger()

WAIT_SECONDS = 5.0
"""At the start: the former process of this name may be ending."""

AGAIN_SECONDS = 1.0

SETTLE = """
    SELECT set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
           set_config('tcp_keepalives_count', '3', false)
"""
"""The server soon finds out that a process is gone, also where its machine went without a word."""

POOLS_GONE = "The session that holds the pools is gone"

HOLDS_ITS_NAME = """
    EXISTS (
        SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        AND l.classid = hashtext('wharf.worker')::oid AND l.objid = hashtext(t.worker)::oid AND l.objsubid = 2)
"""
"""Whether the worker of task `t` lives, by the lock on its name."""


class InstanceLock:
    """Holds the name `instance` among the processes of one `kind`, on a session of its own; takes it again where the
    session breaks. `url` must reach the server itself."""

    def __init__(self, url: str, *, kind: str, instance: str) -> None:
        self._url = url
        self._kind = kind
        self._instance = instance
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Raises `StartError` where another living process has the name, `CustodyError` where the database does not
        answer."""
        with _database_errors("The database, which holds the names of processes, does not answer"):
            connection = await self._connect()
            deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
            while not await self._lock(connection):
                if asyncio.get_running_loop().time() > deadline:
                    await connection.close()
                    raise StartError(
                        f"WHARF_INSTANCE: another {self._kind} is running as {self._instance}. Stop it, or give this "
                        f"one a name of its own, for example WHARF_INSTANCE={self._instance}-2"
                    )
                await asyncio.sleep(AGAIN_SECONDS)
        self._keeping = asyncio.create_task(self._keep(connection), name="instance-lock")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep(self, connection: psycopg.AsyncConnection) -> None:
        while True:
            try:
                async with connection:
                    # Nothing is ever told on this session: it ends when the session does.
                    async for _ in connection.notifies():
                        pass
            except psycopg.Error as error:
                log.warning("instance_lock_interrupted", error=str(error).strip())
            connection = await self._again()

    async def _again(self) -> psycopg.AsyncConnection:
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            try:
                connection = await self._connect()
                if await self._lock(connection):
                    return connection
                await connection.close()
            except psycopg.Error:
                continue
            log.error("instance_name_taken", kind=self._kind, instance=self._instance)

    async def _connect(self) -> psycopg.AsyncConnection:
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, application_name=f"wharf {self._kind} {self._instance}", connect_timeout=10
        )
        await connection.execute(SETTLE)
        return connection

    async def _lock(self, connection: psycopg.AsyncConnection) -> bool:
        found = await connection.execute(
            "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", [f"wharf.{self._kind}", self._instance]
        )
        row = await found.fetchone()
        return row is not None and bool(row[0])


class Alone:
    """One process at a time at some `work`: held on a session of its own, and gone with it. `url` must reach the server
    itself."""

    def __init__(self, url: str, *, work: str) -> None:
        self._url = url
        self._work = work
        self._connection: psycopg.AsyncConnection

    async def __aenter__(self) -> bool:
        """False where another process is at it. Raises `CustodyError` where the database does not answer."""
        with _database_errors("The database, which tells whether somebody is at it, does not answer"):
            self._connection = await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, application_name=f"wharf {self._work} alone", connect_timeout=10
            )
            await self._connection.execute(SETTLE)
            found = await self._connection.execute(
                "SELECT pg_try_advisory_lock(hashtext(%s), 0)", [f"wharf.{self._work}"]
            )
            row = await found.fetchone()
        return row is not None and bool(row[0])

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()


class PoolLocks:
    """The pools that this relay looks after, each of them no other one: held on one session, and gone with it. `url`
    must reach the server itself."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name
        self._connection: psycopg.AsyncConnection

    async def __aenter__(self) -> Self:
        with _database_errors(POOLS_GONE):
            self._connection = await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, application_name=f"{self._name} pools", connect_timeout=10
            )
            await self._connection.execute(SETTLE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def take(self, pool: str) -> bool:
        """False where another relay looks after it. Raises `CustodyError` where the session, and with it every pool
        taken before, is gone."""
        with _database_errors(POOLS_GONE):
            found = await self._connection.execute(
                "SELECT pg_try_advisory_lock(hashtext('wharf.pool'), hashtext(%s))", [pool]
            )
            row = await found.fetchone()
        return row is not None and bool(row[0])

    async def check(self) -> None:
        """Raises `CustodyError` where the session is gone."""
        with _database_errors(POOLS_GONE):
            await self._connection.execute("SELECT")


@contextmanager
def _database_errors(what: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise CustodyError("database_unavailable", f"{what} ({type(error).__name__}).") from error
