"""RabbitMQ dies, forgets, is cut off or refuses: what was promised is done all the same, and soon."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pika
import pytest

from custody.transport.topology import queue_of
from custody.wire import Priority
from tests.e2e.service import Part, until
from tests.faults.conftest import NewFleet
from tests.faults.fleet import POOL, QUEUES, Fleet, Tenant, counted, is_ready, through
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

DECLARED_SECONDS = 3
"""From then on a quorum queue outlives a kill of RabbitMQ 3.10."""

HEARTBEAT_SECONDS = 2
UNHEARD_SECONDS = 20
"""Pika looks each 5 s and a heartbeat whether anything has come."""

SOON_SECONDS = 20
"""Less than what a task that seems overlooked waits."""

WINDOW = 100
BIG = 2500


@dataclass(frozen=True)
class Queued:
    """A fleet on a RabbitMQ of its own, each side behind a proxy."""

    fleet: Fleet
    node: RabbitMQ
    relay: Part
    relay_link: Proxy
    worker_link: Proxy


@pytest.fixture(scope="module")
def queued(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queued]:
    require_rabbitmq()
    settings = {"heartbeat": str(HEARTBEAT_SECONDS)}
    with (
        RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), settings=settings) as node,
        Proxy(node.port) as relay_link,
        Proxy(node.port) as worker_link,
    ):
        fleet = new_fleet(node)
        for name in ("w1", "w2"):
            fleet.worker(name, WHARF_AMQP_URL=through(node.url(), worker_link.port))
        relay = fleet.relay("relay", through(node.url(), relay_link.port), WHARF_WINDOW=str(WINDOW))
        until(lambda: set(fleet.waiting()) == set(QUEUES), "the queues are made")
        time.sleep(DECLARED_SECONDS)
        yield Queued(fleet, node, relay, relay_link, worker_link)


@pytest.fixture(params=["relay", "worker"])
def link(request: pytest.FixtureRequest, queued: Queued) -> Iterator[Proxy]:
    proxy: Proxy = getattr(queued, f"{request.param}_link")
    yield proxy
    proxy.heal()


@pytest.fixture
def side(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["link"])


def test_rabbitmq_is_killed_in_the_middle_of_publishing_and_starts_again(queued: Queued) -> None:
    with queued.fleet.fault("RabbitMQ killed, restarted"):
        queued.node.kill()
        time.sleep(1)
        queued.node.start()


def test_rabbitmq_is_stopped_as_an_operator_does_and_starts_again(queued: Queued) -> None:
    with queued.fleet.fault("RabbitMQ stopped, restarted"):
        queued.node.restart()


def test_rabbitmq_forgets_everything_under_load_for_a_window_of_duplicates_at_most(queued: Queued) -> None:
    """The queue is full when it happens, and each of its messages is lost."""
    with queued.fleet.unharmed():
        released, inputs = counted(queued.relay, "wharf_tasks_released_total"), tasks(queued.fleet)
        with queued.fleet.load(milliseconds=5) as load:
            load.tenants[1].submit(*[5] * BIG, priority=Priority.BATCH)
            until(lambda: queued.fleet.waiting()[QUEUES[1]] > WINDOW * 0.7, "the queue is full")
            queued.node.kill()
            queued.node.wipe()
            queued.node.start()
        recovery = queued.fleet.recovers("RabbitMQ's data wiped under load", load.ended_at, load.tenants)
        assert recovery.next_seconds < SOON_SECONDS
        # Thousands of inputs wait, which take as long as the machine needs for them: but without a pause.
        assert longest_pause(queued.fleet, load.tenants) < SOON_SECONDS
        for tenant in load.tenants:
            assert {tenant.job(job)["state"] for job in tenant.jobs} == {"succeeded"}
    again = counted(queued.relay, "wharf_tasks_released_total") - released - (tasks(queued.fleet) - inputs)
    assert WINDOW / 2 < again <= WINDOW * len(Priority), "one window, of each class"
    # The queues are as young as the node.
    time.sleep(DECLARED_SECONDS)


def test_a_queue_that_rabbitmq_has_no_leader_for_is_made_anew(queued: Queued) -> None:
    """RabbitMQ 3.10, killed within a second of a queue's declaration, has the queue afterwards and cannot use it."""
    with queued.fleet.fault("queues without a leader"):
        queued.node.kill()
        queued.node.wipe()
        queued.node.start()
        until(lambda: set(queued.fleet.waiting()) == set(QUEUES), "the queues are made")
        queued.node.kill()
        queued.node.start()
    time.sleep(DECLARED_SECONDS)


@pytest.mark.parametrize("priority", Priority)
def test_a_queue_is_deleted(queued: Queued, priority: Priority) -> None:
    with (
        queued.fleet.fault(f"{priority} queue deleted"),
        pika.BlockingConnection(pika.URLParameters(queued.node.url())) as connection,
    ):
        connection.channel().queue_delete(queue_of(POOL, priority))


def test_the_queue_of_dead_letters_is_deleted(queued: Queued) -> None:
    with (
        queued.fleet.fault("dead letters deleted"),
        pika.BlockingConnection(pika.URLParameters(queued.node.url())) as connection,
    ):
        connection.channel().queue_delete(QUEUES[-1])


def test_rabbitmq_has_no_memory_left_and_blocks_its_publishers(queued: Queued) -> None:
    with queued.fleet.fault("memory alarm"):
        queued.node.ctl("set_vm_memory_high_watermark", "absolute", "1")
        until(lambda: not is_ready(queued.relay), "the relay is not ready")
        said = queued.fleet.health
        until(lambda: any("short of memory" in warning for warning in said()["warnings"]), "the operator learns why")
        queued.node.ctl("set_vm_memory_high_watermark", "absolute", "512MB")
    assert is_ready(queued.relay)


def test_the_network_is_cut_and_comes_back(queued: Queued, link: Proxy, side: str) -> None:
    with queued.fleet.fault(f"cut from the {side}"):
        link.cut()
        time.sleep(2)
        link.heal()


def test_the_network_is_silent_for_a_moment(queued: Queued, link: Proxy, side: str) -> None:
    before = link.accepted
    with queued.fleet.fault(f"partitioned from the {side}, shortly"):
        link.freeze()
        time.sleep(HEARTBEAT_SECONDS * 0.7)
        link.heal()
    assert link.accepted == before, "a hiccup costs no connection"


def test_the_network_is_silent_for_longer_than_the_heartbeats(queued: Queued, link: Proxy, side: str) -> None:
    before = link.accepted
    with queued.fleet.fault(f"partitioned from the {side}"):
        link.freeze()
        until(lambda: link.accepted > before, "it gives up on the connection", UNHEARD_SECONDS)
        link.heal()


def test_the_network_is_slow(queued: Queued, link: Proxy, side: str) -> None:
    before = link.accepted
    with queued.fleet.fault(f"the {side} far away"):
        link.delay(0.25)
        time.sleep(3)
        link.heal()
    assert link.accepted == before, "slow is not dead"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_connection_ends_one_way(queued: Queued, link: Proxy, side: str, direction: str) -> None:
    before = link.accepted
    with queued.fleet.fault(f"half-closed to the {side}, {direction}"):
        link.half_close("up" if direction == "up" else "down")
        until(lambda: link.accepted > before, "it connects anew", UNHEARD_SECONDS)


def test_relay_and_workers_are_cut_off_at_once_again_and_again(queued: Queued) -> None:
    with queued.fleet.fault("a network that flaps"):
        for _ in range(5):
            queued.relay_link.cut()
            queued.worker_link.cut()
            time.sleep(0.3)
            queued.relay_link.heal()
            queued.worker_link.heal()
            time.sleep(0.3)


def tasks(fleet: Fleet) -> int:
    [(count,)] = fleet.service.ask("SELECT count(*) FROM wharf.tasks")
    return int(str(count))


def longest_pause(fleet: Fleet, tenants: list[Tenant]) -> float:
    """Seconds between two ends of tasks of theirs, the fault itself included."""
    [row] = fleet.service.ask(
        "SELECT extract(epoch FROM max(pause))::float8 FROM ("
        " SELECT ended_at - lag(ended_at) OVER (ORDER BY ended_at) AS pause FROM wharf.tasks WHERE job_id = ANY (%s)"
        ") pauses",
        [UUID(job) for tenant in tenants for job in tenant.jobs],
    )
    return float(str(row[0]))
