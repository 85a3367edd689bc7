"""The queues: their names, their arguments, and how they are made. Relays make them; workers only read.

    wharf.v1.<pool>.interactive    quorum queues, one for each pool and class: quorum queues have no priorities that
    wharf.v1.<pool>.batch          every version of RabbitMQ knows
    wharf.v1.dead                  fanout exchange and quorum queue: what was delivered too often or rejected

Arguments of a queue cannot be changed, so that its name carries a version. These are understood alike by 3.10 and by
4.x: 4.x would set a delivery limit of 20 by itself, 3.x none; `x-max-priority` and a prefetch for a whole channel are
refused by quorum queues of both.
"""

from typing import Any

from custody.transport.connection import NOT_FOUND, Channel, ChannelFailedError, Connection
from custody.wire import Priority

PREFIX = "wharf.v1"
DEAD_LETTERS = f"{PREFIX}.dead"

DELIVERY_LIMIT = 20
"""A fuse: attempts are counted in the task's row, and a task has far fewer."""

QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
TASKS: dict[str, Any] = {**QUORUM, "x-delivery-limit": DELIVERY_LIMIT, "x-dead-letter-exchange": DEAD_LETTERS}


def queue_of(pool: str, priority: Priority) -> str:
    return f"{PREFIX}.{pool}.{priority.value}"


async def declare_dead_letters(channel: Channel) -> None:
    await channel.declare_exchange(DEAD_LETTERS)
    await channel.declare_queue(DEAD_LETTERS, QUORUM)
    await channel.bind(DEAD_LETTERS, DEAD_LETTERS)


async def declare(connection: Connection, pool: str, priority: Priority) -> None:
    """Makes the queue where it is missing. Raises `ChannelFailedError` (406) where it has other arguments."""
    channel = await connection.channel()
    await channel.declare_queue(queue_of(pool, priority), TASKS)
    await channel.close()


async def delete(connection: Connection, pool: str, priority: Priority) -> None:
    """With all that is in it."""
    channel = await connection.channel()
    await channel.delete_queue(queue_of(pool, priority))
    await channel.close()


async def find(connection: Connection, pool: str, priority: Priority) -> int | None:
    """How many messages wait in the queue; None where there is no such queue."""
    channel = await connection.channel()
    try:
        waiting = await channel.count_messages(queue_of(pool, priority))
    except ChannelFailedError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    await channel.close()
    return waiting
