"""Two services for all these tests: `up`, as a user starts it, and `strict`, processes with small limits and an engine
that misbehaves on command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

import starter_model
from standalone.postgres import Postgres
from tests.e2e.service import Installation, Service, Strict, Up, start_worker
from tests.support.engines import HAZARD_ENGINE

STRICT = {
    "WHARF_MAX_FILE_BYTES": str(2_000_000),
    "WHARF_MAX_PARTS": "3",
    "WHARF_MAX_PIXELS": "1000000",
    "WHARF_MAX_REQUEST_BYTES": "20000",
    "WHARF_MAX_JOB_INPUTS": "400",
    "WHARF_MAX_POOL_BACKLOG": "350",
    "WHARF_MAX_TENANT_BACKLOG": "300",
    "WHARF_MAX_WAIT_SECONDS": "30",
    "WHARF_DEFAULT_MODEL": "digits",
    # Tests send the same picture again and again, and count how often it was looked at.
    "WHARF_RESULT_CACHE": "false",
}
HAZARD = {
    "WHARF_MODEL": str(starter_model.MODEL),
    "WHARF_ENGINE": HAZARD_ENGINE,
    "WHARF_TASK_SECONDS": "1.5",
    "WHARF_MAX_ATTEMPTS": "2",
    "WHARF_RECONCILE_SECONDS": "0.5",
    "WHARF_LEASE_SECONDS": "3",
}


@pytest.fixture(scope="session")
def up_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    # Tests count rows before and after: nothing goes by itself meanwhile.
    up = Up(tmp_path_factory.mktemp("up"), {"WHARF_CLEANUP_EVERY_SECONDS": "100000"})
    try:
        up.start()
        yield up
    finally:
        up.part.stop()


@pytest.fixture(scope="session")
def up(up_process: Up) -> Service:
    return up_process.service()


@pytest.fixture(scope="session")
def strict(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    with new_database(postgres) as database:
        installation = Installation(tmp_path_factory.mktemp("strict"), lambda role: postgres.url(role, database))
        try:
            service = installation.migrate()
            broker = installation.broker(**STRICT)
            worker = installation.worker("hazard", **HAZARD)
            start_worker(worker)
            yield Strict(service, installation, broker, worker)
        finally:
            installation.stop()


@pytest.fixture
def page() -> bytes:
    return starter_model.PAGE.read_bytes()


@pytest.fixture
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test leaves no row and no staged byte in the services that it uses."""
    services: list[Service] = []
    if "up" in request.fixturenames:
        services.append(request.getfixturevalue("up"))
    if "strict" in request.fixturenames:
        services.append(request.getfixturevalue("strict").service)
    before = [service.traces() for service in services]
    yield
    assert [service.traces() for service in services] == before
    assert all(service.staged() == [] for service in services)


@contextmanager
def new_database(postgres: Postgres) -> Iterator[str]:
    name = f"wharf_{os.urandom(6).hex()}"
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield name
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
