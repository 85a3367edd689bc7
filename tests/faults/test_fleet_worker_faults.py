"""Workers are killed, stopped, run out of memory or meet poison: others take over, and only the guilty pay."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.service import Part, answers, start_worker, until
from tests.faults.conftest import NewFleet
from tests.faults.fleet import WORKER, Colour, Fleet, own
from tests.support.engines import CRASHING, GREEDY, HANGING, MURDEROUS, STARVED
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq
from tests.support.worker_killed_at import STEPS

HEARTBEAT_SECONDS = 2
MAX_ATTEMPTS = 2
LIMITS = {"WHARF_MAX_ATTEMPTS": str(MAX_ATTEMPTS), "WHARF_TASK_SECONDS": "1.5"}
LONG_LEASE = {**LIMITS, "WHARF_LEASE_SECONDS": "25"}
SOON_SECONDS = 12
"""Less than that lease: a redelivered message is taken over at once."""


@dataclass(frozen=True)
class Queued:
    fleet: Fleet
    amqp_url: str
    workers: list[Part]

    def worker(self, name: str, **settings: str) -> Part:
        """Not started yet."""
        more = {"WHARF_AMQP_URL": self.amqp_url, **settings}
        return self.fleet.installation.worker(name, **{**WORKER, **LIMITS, **more})


@pytest.fixture(scope="module")
def queued(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queued]:
    require_rabbitmq()
    settings = {"heartbeat": str(HEARTBEAT_SECONDS)}
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), settings=settings) as node:
        fleet = new_fleet(node)
        fleet.relay("relay", node.url(), WHARF_MAX_ATTEMPTS=str(MAX_ATTEMPTS))
        workers = [fleet.worker(name, WHARF_AMQP_URL=node.url(), **LIMITS) for name in ("w1", "w2")]
        yield Queued(fleet, node.url(), workers)


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_is_killed_between_the_message_and_its_acknowledgement(queued: Queued, step: str) -> None:
    fleet, tenant = queued.fleet, queued.fleet.tenant()
    name = f"doomed-{list(STEPS).index(step)}"
    doomed = fleet.doomed(queued.worker(name, **LONG_LEASE), "worker_killed_at", step)
    with fleet.unharmed():
        doomed.start()
        try:
            until(lambda: fleet.consumers() == 3, "it takes messages")
            jobs = [tenant.submit(50) for _ in range(16)]
            assert doomed.ended() == -signal.SIGKILL, doomed.output()
        finally:
            doomed.stop()
        recovery = fleet.recovers(f"worker killed: {step}", time.monotonic(), [tenant])
        assert recovery.all_seconds < SOON_SECONDS
        results = [result for job in jobs for result in tenant.results(job)]
        assert [result["state"] for result in results] == ["succeeded"] * 16
        held = [result["attempts"] for result in results if result["attempts"] > 1]
        assert len(held) <= 2
        assert set(held) <= {2}


def test_one_of_two_workers_is_killed_under_load(queued: Queued) -> None:
    victim = queued.workers[0]
    with queued.fleet.fault("one of two workers killed", milliseconds=5):
        victim.send(signal.SIGKILL)
        victim.ended()
        queued.fleet.dismiss(victim)
        time.sleep(1)
        queued.fleet.bring_back(victim)


def test_every_worker_is_killed_under_load(queued: Queued) -> None:
    with queued.fleet.fault("every worker killed", milliseconds=5):
        for victim in queued.workers:
            victim.send(signal.SIGKILL)
        for victim in queued.workers:
            victim.ended()
            queued.fleet.dismiss(victim)
        for victim in queued.workers:
            queued.fleet.bring_back(victim)


def test_a_worker_that_is_replaced_costs_no_attempt(queued: Queued) -> None:
    victim = queued.workers[0]
    with queued.fleet.fault("worker replaced", milliseconds=5) as load:
        victim.send(signal.SIGTERM)
        assert victim.ended() == 0
        queued.fleet.dismiss(victim)
        queued.fleet.bring_back(victim)
    jobs = [(tenant, job) for tenant in load.tenants for job in tenant.jobs]
    assert {result["attempts"] for tenant, job in jobs for result in tenant.results(job)} == {1}


def test_a_worker_stands_still_for_longer_than_its_heartbeat_and_lease(queued: Queued) -> None:
    victim = queued.workers[0]
    said = victim.log.stat().st_size
    with queued.fleet.fault("worker stopped and continued", milliseconds=20):
        until(lambda: held_by(queued.fleet, victim) > 0, "it has something to lose")
        victim.send(signal.SIGSTOP)
        until(lambda: held_by(queued.fleet, victim) == 0, "its tasks are another's")
        # RabbitMQ looks once in a heartbeat, and gives up at the second look without one, or the third.
        time.sleep(HEARTBEAT_SECONDS * 3.5)
        victim.send(signal.SIGCONT)
        # Its slot has answered long ago, its end is void, and its connection gone.
        until(lambda: "queue_interrupted" in victim.log.read_text()[said:], "it finds its connection gone")
    assert '"void"' in victim.log.read_text()[said:]


@pytest.mark.parametrize(
    ("name", "colour", "code"),
    [
        ("an engine that hangs", HANGING, "time_limit_exceeded"),
        ("a picture that crashes", CRASHING, "worker_crashed"),
        ("no memory: refused", GREEDY, "worker_crashed"),
        ("no memory: slot killed", STARVED, "worker_crashed"),
    ],
)
def test_a_picture_that_takes_its_slot_along_fails_alone(queued: Queued, name: str, colour: Colour, code: str) -> None:
    tenant, other = queued.fleet.tenant(), queued.fleet.tenant()
    with queued.fleet.unharmed():
        poisoned = tenant.submit(*[5] * 10, colour, *[5] * 10)
        neighbour = other.submit(*[5] * 20)
        queued.fleet.recovers(name, time.monotonic(), [tenant, other])
    *innocent, guilty = sorted(tenant.results(poisoned), key=lambda result: result["input"] == 10)
    assert (guilty["state"], guilty["error"]["code"], guilty["attempts"]) == ("failed", code, MAX_ATTEMPTS)
    for result in [*innocent, *other.results(neighbour)]:
        assert (result["state"], result["attempts"]) == ("succeeded", 1)


def test_a_picture_that_kills_the_worker_fails_after_its_attempts_and_costs_its_neighbours_none(queued: Queued) -> None:
    """As where the kernel, short of memory, ends the parent instead of the slot."""
    tenant, other = queued.fleet.tenant(), queued.fleet.tenant()
    with kept_alive(queued.workers) as deaths, queued.fleet.unharmed():
        poisoned = tenant.submit(*[5] * 10, MURDEROUS, *[5] * 10)
        neighbour = other.submit(*[5] * 20)
        queued.fleet.recovers("a picture that kills workers", time.monotonic(), [tenant, other])
        until(lambda: all(answers(f"{own(part)}/readyz") for part in queued.workers), "all run again")
    *innocent, guilty = sorted(tenant.results(poisoned), key=lambda result: result["input"] == 10)
    assert (guilty["state"], guilty["error"]["code"], guilty["attempts"]) == ("failed", "worker_lost", MAX_ATTEMPTS)
    assert len(deaths) == MAX_ATTEMPTS
    results = [*innocent, *other.results(neighbour)]
    assert {result["state"] for result in results} == {"succeeded"}
    # Those that the first of the dead workers held have been tried once before; nothing was held with the second.
    assert sum(result["attempts"] > 1 for result in results) <= 3
    assert max(result["attempts"] for result in results) <= 2


@contextmanager
def kept_alive(parts: list[Part]) -> Iterator[list[str]]:
    """Starts again whoever ends, as a kubelet does; gives the names of those who did."""
    deaths: list[str] = []
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.05):
            for part in parts:
                if part.process and part.process.poll() is not None:
                    deaths.append(part.name)
                    start_worker(part)

    keeping = threading.Thread(target=keep)
    keeping.start()
    try:
        yield deaths
    finally:
        over.set()
        keeping.join()


def held_by(fleet: Fleet, worker: Part) -> int:
    [(count,)] = fleet.service.ask(
        "SELECT count(*) FROM wharf.tasks WHERE state = 'running' AND worker = %s", worker.name
    )
    return int(str(count))
