"""Tasks become messages, and the server's word on each of them comes back: confirmed, refused, or never."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from custody.messages import CONTENT_TYPE, TYPE, encode
from custody.releases import Released
from custody.spans import Tracing
from custody.transport.connection import Channel, Connection


@dataclass(eq=False)
class Batch:
    """Messages that were published together. Once `answered`, each task is in one of the three lists, or the channel
    closed before the server said a word of it."""

    queue: str
    tasks: Sequence[Released]
    published_ns: int
    confirmed: list[Released] = field(default_factory=list)
    returned: list[Released] = field(default_factory=list)
    nacked: list[Released] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def answers(self) -> int:
        """How many messages the server has said its word of."""
        return len(self.confirmed) + len(self.returned) + len(self.nacked)


class Publisher:
    """One channel on which the server confirms every message. `open` makes one. With `tracing`, the messages of a job
    that were published together are a span of the trace that the job belongs to."""

    def __init__(self, channel: Channel, connection: Connection, tracing: Tracing | None) -> None:
        self._channel = channel
        self._connection = connection
        self._tracing = tracing
        self._number = 0
        self._unanswered: dict[int, tuple[Batch, Released]] = {}
        self._returned: set[str | None] = set()

    @classmethod
    async def open(cls, connection: Connection, tracing: Tracing | None = None) -> "Publisher":
        publisher = cls(await connection.channel(), connection, tracing)
        await publisher._channel.confirm(publisher._settled, publisher._returned.add)
        return publisher

    async def until_closed(self) -> NoReturn:
        await self._channel.until_closed()

    async def publish(self, queue: str, tasks: Sequence[Released]) -> Batch:
        """Returns once they are on their way; waits before while the server takes no messages. Raises `QueueError`."""
        if self._connection.is_blocked:
            await self._connection.until_unblocked()
        batch = Batch(queue, tasks, time.time_ns())
        new_trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        for task in tasks:
            self._number += 1
            self._unanswered[self._number] = (batch, task)
            self._channel.publish(
                queue,
                encode(task),
                id=task.task_id,
                type=TYPE,
                content_type=CONTENT_TYPE,
                traceparent=task.traceparent or new_trace,
            )
        return batch

    def _settled(self, number: int, multiple: bool, taken: bool) -> None:
        if multiple:
            # Numbers only grow, and a dict keeps its order.
            numbers = []
            for unanswered in self._unanswered:
                if unanswered > number:
                    break
                numbers.append(unanswered)
        else:
            numbers = [number]
        for each in numbers:
            batch, task = self._unanswered.pop(each)
            if task.task_id in self._returned:
                self._returned.discard(task.task_id)
                batch.returned.append(task)
            else:
                (batch.confirmed if taken else batch.nacked).append(task)
            if batch.answers == len(batch.tasks):
                batch.answered.set()
                if self._tracing:
                    _tell(self._tracing, batch)


def _tell(tracing: Tracing, batch: Batch) -> None:
    refused = {task.task_id for task in (*batch.returned, *batch.nacked)}
    jobs = Counter((task.traceparent, task.task_id in refused) for task in batch.tasks if task.traceparent)
    now = time.time_ns()
    for (traceparent, is_refused), messages in jobs.items():
        span = tracing.begin(f"send {batch.queue}", "producer", parent=traceparent, at_ns=batch.published_ns)
        span.end(
            at_ns=now,
            attributes={
                "messaging.system": "rabbitmq",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": batch.queue,
                "messaging.batch.message_count": messages,
            },
            error="refused" if is_refused else None,
        )
