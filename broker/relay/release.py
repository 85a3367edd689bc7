"""Keeps one queue filled: what is ready in the task rows goes out, up to a window, with the confirms pipelined."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

import structlog

from broker.relay.metrics import RelayMetrics
from broker.relay.publisher import Batch, Publisher
from custody import releases
from custody.database import Database, Transaction
from custody.errors import CustodyError
from custody.notices import Notices, tasks_queued
from custody.releases import Released
from custody.transport import topology
from custody.transport.connection import Connection, QueueError
from custody.wire import Priority

log = structlog.get_logger()

LOOK_SECONDS = 5.0
"""Between looks whether the queue has lost something, and for tasks that nobody told of."""

OVERLOOKED_SECONDS = 60.0

DELETED_SECONDS = 1.0
"""Until all consumers of a deleted queue have been told of it."""

COUNT_SECONDS = 0.2
BEHIND_SECONDS = 1.0
"""Between looks for tasks that come before the last released ones, while there are enough of later ones."""

BATCHES = 4
"""On their way at once."""

SHORTEST_PAUSE = 0.01
LONGEST_PAUSE = 0.5

CONFIRM_SECONDS = 15.0
"""A queue that has confirmed none of its messages for longer is taken for one that never will."""


class SilentQueueError(QueueError):
    """The queue takes messages and confirms none: it has lost its leader, say. It is better made anew."""


@dataclass(frozen=True)
class Window:
    """`size`: tasks in a queue at most; `batch`: released together."""

    size: int
    batch: int


@dataclass(frozen=True)
class Choice:
    """What to release now. `pause_seconds`: until the next look, None where there is more to release at once;
    `is_full`: the window is why there is not."""

    tasks: list[Released]
    pause_seconds: float | None = None
    is_full: bool = False


class Release:
    """The queue of one pool and class, on one connection. The caller sees to it that nobody else fills it."""

    def __init__(
        self,
        pool: str,
        priority: Priority,
        window: Window,
        *,
        database: Database,
        notices: Notices,
        connection: Connection,
        publisher: Publisher,
        metrics: RelayMetrics,
    ) -> None:
        self._pool = pool
        self._priority = priority
        self._queue = topology.queue_of(pool, priority)
        self._window = window
        self._database = database
        self._notices = notices
        self._connection = connection
        self._publisher = publisher
        self._metrics = metrics
        self._pause = SHORTEST_PAUSE
        self._is_made = False
        self._behind_at = 0.0
        self._in_flight: Counter[str] = Counter()
        self._count_at = 0.0
        self._turn = asyncio.Semaphore(BATCHES)
        self._on_their_way: list[Batch] = []
        self._answered = 0

    async def run(self) -> None:
        """Raises `QueueError` when the connection is lost, or the queue cannot be made."""
        await self.look_after(begins=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_looking())
            group.create_task(self._keep_filling(group))

    async def look_after(self, *, begins: bool = False) -> None:
        """Sees whether the queue is there and has what was put into it. What it has lost is released again."""
        waiting = await topology.find(self._connection, self._pool, self._priority)
        async with self._database.transaction() as transaction:
            await releases.undo_ended(transaction, self._pool, self._priority)
            lost = await self._undo_lost(transaction, waiting, begins)
        if waiting is None and self._is_made:
            # Made anew at once, RabbitMQ 3.10 would move the old one's consumers over, and lose what it delivers them.
            await asyncio.sleep(DELETED_SECONDS)
        await topology.declare(self._connection, self._pool, self._priority)
        self._is_made = True
        if lost:
            log.warning("queue_lost_messages", queue=self._queue, tasks=lost, queue_was_gone=waiting is None)
            self._metrics.lost.labels(self._pool).inc(lost)
            self._notices.tell(tasks_queued(self._pool, self._priority))

    async def _undo_lost(self, transaction: Transaction, waiting: int | None, begins: bool) -> int:
        if waiting is None:
            return await releases.undo_pool(transaction, self._pool, self._priority)
        if begins:
            return await releases.undo_newest(transaction, self._pool, self._priority, waiting)
        overlooked = await releases.overlooked(transaction, self._pool, self._priority, OVERLOOKED_SECONDS)
        # They came first into the queue: where it holds as many, they are in it, and nobody takes them.
        if waiting >= overlooked:
            return 0
        return await releases.undo_overlooked(transaction, self._pool, self._priority, OVERLOOKED_SECONDS)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
            await self._look_after_it()

    async def _look_after_it(self) -> None:
        try:
            await self.look_after()
        except CustodyError as error:
            log.warning("look_interrupted", queue=self._queue, code=error.code, detail=error.detail)

    async def _keep_filling(self, group: asyncio.TaskGroup) -> None:
        with self._notices.subscribe(tasks_queued(self._pool, self._priority)) as subscription:
            choosing = group.create_task(self._choose())
            while True:
                choice = await choosing
                if choice.pause_seconds is None:
                    # The database chooses the next ones while these are sent, and the server writes down those before.
                    choosing = group.create_task(self._choose())
                if choice.tasks:
                    async with self._turn:
                        batch = await self._publisher.publish(self._queue, choice.tasks)
                        self._on_their_way.append(batch)
                        group.create_task(self._settle(batch))
                if choice.pause_seconds is None:
                    continue
                if choice.is_full:
                    await asyncio.sleep(choice.pause_seconds)
                else:
                    await subscription.wait(choice.pause_seconds)
                    self._behind_at = 0.0
                choosing = group.create_task(self._choose())

    async def _choose(self) -> Choice:
        while True:
            try:
                return await self._next_choice()
            except CustodyError as error:
                log.warning("release_interrupted", queue=self._queue, code=error.code, detail=error.detail)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311

    async def _next_choice(self) -> Choice:
        async with self._database.statements() as statements:
            # Only we add to what is in flight: since it was counted last, there can but be fewer.
            if time.monotonic() > self._count_at or self._room < self._window.batch:
                self._in_flight = await releases.in_flight(statements, self._pool, self._priority)
                self._count_at = time.monotonic() + COUNT_SECONDS
            limit = min(self._window.batch, self._room)
            if limit <= 0:
                return Choice([], self._pace(0), is_full=True)
            behind = time.monotonic() > self._behind_at
            tasks = await releases.release(
                statements,
                pool=self._pool,
                priority=self._priority,
                limit=limit,
                in_flight=self._in_flight,
                behind=behind,
            )
            self._in_flight.update(task.tenant_id for task in tasks)
            if behind:
                self._behind_at = time.monotonic() + BEHIND_SECONDS
            if len(tasks) == self._window.batch:
                return Choice(tasks)
            if len(tasks) == limit:
                return Choice(tasks, self._pace(len(tasks)), is_full=True)
            if not behind:
                self._behind_at = 0.0
                return Choice(tasks)
            due = await releases.seconds_to_next(statements, self._pool, self._priority)
        return Choice(tasks, LOOK_SECONDS if due is None else min(LOOK_SECONDS, max(due, SHORTEST_PAUSE)))

    @property
    def _room(self) -> int:
        return self._window.size - self._in_flight.total()

    def _pace(self, filled: int) -> float:
        """The pause while the queue is full: as short as it empties quickly, so that it never runs dry, and no look is
        for a handful of tasks."""
        if filled > self._window.size / 3:
            self._pause = max(SHORTEST_PAUSE, self._pause / 2)
        elif filled < self._window.size / 8:
            self._pause = min(LONGEST_PAUSE, self._pause * 1.5)
        return self._pause

    async def _settle(self, batch: Batch) -> None:
        async with self._turn:
            answers = self._answers
            while not await self._connection.until(batch.answered, CONFIRM_SECONDS):
                if self._answers == answers and not self._connection.is_blocked:
                    raise SilentQueueError(f"{self._queue} has confirmed no message for {CONFIRM_SECONDS:.0f} s.")
                answers = self._answers
            self._on_their_way.remove(batch)
            self._answered += batch.answers
            self._metrics.released.labels(self._pool, self._priority.value).inc(len(batch.confirmed))
            for reason, refused in (("nacked", batch.nacked), ("returned", batch.returned)):
                if refused:
                    self._metrics.refused.labels(self._pool, reason).inc(len(refused))
                    log.warning("messages_refused", queue=self._queue, reason=reason, messages=len(refused))
            if batch.nacked or batch.returned:
                await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311
                await self._undo([task.task_id for task in (*batch.nacked, *batch.returned)])
            if batch.returned:
                await self._look_after_it()

    @property
    def _answers(self) -> int:
        """So far, this queue's alone: others confirm on the same channel."""
        return self._answered + sum(batch.answers for batch in self._on_their_way)

    async def _undo(self, refused: list[str]) -> None:
        while True:
            try:
                async with self._database.statements() as statements:
                    await releases.undo(statements, refused)
                break
            except CustodyError as error:
                log.warning("undo_waits_for_database", queue=self._queue, code=error.code, detail=error.detail)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311
        self._notices.tell(tasks_queued(self._pool, self._priority))
