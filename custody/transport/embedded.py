"""The transport of one machine or a small fleet: workers claim from the task rows themselves, woken by notices."""

import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from custody.database import Database
from custody.errors import CustodyError
from custody.notices import Notices, tasks_queued
from custody.tasks import Claimed, Ended, Tasks
from custody.transport import Delivery
from custody.wire import Priority

log = structlog.get_logger()


class EmbeddedTransport:
    """`follow`: told of tasks that have ended without being worked on, so that their jobs end."""

    def __init__(
        self,
        database: Database,
        tasks: Tasks,
        notices: Notices,
        *,
        pool: str,
        worker: str,
        follow: Callable[[list[Ended]], Awaitable[None]],
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._notices = notices
        self._pool = pool
        self._worker = worker
        self._follow = follow

    async def receive(self, priority: Priority, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + wait_seconds
        with self._notices.subscribe(tasks_queued(self._pool, priority)) as subscription:
            # A notice wakes all who wait, and one of them takes the task. Retries come due without a notice: the last
            # look finds them too.
            while not (claimed := await self._claim(priority, limit)).claims:
                if claimed.ended or claimed.refused:
                    continue  # Others may be behind them.
                if (remaining := deadline - time.monotonic()) <= 0:
                    break
                await subscription.wait(remaining)
        return [Delivery(claim) for claim in claimed.claims]

    async def _claim(self, priority: Priority, limit: int) -> Claimed:
        async with self._database.statements() as statements:
            claimed = await self._tasks.claim_next(
                statements, pool=self._pool, priority=priority, worker=self._worker, limit=limit
            )
        if claimed.ended or claimed.refused:
            try:
                await self._see_to(claimed)
            except CustodyError as error:
                # A reconcile follows what has ended, and what was refused has its time.
                log.warning("ends_not_followed", code=error.code, detail=error.detail)
        return claimed

    async def _see_to(self, claimed: Claimed) -> None:
        ended = claimed.ended
        if claimed.refused:
            async with self._database.statements() as statements:
                ended = ended + await self._tasks.look_again(statements, claimed.refused)
        await self._follow(ended)

    async def settle(self, delivery: Delivery) -> None:
        """The task row is the queue: its end was the acknowledgement."""

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        async with self._database.statements() as statements:
            await self._tasks.give_back(statements, [delivery.claim for delivery in deliveries])
        for priority in Priority:
            self._notices.tell(tasks_queued(self._pool, priority))
