"""The relay is killed at each step, or does not answer: its successor brings on what it left, nothing is doubled."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pika
import pytest

from custody.messages import encode
from custody.releases import Released
from custody.transport.topology import DEAD_LETTERS
from custody.wire import Priority
from tests.e2e.service import Part, until
from tests.faults.conftest import NewFleet
from tests.faults.fleet import FAST, Fleet, Recovery, Tenant, counted
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq
from tests.support.relay_killed_at import LETTER_STEPS, STEPS

SOON_SECONDS = 10
"""Half of what a task that seems overlooked waits."""

PAUSE_SECONDS = 10
"""Before a task whose message came back as a dead letter is released again."""


@dataclass(frozen=True)
class Queued:
    fleet: Fleet
    amqp_url: str
    relay: Part


@pytest.fixture(scope="module")
def queued(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queued]:
    require_rabbitmq()
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as node:
        fleet = new_fleet(node)
        fleet.worker("w1", WHARF_AMQP_URL=node.url())
        yield Queued(fleet, node.url(), fleet.relay("relay", node.url()))


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_is_killed_between_the_row_and_the_message(queued: Queued, step: str) -> None:
    fleet = queued.fleet
    with fleet.unharmed():
        fleet.dismiss(queued.relay)
        tenant = fleet.tenant()
        jobs = [tenant.submit(*[1] * 20, priority=priority) for priority in Priority]
        assert killed_at(step, queued, tenant).all_seconds < SOON_SECONDS
        assert [tenant.job(job)["progress"]["done"] for job in jobs] == [20, 20]


@pytest.mark.parametrize("step", LETTER_STEPS)
def test_a_relay_is_killed_between_a_dead_letter_and_its_task(queued: Queued, step: str) -> None:
    fleet = queued.fleet
    with fleet.unharmed():
        fleet.dismiss(queued.relay)
        tenant = fleet.tenant()
        job = tenant.submit(1)
        put_dead_letter(queued, job)
        assert killed_at(step, queued, tenant).all_seconds < PAUSE_SECONDS + SOON_SECONDS
        assert tenant.job(job)["state"] == "succeeded"


def killed_at(step: str, queued: Queued, tenant: Tenant) -> Recovery:
    """A relay, at this step, and what its successor makes of it."""
    fleet = queued.fleet
    doomed = fleet.doomed(fleet.installation.relay("relay", queued.amqp_url, **FAST), "relay_killed_at", step)
    doomed.start()
    assert doomed.ended() == -signal.SIGKILL, doomed.output()
    over_at = time.monotonic()
    fleet.bring_back(queued.relay)
    return fleet.recovers(f"relay killed: {step}", over_at, [tenant])


def put_dead_letter(queued: Queued, job: str) -> None:
    """As if the message of the job's task had been delivered too often."""
    facts = "SELECT id::text, tenant_id::text, pool, sha256, size, media_type, NULL FROM wharf.tasks WHERE job_id = %s"
    [row] = queued.fleet.service.ask(facts, job)
    letter = encode(Released(*row))  # type: ignore[arg-type]
    with pika.BlockingConnection(pika.URLParameters(queued.amqp_url)) as connection:
        connection.channel().basic_publish("", DEAD_LETTERS, letter)


def test_another_relay_takes_over_from_one_that_is_killed(queued: Queued) -> None:
    other = queued.fleet.relay("other", queued.amqp_url)
    with queued.fleet.fault("one of two relays killed"):
        queued.relay.send(signal.SIGKILL)
        queued.relay.ended()
        queued.fleet.dismiss(queued.relay)
    assert counted(other, "wharf_tasks_released_total") > 0
    queued.fleet.bring_back(queued.relay)
    queued.fleet.dismiss(other)


def test_a_relay_stands_still_and_goes_on(queued: Queued) -> None:
    with queued.fleet.fault("relay stopped and continued"):
        queued.relay.send(signal.SIGSTOP)
        time.sleep(3)
        queued.relay.send(signal.SIGCONT)


def test_a_relay_that_is_asked_to_stop_leaves_nothing_undone(queued: Queued) -> None:
    with queued.fleet.fault("relay replaced"):
        queued.relay.send(signal.SIGTERM)
        assert queued.relay.ended() == 0
        [relays] = queued.fleet.service.ask("SELECT count(*) FROM wharf.relays WHERE name = 'relay'")
        assert relays == (0,)
        queued.fleet.dismiss(queued.relay)
        queued.fleet.bring_back(queued.relay)


def test_relays_do_not_share_a_pool(queued: Queued) -> None:
    other = queued.fleet.relay("other", queued.amqp_url)
    tenant = queued.fleet.tenant()
    with queued.fleet.unharmed():
        job = tenant.submit(*[1] * 100)
        until(lambda: tenant.job(job)["state"] == "succeeded", "the job has ended")
    assert counted(other, "wharf_tasks_released_total") == 0
    queued.fleet.dismiss(other)
