"""The transport of one machine or a small fleet: workers claim from the task rows themselves, woken by notices."""

import time
from collections.abc import Sequence

from custody.database import Database
from custody.notices import Notices, tasks_queued
from custody.tasks import Claim, Tasks
from custody.transport import Delivery
from custody.wire import Priority


class EmbeddedTransport:
    def __init__(self, database: Database, tasks: Tasks, notices: Notices, *, pool: str, worker: str) -> None:
        self._database = database
        self._tasks = tasks
        self._notices = notices
        self._pool = pool
        self._worker = worker

    async def receive(self, priority: Priority, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + wait_seconds
        with self._notices.subscribe(tasks_queued(self._pool, priority)) as subscription:
            # A notice wakes all who wait, and one of them takes the task. Retries come due without a notice: the last
            # look finds them too.
            while not (claims := await self._claim(priority, limit)) and (remaining := deadline - time.monotonic()) > 0:
                await subscription.wait(remaining)
        return [Delivery(claim) for claim in claims]

    async def _claim(self, priority: Priority, limit: int) -> Sequence[Claim]:
        async with self._database.statements() as statements:
            return await self._tasks.claim_next(
                statements, pool=self._pool, priority=priority, worker=self._worker, limit=limit
            )

    async def settle(self, delivery: Delivery) -> None:
        """The task row is the queue: its end was the acknowledgement."""

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        async with self._database.statements() as statements:
            await self._tasks.give_back(statements, [delivery.claim for delivery in deliveries])
        for priority in Priority:
            self._notices.tell(tasks_queued(self._pool, priority))
