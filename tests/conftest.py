"""What every kind of test starts from: a real Postgres of the project's own, and a fresh database for each test."""

import asyncio
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from broker.maintenance.migrate.migration import migrate
from custody.database import Database
from custody.notices import Notices
from custody.volume import Volume
from standalone.postgres import Postgres
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@dataclass(frozen=True)
class Installation:
    """A migrated database of its own and the volume that belongs to it."""

    postgres: Postgres
    database: str
    volume: Path

    def url(self, user: str = "postgres") -> str:
        return self.postgres.url(user, self.database)


@pytest.fixture(scope="module", autouse=True)
def no_stack_of_openvinos() -> Iterator[None]:
    """OpenVINO's CPU plugin gives the thread a signal stack, and frees it when its last engine goes: the next signal
    that Python handles would end the test run. A slot ignores its signals and lives as long as its engine."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, SS_DISABLE, 0)), None)


class _SignalStack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


SS_DISABLE = 2


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The wheel's server, or the one whose programs lie in WHARF_TEST_POSTGRES."""
    folder = Path(tempfile.mkdtemp(prefix="wharf-tests-"))
    programs = os.environ.get("WHARF_TEST_POSTGRES")
    server = Postgres(folder / "postgres", Path(programs) if programs else None, durable=False)
    asyncio.run(server.start())
    try:
        with psycopg.connect(server.url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE wharf_template")
        asyncio.run(migrate(server.url("postgres", "wharf_template"), None))
        yield server
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """One for all tests that leave it running; made, as the Postgres is, when a test first asks for it. Where it cannot
    be had, the test is skipped; in CI it fails."""
    require_rabbitmq()
    folder = Path(tempfile.mkdtemp(prefix="wharf-rabbitmq-"))
    try:
        with RabbitMQ(folder) as node:
            yield node
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def vhost(rabbitmq: RabbitMQ) -> str:
    """The test's own: no other test's queues and messages are in it."""
    return rabbitmq.new_vhost()


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ, vhost: str) -> str:
    return rabbitmq.url(vhost)


@pytest.fixture
def installation(postgres: Postgres) -> Iterator[Installation]:
    with _new_installation(postgres) as installation:
        yield installation


@pytest.fixture(scope="module")
def shared_installation(postgres: Postgres) -> Iterator[Installation]:
    """One for all tests of a module that leave it as they found it."""
    with _new_installation(postgres) as installation:
        yield installation


@pytest.fixture
def fresh(postgres: Postgres) -> Iterator[str]:
    """The URL of a database without a schema."""
    name = f"fresh_{os.urandom(4).hex()}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres.url("postgres", name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def api_database(installation: Installation) -> AsyncIterator[Database]:
    async with Database(installation.url("wharf_api"), name="api") as database:
        yield database


@pytest.fixture
async def worker_database(installation: Installation) -> AsyncIterator[Database]:
    async with Database(installation.url("wharf_worker"), name="worker") as database:
        yield database


@pytest.fixture
async def notices(installation: Installation) -> AsyncIterator[Notices]:
    async with Notices(installation.url("wharf_api"), name="test") as notices:
        yield notices


@contextmanager
def _new_installation(postgres: Postgres) -> Iterator[Installation]:
    name = f"wharf_{os.urandom(6).hex()}"
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE wharf_template")
    # Its 4,096 folders in memory, where there is such a place: on a disk they take longer than most tests.
    memory = Path("/dev/shm")
    volume = Path(tempfile.mkdtemp(prefix="wharf-volume-", dir=memory if os.access(memory, os.W_OK) else None))
    asyncio.run(migrate(postgres.url("postgres", name), Volume(volume, instance="migrate")))
    yield Installation(postgres, name, volume)
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    shutil.rmtree(volume)
