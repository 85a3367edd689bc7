"""The loop that mends what a death left behind: silent workers' tasks, unfinished jobs, half-cancelled ones;
and that ends what is overdue."""

import asyncio
import random
from uuid import UUID

import structlog

from custody.database import Database
from custody.errors import CustodyError
from custody.jobs import Jobs
from custody.notices import Notices, job_ended, tasks_queued
from custody.tasks import Ended, Tasks

log = structlog.get_logger()


class Reconciler:
    """Any number may run at once: every statement is conditional. Its database role sees all tenants."""

    def __init__(self, database: Database, tasks: Tasks, jobs: Jobs, notices: Notices, *, every_seconds: float) -> None:
        self._database = database
        self._tasks = tasks
        self._jobs = jobs
        self._notices = notices
        self._every_seconds = every_seconds

    async def run(self) -> None:
        while True:
            try:
                await self.run_once()
            except CustodyError as error:
                log.warning("reconcile_interrupted", code=error.code, detail=error.detail)
            await asyncio.sleep(self._every_seconds * random.uniform(0.8, 1.2))  # noqa: S311

    async def run_once(self) -> None:
        async with self._database.transaction() as transaction:
            released = await self._tasks.requeue_expired(transaction)
        if released:
            log.warning("leases_expired", tasks=len(released))
        await self.follow(released)
        async with self._database.transaction() as transaction:
            if not await self._jobs.may_look(transaction):
                return
            overdue = await self._jobs.overdue(transaction)
            unfinished = await self._jobs.unfinished(transaction)
            unfrozen = await self._jobs.unfrozen(transaction)
        for mend, jobs in ((self._finish, unfinished), (self._expire, overdue), (self._follow_up, unfrozen + overdue)):
            for job_id in jobs:
                try:
                    await mend(job_id)
                except CustodyError:
                    raise
                except Exception:
                    # One job that contradicts itself keeps no other waiting.
                    log.exception("job_not_mended", job_id=str(job_id))

    async def follow(self, released: list[Ended]) -> None:
        """What a committed release brings with it: queued tasks wake their pool, and so do failed ones, of which twins
        may wait; a job whose last one has ended ends."""
        for pool, priority in {(task.pool, task.priority) for task in released if task.state != "succeeded"}:
            self._notices.tell(tasks_queued(pool, priority))
        for job_id in {task.job_id for task in released if task.state != "queued"}:
            await self._finish(job_id)

    async def _finish(self, job_id: UUID) -> None:
        async with self._database.transaction() as transaction:
            ended = await self._jobs.finish(transaction, job_id)
        if ended:
            self._notices.tell(job_ended(job_id))

    async def _expire(self, job_id: UUID) -> None:
        async with self._database.transaction() as transaction:
            await self._jobs.expire(transaction, job_id)

    async def _follow_up(self, job_id: UUID) -> None:
        """Its tasks follow a job that was cancelled or is overdue."""
        async with self._database.transaction() as transaction:
            await self._tasks.cancel_open(transaction, job_id)
            await self._jobs.freeze(transaction, job_id)
        self._notices.tell(job_ended(job_id))
