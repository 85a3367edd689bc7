"""Processes that are asked to end while nothing reaches PostgreSQL and RabbitMQ any more, and no connection breaks."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from psycopg.conninfo import conninfo_to_dict

from broker.command import CLOSE_SECONDS
from custody.process import END_SECONDS
from inference_worker.command import GIVE_BACK_SECONDS
from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.service import Installation, Part, answers, until
from tests.faults.fleet import FAST, POOL, WORKER, through
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ

DRAIN_SECONDS = 2.0
SLOW_MACHINE_SECONDS = 5.0


@dataclass(frozen=True)
class CutOff:
    """`bounds`: each process, and within how many seconds it is to end."""

    bounds: list[tuple[Part, float]]
    key: str
    broker_url: str
    links: list[Proxy]


@pytest.fixture
def fleet(postgres: Postgres, rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[CutOff]:
    with ExitStack() as stack:
        database = stack.enter_context(new_database(postgres))
        place = conninfo_to_dict(postgres.url("postgres", database))
        to_postgres = stack.enter_context(Proxy(Path(str(place["host"])) / f".s.PGSQL.{place['port']}"))
        to_rabbitmq = stack.enter_context(Proxy(rabbitmq.port))

        def url(role: str) -> str:
            if role == "postgres":
                return postgres.url(role, database)
            return f"postgresql://{role}@127.0.0.1:{to_postgres.port}/{database}?sslmode=disable"

        installation = Installation(tmp_path, url)
        stack.callback(installation.stop)
        service = installation.migrate()
        amqp = through(rabbitmq.url(), to_rabbitmq.port)
        drain = {"WHARF_DRAIN_SECONDS": f"{DRAIN_SECONDS:g}"}
        bounds = [
            (installation.relay("relay", amqp, **FAST), END_SECONDS),
            (installation.cleanup("cleanup", 0.5), END_SECONDS),
            (installation.worker("queued", **WORKER, **drain, WHARF_AMQP_URL=amqp), DRAIN_SECONDS + GIVE_BACK_SECONDS),
            (installation.worker("embedded", **WORKER, **drain), DRAIN_SECONDS + GIVE_BACK_SECONDS),
        ]
        for part, _ in bounds:
            part.start()
        broker = installation.broker(WHARF_DEFAULT_MODEL=POOL, WHARF_RESULT_CACHE="false", **drain)
        for part, _ in bounds:
            port = part.environment["WHARF_HEALTH_PORT"]
            part.until(lambda port=port: answers(f"http://127.0.0.1:{port}/readyz"))
        bounds.append((broker, DRAIN_SECONDS + CLOSE_SECONDS))
        yield CutOff(bounds, service.key, service.url, [to_postgres, to_rabbitmq])


def test_every_process_that_is_cut_off_from_all_servers_ends_in_its_time(fleet: CutOff) -> None:
    def ask() -> None:
        headers = {"Authorization": f"Bearer {fleet.key}"}
        with suppress(httpx.HTTPError):
            httpx.get(f"{fleet.broker_url}/v1/jobs", headers=headers, timeout=60, trust_env=False)

    for link in fleet.links:
        link.freeze()
    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(2)  # every loop has come to wait for one of them
    began = time.monotonic()
    for part, _ in fleet.bounds:
        part.send(signal.SIGTERM)
    took: dict[str, float] = {}

    def all_ended() -> bool:
        for part, _ in fleet.bounds:
            if part.process is not None and part.process.poll() is not None:
                took.setdefault(part.name, time.monotonic() - began)
        return len(took) == len(fleet.bounds)

    longest = max(bound for _, bound in fleet.bounds)
    until(all_ended, "every process has ended", longest + SLOW_MACHINE_SECONDS)
    late = {
        part.name: took[part.name] for part, bound in fleet.bounds if took[part.name] > bound + SLOW_MACHINE_SECONDS
    }
    assert late == {}
    asking.join()
