"""The transport of a fleet: RabbitMQ hands out messages that name tasks, the task rows decide what comes of them."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import UUID

import structlog

from custody import releases
from custody.database import Database
from custody.errors import CustodyError
from custody.messages import MessageError, decode
from custody.tasks import Claimed, Ended, Offer, Tasks
from custody.transport import Delivery
from custody.transport.connection import Amqp, Arrival, Channel, Connection, QueueError
from custody.transport.topology import find, queue_of
from custody.wire import Priority

log = structlog.get_logger()

LOOK_AGAIN_SECONDS = 1.0
"""Pause before a queue that is not there is looked for again, and a task that another worker held."""

STOP_SECONDS = 5.0
"""What the server has not said by then of the end of a consumer is not waited for."""


@dataclass(eq=False)
class Message:
    """One that came to `feed` and was not settled yet: `tag` is its number on the channel of `intake`. `looked_at`:
    another worker held the task."""

    offer: Offer
    feed: "Feed"
    intake: "Intake"
    tag: int
    looked_at: bool = False


@dataclass(frozen=True)
class QueuedDelivery(Delivery):
    message: Message


class AmqpTransport:
    """`prefetch`: messages of each class held at once, those being worked on included. `follow`: told of tasks that
    have ended without being worked on, so that their jobs end. `rejected`: told why a message was none of ours.

    Messages are taken from a queue from the first `receive` of its class on, and no longer after a `give_back`, until
    the next. While RabbitMQ is away, `receive` gives nothing, and what is held is worked on all the same: its end is
    in the database, and when the same message comes again it is void."""

    def __init__(
        self,
        amqp: Amqp,
        database: Database,
        tasks: Tasks,
        *,
        pool: str,
        worker: str,
        prefetch: int,
        follow: Callable[[list[Ended]], Awaitable[None]],
        rejected: Callable[[str], None],
    ) -> None:
        self._amqp = amqp
        self._database = database
        self._tasks = tasks
        self._pool = pool
        self._worker = worker
        self._follow = follow
        self._held: dict[UUID, QueuedDelivery] = {}
        self._later: dict[UUID, Message] = {}
        self._feeds = {priority: Feed(pool, priority, prefetch, self._is_held, rejected) for priority in Priority}
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._amqp.keep(self._feed), name="amqp")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeping:
            await self._stop_feeds()
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def receive(self, priority: Priority, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        assert self._keeping is not None
        if self._keeping.done():
            # It ends by nothing that was foreseen: a worker that went on would receive nothing for ever.
            self._keeping.result()
        feed = self._feeds[priority]
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while True:
            messages = await feed.take(limit, deadline)
            if not messages:
                return []
            try:
                claimed = await self._claim(messages)
            except BaseException:
                feed.put_back(messages)
                raise
            # Of one task's messages, if there are several, the last: the others are void as well.
            by_task = {message.offer.task_id: message for message in messages}
            deliveries = [QueuedDelivery(claim, by_task[claim.task_id]) for claim in claimed.claims]
            self._held |= {delivery.claim.task_id: delivery for delivery in deliveries}
            kept = {delivery.message for delivery in deliveries}
            await self._let_go_of([message for message in messages if message not in kept])
            try:
                await self._see_to(claimed)
            except CustodyError as error:
                # A relay follows them a little later, and what was refused has its time.
                log.warning("ends_not_followed", code=error.code, detail=error.detail)
            if deliveries:
                return deliveries

    async def settle(self, delivery: Delivery) -> None:
        assert isinstance(delivery, QueuedDelivery)
        self._forget(delivery)
        delivery.message.intake.settle(delivery.message.tag)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._stop_feeds()
        async with self._database.statements() as statements:
            await self._tasks.give_back(statements, [delivery.claim for delivery in deliveries])
            await releases.put_back(statements, [delivery.claim.task_id for delivery in deliveries])
        for delivery in deliveries:
            assert isinstance(delivery, QueuedDelivery)
            self._forget(delivery)
            delivery.message.intake.requeue(delivery.message.tag)

    async def _stop_feeds(self) -> None:
        await asyncio.gather(*(feed.stop() for feed in self._feeds.values()))

    async def _claim(self, messages: Sequence[Message]) -> Claimed:
        offers = [message.offer for message in messages]
        async with self._database.statements() as statements:
            return await self._tasks.claim(statements, offers, pool=self._pool, worker=self._worker)

    async def _see_to(self, claimed: Claimed) -> None:
        ended = claimed.ended
        if claimed.refused:
            async with self._database.statements() as statements:
                ended = ended + await self._tasks.look_again(statements, claimed.refused)
        if ended:
            await self._follow(ended)

    async def _let_go_of(self, unclaimed: Sequence[Message]) -> None:
        """Acknowledges messages that are void. One that came again while another worker holds its task is looked at
        once more: the worker may have died so lately that nobody knows of it yet."""
        redelivered = [message for message in unclaimed if message.offer.redelivered and not message.looked_at]
        held: set[UUID] = set()
        try:
            async with self._database.statements() as statements:
                if redelivered:
                    tasks = [message.offer.task_id for message in redelivered]
                    held = await self._tasks.held_by_others(statements, tasks, self._worker)
                if void := [message.offer.task_id for message in unclaimed if message.offer.task_id not in held]:
                    # What is queued and may not begin now, its pool being paused say, is released again in its time.
                    await releases.undo(statements, void)
        except CustodyError as error:
            # The relay finds out by itself, a little later.
            log.warning("void_not_undone", code=error.code, detail=error.detail)
        for message in unclaimed:
            if message.offer.task_id in held:
                message.looked_at = True
                asyncio.get_running_loop().call_later(LOOK_AGAIN_SECONDS, message.feed.put_back, [message])
            else:
                message.intake.settle(message.tag)

    async def _feed(self, connection: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            for feed in self._feeds.values():
                group.create_task(feed.run(connection))
            group.create_task(connection.until_lost())

    def _is_held(self, message: Message) -> bool:
        """Whether this worker holds the task already. What the message is worth shows when it does no longer: it may be
        void, or the task may be queued again by then and this be all that the queue has of it. One is enough."""
        task = message.offer.task_id
        if task not in self._held:
            return False
        kept = self._later.get(task)
        if kept and kept.intake.is_open:
            message.intake.settle(message.tag)
        else:
            self._later[task] = message
        return True

    def _forget(self, delivery: QueuedDelivery) -> None:
        task = delivery.claim.task_id
        if self._held.get(task) is delivery:
            del self._held[task]
            if later := self._later.pop(task, None):
                later.feed.put_back([later])


class Feed:
    """The messages of one queue on their way into this worker. `is_held`: whether a message that came again is one that
    the worker has in its hands."""

    def __init__(
        self,
        pool: str,
        priority: Priority,
        prefetch: int,
        is_held: Callable[[Message], bool],
        rejected: Callable[[str], None],
    ) -> None:
        self._pool = pool
        self._priority = priority
        self._prefetch = prefetch
        self._is_held = is_held
        self._rejected = rejected
        self._arrived: deque[Message] = deque()
        self._arrival = asyncio.Event()
        self._wanted = asyncio.Event()
        self._ended = asyncio.Event()
        self._intake: Intake | None = None

    async def run(self, connection: Connection) -> None:
        """Takes messages in whenever they are wanted, on one channel. Raises `QueueError` when that is closed."""
        channel = await connection.channel()
        intake = self._intake = Intake(channel)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(channel.until_closed())
                group.create_task(self._consume(connection, intake))
        finally:
            # What was taken in and not settled comes again, to this worker or another.
            self._intake = None
            intake.is_open = False
            self._arrived.clear()

    async def take(self, limit: int, deadline: float) -> list[Message]:
        """Up to `limit` messages; none when `deadline` has come before any."""
        self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not self._arrived:
                    self._arrival.clear()
                    await self._arrival.wait()
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    def put_back(self, messages: Sequence[Message]) -> None:
        """To be taken next, or by others where nobody takes here."""
        self._arrived.extendleft(message for message in reversed(messages) if message.intake is self._intake)
        if self._wanted.is_set():
            self._arrival.set()
        else:
            self._requeue_arrived()

    async def stop(self) -> None:
        """Takes nothing more in, and lets others have what nobody here took, until somebody takes again."""
        self._wanted.clear()
        if self._intake:
            # The connection may end while this waits, and the intake with it.
            intake = self._intake
            with suppress(QueueError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await intake.cancel()
            intake.flush()
        self._requeue_arrived()
        self._ended.set()

    async def _consume(self, connection: Connection, intake: "Intake") -> None:
        queue = queue_of(self._pool, self._priority)
        while True:
            await self._wanted.wait()
            self._ended.clear()
            if await find(connection, self._pool, self._priority) is None:
                log.warning("queue_missing", queue=queue, advice="A relay makes it: start `wharf relay`.")
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                continue
            await intake.consume(queue, self._prefetch, self._on_arrival, self._ended.set)
            if self._wanted.is_set():
                await self._ended.wait()
            else:
                await intake.cancel()
                self._requeue_arrived()

    def _requeue_arrived(self) -> None:
        while self._arrived:
            message = self._arrived.popleft()
            message.intake.requeue(message.tag)

    def _on_arrival(self, arrival: Arrival) -> None:
        intake = self._intake
        assert intake is not None
        intake.arrived(arrival.tag)
        try:
            task = decode(arrival.body, model=self._pool).task
        except MessageError as error:
            log.warning("message_rejected", queue=arrival.queue, reason=error.reason, bytes=len(arrival.body))
            self._rejected(error.reason)
            intake.reject(arrival.tag)
            return
        message = Message(Offer(task, arrival.redelivered), self, intake, arrival.tag)
        if not self._is_held(message):
            self._arrived.append(message)
            self._arrival.set()


class Intake:
    """One channel that messages come through, and what is still to be said of them. Once it is closed nothing is: the
    server hands them out again."""

    def __init__(self, channel: Channel) -> None:
        self.is_open = True
        self._channel = channel
        self._consumer: str | None = None
        self._settled: dict[int, bool] = {}
        self._flushing = False

    async def consume(
        self,
        queue: str,
        prefetch: int,
        on_arrival: Callable[[Arrival], None],
        on_end: Callable[[], None],
    ) -> None:
        def ended() -> None:
            self._consumer = None
            on_end()

        self._consumer = await self._channel.consume(queue, prefetch, on_arrival, ended)

    async def cancel(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer:
            await self._channel.cancel(consumer)

    def arrived(self, tag: int) -> None:
        self._settled[tag] = False

    def settle(self, tag: int) -> None:
        """Acknowledged with all others that are settled in the same turn of the loop."""
        if self.is_open:
            self._settled[tag] = True
            if not self._flushing:
                self._flushing = True
                asyncio.get_running_loop().call_soon(self.flush)

    def requeue(self, tag: int) -> None:
        self._say(tag, self._channel.requeue)

    def reject(self, tag: int) -> None:
        self._say(tag, self._channel.reject)

    def _say(self, tag: int, verdict: Callable[[int], None]) -> None:
        # Where the channel has closed, the server knows already that the message was not settled.
        if self.is_open and self._settled.pop(tag, None) is not None:
            with suppress(QueueError):
                verdict(tag)

    def flush(self) -> None:
        self._flushing = False
        settled = [tag for tag, is_settled in self._settled.items() if is_settled]
        oldest_open = next((tag for tag, is_settled in self._settled.items() if not is_settled), None)
        together = [tag for tag in settled if oldest_open is None or tag < oldest_open]
        for tag in settled:
            del self._settled[tag]
        if self.is_open:
            with suppress(QueueError):
                if together:
                    self._channel.ack(together[-1], multiple=True)
                for tag in settled[len(together) :]:
                    self._channel.ack(tag)
