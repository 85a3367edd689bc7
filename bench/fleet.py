"""The real processes on servers of their own, and what each of them has cost so far."""

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import psycopg

from bench.cpu import below_seconds, own_seconds, tree_seconds
from standalone.postgres import Postgres
from tests.e2e.service import Installation, Part, Service, start_worker
from tests.support.rabbitmq import RabbitMQ

TRANSPORTS = ("embedded", "amqp")
DATABASE = "wharf"

ROOMY = {"vm_memory_high_watermark": '{absolute, "4GB"}'}
"""Of RabbitMQ: what nobody consumes is all in its memory, and an alarm would stop the publishers."""

IDLE_SECONDS = 11
"""A Postgres process that is idle adds what it did to the statistics after 10 s at the latest."""

ASKED = """
    SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())::int,
           (SELECT sum(s.calls) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
            WHERE d.datname = current_database() AND s.query !~* '^(begin|commit|rollback|set)\\M')::int
"""


@dataclass(frozen=True)
class Fleet:
    """`workers` and `broker` are missing where only a relay is looked at, `relay` and `rabbitmq` where there is no
    queue."""

    service: Service
    postmaster: int
    broker: Part | None = None
    workers: Sequence[Part] = ()
    relay: Part | None = None
    rabbitmq: RabbitMQ | None = None

    @property
    def url(self) -> str:
        return self.service.url

    def cpu_seconds(self) -> Mapping[str, float]:
        """Used so far, by role. Postgres: all its processes. The slots: those that have died too."""
        seconds = {}
        if self.broker:
            seconds["broker"] = tree_seconds(self.broker.pid)
        if self.relay:
            seconds["relay"] = tree_seconds(self.relay.pid)
        if self.workers:
            seconds["worker"] = sum(own_seconds(worker.pid) for worker in self.workers)
            seconds["slots"] = sum(below_seconds(worker.pid) for worker in self.workers)
        seconds["Postgres"] = tree_seconds(self.postmaster)
        if self.rabbitmq:
            seconds["RabbitMQ"] = tree_seconds(self.rabbitmq.pid)
        return seconds

    def counts(self) -> Mapping[str, float]:
        """What has been asked of the servers so far: SQL by Postgres' statistics, messages by RabbitMQ's own counters.
        Exact where nobody has asked anything for `IDLE_SECONDS`."""
        [(transactions, statements)] = self.service.ask(ASKED)
        counts = {"transactions": float(str(transactions)), "statements": float(str(statements))}
        if self.rabbitmq:
            overview = self.rabbitmq.ctl("eval", "rabbit_global_counters:overview().")
            counts["messages"] = _total(overview, "messages_received_total")
            counts["acks"] = _total(overview, "messages_acknowledged_total")
        return counts


@contextmanager
def fleet(
    transport: str,
    folder: Path,
    model: Path,
    worker_settings: Mapping[str, str],
    *,
    workers: int = 1,
    broker_settings: Mapping[str, str] = MappingProxyType({}),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Fleet]:
    """Broker and workers with warm engines, and with `amqp` a relay in between. `environment` is for all of them."""
    with ExitStack() as stack:
        installation, service, postmaster = stack.enter_context(new_installation(folder, environment))
        broker = installation.broker(**broker_settings)
        relay = rabbitmq = None
        queue: dict[str, str] = {}
        if transport == "amqp":
            rabbitmq = stack.enter_context(RabbitMQ(folder / "rabbitmq", settings=ROOMY))
            relay = installation.relay("relay-1", rabbitmq.url())
            start_worker(relay)
            queue = {"WHARF_AMQP_URL": rabbitmq.url()}
        parts = [
            installation.worker(f"worker-{number}", WHARF_MODEL=str(model), **queue, **worker_settings)
            for number in range(1, workers + 1)
        ]
        for part in parts:
            start_worker(part)
        yield Fleet(service, postmaster, broker, parts, relay, rabbitmq)


@contextmanager
def lone_relay(folder: Path, **settings: str) -> Iterator[Fleet]:
    """A relay that nobody gives work to, and nobody takes any from."""
    with ExitStack() as stack:
        installation, service, postmaster = stack.enter_context(new_installation(folder))
        rabbitmq = stack.enter_context(RabbitMQ(folder / "rabbitmq", settings=ROOMY))
        relay = installation.relay("relay-1", rabbitmq.url(), **settings)
        start_worker(relay)
        yield Fleet(service, postmaster, relay=relay, rabbitmq=rabbitmq)


def per_thing(before: Mapping[str, float], after: Mapping[str, float], things: int) -> dict[str, float]:
    return {name: (after[name] - before[name]) / things for name in before}


@contextmanager
def new_installation(
    folder: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[Installation, Service, int]]:
    """A durable Postgres of its own that counts its statements; with the postmaster's pid."""
    folder.mkdir(parents=True)
    with new_postgres(folder) as postgres:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
            connection.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        asyncio.run(postgres.stop())
        asyncio.run(postgres.start())
        with psycopg.connect(postgres.url(database=DATABASE), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        installation = Installation(folder, lambda role: postgres.url(role, DATABASE), environment)
        try:
            yield installation, installation.migrate(), postmaster_of(postgres.url())
        finally:
            installation.stop()


@contextmanager
def new_postgres(folder: Path) -> Iterator[Postgres]:
    """Durable, and empty. `folder`: its cluster is in `postgres` below it."""
    postgres = Postgres(folder / "postgres")
    try:
        asyncio.run(postgres.start())
        yield postgres
    finally:
        asyncio.run(postgres.stop())


def postmaster_of(url: str) -> int:
    """The pid of the process that all others of the server are children of."""
    with psycopg.connect(url) as connection:
        return int(psutil.Process(connection.info.backend_pid).ppid())


def _total(overview: str, counter: str) -> float:
    """Over all protocols and kinds of queue."""
    return float(sum(map(int, re.findall(rf"\b{counter} => (\d+)", overview))))
