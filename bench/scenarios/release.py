"""How fast a relay empties what is ready into RabbitMQ, against publishing alone."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pika
import psycopg

from bench import bare_publisher
from bench.fleet import Fleet, lone_relay, per_thing
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario
from custody.notices import CHANNEL, tasks_queued
from custody.transport.topology import queue_of
from custody.wire import Priority

POOL = "bench"
CLASS = Priority.BATCH
WARM_UP = 500
LIMIT_TIMES = 3
"""So many messages for each task: a window of the limit that is over in half a second shows chance."""

POLL_SECONDS = 0.03
LONGEST_WINDOW_SECONDS = 120

READY = """
    WITH job AS (
        INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total)
        SELECT uuidv7(), id, %(pool)s, '{}', %(class)s, %(tasks)s FROM wharf.tenants WHERE operator
        RETURNING id, tenant_id
    )
    INSERT INTO wharf.tasks (id, tenant_id, job_id, pool, class, input, sha256, size, media_type, width, height,
                             orientation)
    SELECT uuidv7(), tenant_id, job.id, %(pool)s, %(class)s, input, sha256(input::text::bytea), 150000, 'image/jpeg',
           810, 1080, 1
    FROM job CROSS JOIN generate_series(1, %(tasks)s) AS input
"""


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    with lone_relay(folder / "relay", WHARF_WINDOW=str(10 * size)) as fleet:
        assert fleet.rabbitmq
        fleet.service.ask(
            """
            INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)
            VALUES (%s, 1, sha256('a model'), 'models/none', 'detect', '[]', 640, 640) RETURNING name
            """,
            POOL,
        )
        _release(fleet, WARM_UP)
        yield Contest(
            [Contender("relay", partial(_release, fleet, size))],
            Contender("bare publishing", partial(_publish, fleet, LIMIT_TIMES * size)),
        )


def _publish(fleet: Fleet, messages: int) -> Window:
    assert fleet.rabbitmq
    before = fleet.cpu_seconds()
    window = bare_publisher.measure(fleet.rabbitmq.url(), messages)
    used = per_thing(before, fleet.cpu_seconds(), messages)["RabbitMQ"]
    return replace(window, figures={**window.figures, "RabbitMQ ms": used * 1000})


def _release(fleet: Fleet, tasks: int) -> Window:
    """From the moment that the pool may run to the last task's confirm, as the relay counts them."""
    assert fleet.rabbitmq
    with psycopg.connect(fleet.service.database, autocommit=True) as connection:
        _make_ready(connection, tasks)
        wanted = _confirmed(fleet) + tasks
        before = fleet.cpu_seconds()
        began = time.perf_counter()
        connection.execute("UPDATE wharf.pools SET state = 'active' WHERE name = %s", [POOL])
        connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, tasks_queued(POOL, CLASS)])
        while _confirmed(fleet) < wanted:
            if time.perf_counter() - began > LONGEST_WINDOW_SECONDS:
                raise RuntimeError(f"{tasks} tasks were not released in {LONGEST_WINDOW_SECONDS} s.")
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
        cpu = per_thing(before, fleet.cpu_seconds(), tasks)
    _empty_the_queue(fleet.rabbitmq.url())
    return Window(tasks / seconds, {f"{role} ms": used * 1000 for role, used in cpu.items()})


def _confirmed(fleet: Fleet) -> float:
    assert fleet.relay
    port = fleet.relay.environment["WHARF_HEALTH_PORT"]
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    counts = re.findall(rf'^wharf_tasks_released_total{{pool="{POOL}".*?}} (\S+)$', metrics, re.MULTILINE)
    return sum(map(float, counts))


def _make_ready(connection: psycopg.Connection, tasks: int) -> None:
    """The pool is paused meanwhile, so that the relay begins with all of them."""
    connection.execute(
        """
        INSERT INTO wharf.pools (name, state) VALUES (%s, 'paused') ON CONFLICT (name) DO UPDATE SET state = 'paused'
        """,
        [POOL],
    )
    connection.execute("DELETE FROM wharf.released")
    # A job without tasks would be taken for one that has ended.
    with connection.transaction():
        connection.execute("DELETE FROM wharf.tasks")
        connection.execute("DELETE FROM wharf.jobs")
        connection.execute(READY, {"pool": POOL, "class": CLASS.value, "tasks": tasks})
    connection.execute("VACUUM ANALYZE wharf.jobs, wharf.tasks, wharf.released")


def _empty_the_queue(url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_purge(queue_of(POOL, CLASS))


SCENARIO = Scenario(
    "release", "A relay that releases ready tasks of one pool against bare pipelined publishing", "tasks",
    size=20_000, open=_open,
)  # fmt: skip
