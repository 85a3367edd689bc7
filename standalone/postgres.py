"""The embedded Postgres: a direct child of this process, on a Unix socket, with its cluster in a folder of ours.

Who may connect: the socket lies in a folder of mode 0700 that belongs to the user Postgres runs as, and nothing listens
on the network. Whoever can enter that folder, which is that user and root, can read and rewrite the cluster's files as
well: a password would protect nothing from them, and nobody else gets as far as being asked. Hence `trust`. What a role
may do is still the role's: every process logs in with its own.
"""

import asyncio
import os
import signal
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import quote

from custody.errors import StartError
from standalone.database_cluster import account_for, check_version, new_cluster, programs_of_the_wheel
from standalone.folder import PORT, Folder, explained
from standalone.orphans import end_orphans
from standalone.process import Account, Process
from standalone.server_log import ServerLog

SUPERUSER = "postgres"

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_permissions": "0700",
        # A laptop's share. Our queries are short: to compile them or spread them over processes would cost more.
        "max_connections": "100",
        "shared_buffers": "128MB",
        "max_wal_size": "512MB",
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        # The same on every machine, whatever its language and its clock.
        "lc_messages": "C",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_line_prefix": "%m [%p] ",
    }
)
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

INITDB = ("--encoding=UTF8", "--locale=C", "--data-checksums", "--auth-local=trust", "--auth-host=reject")

RECOVERY_SECONDS = 300
"""How long a server may take until it answers: after a kill -9 it reads up to `max_wal_size` first."""

RETRY_SECONDS = 30
RETRIED = (
    # The server processes of a postmaster that was killed with -9 are still ending.
    "pre-existing shared memory block",
    'lock file "postmaster.pid" already exists',
)

ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "No space left on device": "The disk is full: free some space and start again. What was saved is safe.",
        "could not create shared memory segment": "Too little shared memory is free: end other programs that use it.",
        "could not resize shared memory segment": "Too little shared memory: give the container more (--shm-size).",
        "may not enter": "Postgres refuses to run as root, so it runs as that user.",
        "Permission denied": "Set the permissions right, or choose another folder (--data).",
        "invalid data in file": "The cluster is damaged: put the folder back from a backup.",
        "pg_control": "The cluster is damaged: put the folder back from a backup.",
    }
)


class Postgres:
    """`data`: a folder of its own, made where it is missing. `programs`: the folder of `postgres` and `initdb`, by
    default the wheel's. `durable=False` is for tests: a power cut may then damage the cluster, and a kill -9 takes the
    commits of the last moment with it.

    Start it from the main thread: on Linux it stops when that thread ends. `async with` starts and stops it. It belongs
    to no event loop: one `asyncio.run` may start it and another stop it."""

    name = "postgres"

    def __init__(self, data: Path, programs: Path | None = None, *, durable: bool = True) -> None:
        self._folder = Folder(data)
        self._log = ServerLog(self._folder.path / "postgres.log")
        self._programs = programs
        self._settings = {
            **SETTINGS,
            **dict.fromkeys(DURABLE, "on" if durable else "off"),
            # The setting is a list: a name in it may hold spaces and commas where it is quoted.
            "unix_socket_directories": '"' + str(self._folder.socket).replace('"', '""') + '"',
        }
        self._initdb = (f"--username={SUPERUSER}", *INITDB, *(() if durable else ("--no-sync",)))
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def url(self, user: str = SUPERUSER, database: str = "postgres") -> str:
        """A connection string for libpq; the same for the life of this object, whatever is restarted."""
        return url_on(self._folder.socket, user, database)

    async def start(self) -> None:
        """Returns once it answers. The first start makes the cluster; a later one ends what a former run left, and
        recovers what a kill -9 interrupted. Raises `StartError`, with nothing left running."""
        programs = (self._programs or programs_of_the_wheel()).resolve()
        account = account_for(self._folder.cluster)
        self._folder.lock()
        try:
            if self._folder.cluster.exists():
                check_version(self._folder.cluster, programs)
                await end_orphans(self._folder.cluster)
            else:
                await self._make_cluster(programs / "initdb", account)
            self._folder.make_socket_folder(account)
            await self._start_server(programs / "postgres", account)
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Returns the exit status once the server has ended, and keeps the log short until then. `start` may follow."""
        if self._process is None:
            raise RuntimeError("Postgres was not started.")
        exited = asyncio.ensure_future(self._process.exited())
        try:
            while not (await asyncio.wait({exited}, timeout=60))[0]:
                self._log.shorten()
            return exited.result()
        finally:
            exited.cancel()

    async def stop(self) -> None:
        """Ends all sessions, writes a checkpoint and stops; goes on without one where that takes too long. Leaves no
        process, socket or lock."""
        try:
            if self._process:
                await self._process.end((signal.SIGINT, 20), (signal.SIGQUIT, 10))
                self._process = None
                await end_orphans(self._folder.cluster)
        finally:
            self._folder.unlock()

    def kill(self) -> None:
        """Ends it at once, without a checkpoint; the next start recovers everything. `stop` is still to be called."""
        if self._process:
            self._process.send(signal.SIGQUIT)

    async def _make_cluster(self, initdb: Path, account: Account | None) -> None:
        with new_cluster(self._folder.cluster, account) as unfinished:
            began = self._log.size
            self._process = self._spawn(account, initdb, "-D", str(unfinished), *self._initdb)
            if await self._process.exited() != 0:
                raise self._failure("The database could not be made", began)

    async def _start_server(self, postgres: Path, account: Account | None) -> None:
        settings = [text for name, value in self._settings.items() for text in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + RETRY_SECONDS
        self._log.shorten()
        while True:
            began = self._log.size
            self._process = self._spawn(account, postgres, "-D", str(self._folder.cluster), *settings)
            if await self._answers(self._process):
                return
            said = self._log.since(began)
            if time.monotonic() > deadline or not any(words in said for words in RETRIED):
                raise self._failure("The database did not start", began)
            await asyncio.sleep(0.2)

    def _spawn(self, account: Account | None, program: Path, *arguments: str) -> Process:
        inherited = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
        with explained(self._log.path), self._log.open() as output:
            return Process.spawn(
                [str(program), *arguments],
                death_signal=signal.SIGINT,
                output=output,
                # Without the PG* variables of whoever starts us.
                env={name: os.environ[name] for name in inherited if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"},
                account=account,
                reach=(program, self._folder.cluster, self._folder.socket),
            )

    async def _answers(self, process: Process) -> bool:
        """True once a login succeeds, False once the process has ended."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        exited = asyncio.ensure_future(process.exited())
        try:
            while not exited.done():
                if await _accepts(self._folder.socket / f".s.PGSQL.{PORT}"):
                    return True
                if time.monotonic() > deadline:
                    raise StartError(f"The database did not answer for {RECOVERY_SECONDS} s: see {self._log.path}.")
                await asyncio.wait({exited}, timeout=0.05)
            return False
        finally:
            exited.cancel()

    def _failure(self, what: str, began: int) -> StartError:
        said = self._log.since(began).strip()
        advice = next((advice for words, advice in ADVICE.items() if words in said), "Set right what it says.")
        last = "\n    ".join(said.splitlines()[-6:])
        return StartError(f"{what} in {self._folder.path}. {advice} Its last words ({self._log.path}):\n    {last}")


def url_on(socket: Path, user: str, database: str) -> str:
    """`socket`: the folder of a server's socket."""
    host = quote(str(socket), safe="")
    return f"postgresql://{quote(user, safe='')}@{host}:{PORT}/{quote(database, safe='')}"


async def _accepts(socket: Path) -> bool:
    """Whether the server grants a session; while it recovers, it answers with an error. In the words of the protocol,
    https://www.postgresql.org/docs/current/protocol-message-formats.html, since no driver is to be had here."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    try:
        start_up = struct.pack("!i", 3 << 16) + f"user\0{SUPERUSER}\0database\0postgres\0\0".encode()
        writer.write(struct.pack("!i", 4 + len(start_up)) + start_up)
        await reader.readuntil(b"Z" + struct.pack("!i", 5))
    except (OSError, asyncio.IncompleteReadError):
        return False
    else:
        writer.write(b"X" + struct.pack("!i", 4))
        return True
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
