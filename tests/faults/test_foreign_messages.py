"""What is none of ours on the queues: rejected, counted and gone, beside work that goes on."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from custody.messages import MOST_BYTES
from tests.e2e.service import Part, until
from tests.faults.conftest import NewFleet
from tests.faults.fleet import POOL, QUEUES, Fleet, counted
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

FILE = {"sha256": "ab" * 32, "path": "blobs/x", "size": 1, "media_type": "image/png"}
MESSAGE = {"task": str(uuid4()), "tenant": str(uuid4()), "model": POOL, "file": FILE}

MALFORMED = {
    "empty": b"",
    "no JSON": b"\x00\xff\xfe task",
    "no object": b"[1, 2, 3]",
    "a number": b"1e400",
    "too deep": b"[" * (MOST_BYTES - 1),
    "no task": json.dumps({**MESSAGE, "task": None}).encode(),
    "a task's name": json.dumps({**MESSAGE, "task": "the first one"}).encode(),
    "no file": json.dumps({name: value for name, value in MESSAGE.items() if name != "file"}).encode(),
    "a file that is none": json.dumps({**MESSAGE, "file": []}).encode(),
    "a model that is none": json.dumps({**MESSAGE, "model": {}}).encode(),
    "more than we know": json.dumps({**MESSAGE, "shell": "rm"}).encode(),
    "half of UTF-16": json.dumps(MESSAGE).encode("utf-16")[:301],
}
FOREIGN = json.dumps({**MESSAGE, "model": "another"}).encode()
OVERSIZED = json.dumps({**MESSAGE, "pixels": "x" * 3_000_000}).encode()
UNKNOWN = json.dumps(MESSAGE).encode()
"""Well-formed, and no such task."""


@dataclass(frozen=True)
class Queued:
    fleet: Fleet
    node: RabbitMQ
    relay: Part
    worker: Part

    def rejected(self) -> float:
        return counted(self.worker, "wharf_messages_rejected_total")


@pytest.fixture(scope="module")
def queued(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queued]:
    require_rabbitmq()
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as node:
        fleet = new_fleet(node)
        relay = fleet.relay("relay", node.url())
        yield Queued(fleet, node, relay, fleet.worker("w1", WHARF_AMQP_URL=node.url()))


@pytest.fixture
def channel(queued: Queued) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(queued.node.url())) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


@pytest.mark.parametrize("queue", QUEUES[:2])
def test_messages_that_are_none_of_ours_are_rejected_and_counted_beside_the_work(
    queued: Queued, channel: BlockingChannel, queue: str
) -> None:
    worker, relay = queued.worker, queued.relay
    reasons = {"malformed": len(MALFORMED), "foreign": 1, "oversized": 1}
    name, letters = "wharf_messages_rejected_total", "wharf_dead_letters_total"
    before = {reason: counted(worker, name, reason=reason) for reason in reasons}
    dead = counted(relay, letters)
    with queued.fleet.fault(f"messages of others, {queue}"):
        for body in [*MALFORMED.values(), FOREIGN, OVERSIZED]:
            channel.basic_publish("", queue, body)
        until(lambda: queued.rejected() - sum(before.values()) >= sum(reasons.values()), "each is rejected")
    assert {reason: counted(worker, name, reason=reason) - before[reason] for reason in reasons} == reasons
    until(lambda: counted(relay, letters) - dead >= sum(reasons.values()), "each is taken from the dead letters")
    time.sleep(0.5)
    assert queued.rejected() == sum(before.values()) + sum(reasons.values()), "none comes again"
    assert counted(relay, letters) - dead == sum(reasons.values())


def test_the_message_of_an_unknown_task_is_void(queued: Queued, channel: BlockingChannel) -> None:
    before = queued.rejected()
    with queued.fleet.fault("messages of unknown tasks"):
        for queue in QUEUES:
            channel.basic_publish("", queue, UNKNOWN)
    assert queued.rejected() == before


def test_the_message_of_a_task_that_has_ended_is_void(queued: Queued, channel: BlockingChannel) -> None:
    tenant = queued.fleet.tenant()
    job = tenant.submit(1)
    before = tenant.results(job)
    [(task, owner)] = queued.fleet.service.ask(
        "SELECT id::text, tenant_id::text FROM wharf.tasks WHERE job_id = %s", job
    )
    body = json.dumps({**MESSAGE, "task": task, "tenant": owner}).encode()
    with queued.fleet.fault("messages of ended tasks"):
        for queue in QUEUES:
            channel.basic_publish("", queue, body)
    assert tenant.results(job) == before


def test_properties_of_any_kind_do_no_harm(queued: Queued, channel: BlockingChannel) -> None:
    strange = pika.BasicProperties(
        content_type="image/png", content_encoding="gzip", headers={"traceparent": 7, "x-death": [{"count": -1}]},
        priority=255, message_id="x" * 200, correlation_id="y", reply_to="amq.rabbitmq.reply-to", type="wharf.task.v0",
    )  # fmt: skip
    strange.reply_to = None
    with queued.fleet.fault("strange properties"):
        for body in (UNKNOWN, b"nothing"):
            channel.basic_publish("", QUEUES[0], body, strange)
    assert queued.rejected() > 0


def test_a_task_whose_message_somebody_else_rejected_is_dispatched_again(
    queued: Queued, channel: BlockingChannel
) -> None:
    tenant = queued.fleet.tenant()
    with queued.fleet.unharmed():
        queued.fleet.dismiss(queued.worker)
        job = tenant.submit(1)
        until(lambda: queued.fleet.waiting()[QUEUES[0]] == 1, "its message waits")
        method, _, _ = channel.basic_get(QUEUES[0])
        assert method is not None
        channel.basic_reject(method.delivery_tag, requeue=False)
        over_at = time.monotonic()
        queued.fleet.bring_back(queued.worker)
        queued.fleet.recovers("a message rejected by others", over_at, [tenant])
    assert tenant.job(job)["state"] == "succeeded"
    assert counted(queued.relay, "wharf_dead_letters_total", outcome="dispatched") == 1
