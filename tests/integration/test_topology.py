"""The queues on a real RabbitMQ: what 3.x and 4.x make of their arguments by themselves, and that ours leave neither a
choice. Where the versions differ, the test names both and holds the one that is here to its own."""

import json
import time
from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from custody.transport import topology
from custody.transport.connection import Connection, Login
from custody.wire import Priority
from tests.support.domain import POOL
from tests.support.rabbitmq import RabbitMQ

QUEUE = topology.queue_of(POOL, Priority.BATCH)
OTHER = "another"
PROMPT_SECONDS = 10.0
OFTEN = 30
"""More deliveries than either version grants a message under a limit of 20."""


@pytest.fixture
def blocking(amqp_url: str) -> Iterator[pika.BlockingConnection]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    yield connection
    if connection.is_open:
        connection.close()


@pytest.fixture
async def ours(amqp_url: str) -> None:
    connection = await Connection.open(Login(amqp_url).parameters("test"))
    await topology.declare_dead_letters(await connection.channel())
    await topology.declare(connection, POOL, Priority.BATCH)
    await connection.close()


def test_the_queues_are_made_as_they_are_written_down(ours: None, rabbitmq: RabbitMQ, vhost: str) -> None:
    """Nothing is added, and nothing of it is a default of the server's."""
    columns = ("name", "type", "durable", "auto_delete", "arguments")
    listed = json.loads(rabbitmq.ctl("list_queues", "-p", vhost, "--formatter", "json", *columns))
    arguments = {queue["name"]: {name: value for name, _, value in queue.pop("arguments")} for queue in listed}
    assert arguments == {
        "wharf.v1.dead": {"x-queue-type": "quorum"},
        "wharf.v1.digits.batch": {
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,
            "x-dead-letter-exchange": "wharf.v1.dead",
        },
    }
    for queue in listed:
        assert queue == {"name": queue["name"], "type": "quorum", "durable": True, "auto_delete": False}


def test_without_a_limit_3_delivers_again_and_again_and_4_drops_the_message(
    blocking: pika.BlockingConnection, rabbitmq: RabbitMQ
) -> None:
    blocking.channel().queue_declare(OTHER, durable=True, arguments={"x-queue-type": "quorum"})
    limited = topology.DELIVERY_LIMIT + 1
    assert deliver_until_gone(blocking, OTHER) == (OFTEN if rabbitmq.version < (4,) else limited)


def test_with_ours_both_make_it_a_dead_letter(ours: None, blocking: pika.BlockingConnection) -> None:
    assert deliver_until_gone(blocking, QUEUE) == topology.DELIVERY_LIMIT + 1
    assert waiting(blocking.channel(), topology.DEAD_LETTERS, 1) == 1


def test_an_urgent_message_overtakes_in_4_and_waits_in_3(
    ours: None, blocking: pika.BlockingConnection, rabbitmq: RabbitMQ
) -> None:
    """Which is why a class is a queue, and our messages have no priority."""
    channel = blocking.channel()
    channel.basic_publish("", QUEUE, b"first", pika.BasicProperties(priority=0))
    channel.basic_publish("", QUEUE, b"urgent", pika.BasicProperties(priority=9))
    assert waiting(channel, QUEUE, 2) == 2
    _, _, body = channel.basic_get(QUEUE)
    assert body == (b"first" if rabbitmq.version < (4,) else b"urgent")


def test_the_priorities_of_classic_queues_are_refused_by_both(blocking: pika.BlockingConnection) -> None:
    with pytest.raises(ChannelClosedByBroker, match="x-max-priority"):
        blocking.channel().queue_declare(OTHER, durable=True, arguments={"x-queue-type": "quorum", "x-max-priority": 2})


def test_a_prefetch_for_a_whole_channel_is_refused_by_both(ours: None, blocking: pika.BlockingConnection) -> None:
    channel = blocking.channel()
    channel.basic_qos(prefetch_count=5, global_qos=True)
    with pytest.raises(AMQPError, match="global qos"):
        channel.basic_consume(QUEUE, lambda *_: None)


def deliver_until_gone(connection: pika.BlockingConnection, queue: str) -> int:
    """How often a message is delivered to consumers that die of it."""
    connection.channel().basic_publish("", queue, b"{}", pika.BasicProperties(delivery_mode=2))
    assert waiting(connection.channel(), queue, 1) == 1
    deadline = time.monotonic() + PROMPT_SECONDS
    for deliveries in range(OFTEN):
        while True:
            channel = connection.channel()
            method, _, _ = channel.basic_get(queue)
            channel.close()
            if method is not None:
                break
            if time.monotonic() > deadline or waiting(connection.channel(), queue, 1) == 0:
                return deliveries
    return OFTEN


def waiting(channel: BlockingChannel, queue: str, count: int) -> int:
    """How many messages wait there, once they are so many or do not become so many for a second."""
    deadline = time.monotonic() + 1.0
    while True:
        found: int = channel.queue_declare(queue, passive=True).method.message_count
        if found == count or time.monotonic() > deadline:
            return found
        time.sleep(0.02)
