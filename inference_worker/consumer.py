"""From a delivery to the end of its task: claims are held, worked on in slots, and ended once."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from custody.database import Database, Transaction
from custody.errors import CustodyError
from custody.jobs import Jobs
from custody.notices import Notices, job_ended
from custody.tasks import Claim, Tasks
from custody.transport import Delivery, Transport
from custody.wire import ModelReference, Timings
from inference_worker.metrics import WorkerMetrics
from inference_worker.outcomes import Done, Failed, Outcome, Retry, Work

log = structlog.get_logger()

RECEIVE_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0


@dataclass
class Held:
    """A task in this worker's hands. `begun`: a slot has it; before that it can be given back unharmed."""

    delivery: Delivery
    begun: bool = False
    working: asyncio.Task[None] = field(init=False)


class Consumer:
    """`run_in_slot` does the work of one task, while `has_slots`; `slots` of them run at once. `prefetch` more tasks a
    slot are held ready, so that none waits for the database between two pictures."""

    def __init__(
        self,
        *,
        database: Database,
        transport: Transport,
        tasks: Tasks,
        jobs: Jobs,
        notices: Notices,
        run_in_slot: Callable[[Work], Awaitable[Outcome]],
        has_slots: Callable[[], bool],
        model: ModelReference,
        slots: int,
        prefetch: int,
        drain_seconds: float,
        metrics: WorkerMetrics,
    ) -> None:
        self._database = database
        self._transport = transport
        self._tasks = tasks
        self._jobs = jobs
        self._notices = notices
        self._run_in_slot = run_in_slot
        self._has_slots = has_slots
        self._model = model
        self._free_slots = asyncio.Semaphore(slots)
        self._capacity = slots * (1 + prefetch)
        self._drain_seconds = drain_seconds
        self._metrics = metrics
        self._held: dict[UUID, Held] = {}
        self._room = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; then takes nothing more, finishes what has begun and gives the rest back."""
        keeping = asyncio.create_task(self._keep_leases(), name="keep-leases")
        stopping = asyncio.create_task(self._wake_at(stop), name="wake-at-stop")
        keeping.add_done_callback(lambda _: stop.set())
        try:
            while not stop.is_set():
                await self._take()
            await self._drain()
            if keeping.done():
                keeping.result()
        finally:
            keeping.cancel()
            stopping.cancel()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._room.set()

    async def _take(self) -> None:
        self._room.clear()
        free = self._capacity - len(self._held)
        if free == 0:
            await self._room.wait()
            return
        if not self._has_slots():
            await asyncio.sleep(RECEIVE_SECONDS)
            return
        try:
            deliveries = await self._transport.receive(free, RECEIVE_SECONDS)
        except CustodyError as error:
            log.warning("receive_interrupted", code=error.code, detail=error.detail)
            await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311
            return
        for delivery in deliveries:
            held = self._held[delivery.claim.task_id] = Held(delivery)
            held.working = asyncio.create_task(self._work(held), name=f"task-{delivery.claim.task_id}")
        self._metrics.held.set(len(self._held))

    async def _work(self, held: Held) -> None:
        claim = held.delivery.claim
        structlog.contextvars.bind_contextvars(
            task_id=str(claim.task_id), job_id=str(claim.job_id), tenant_id=str(claim.tenant_id)
        )
        try:
            async with self._free_slots:
                held.begun = True
                outcome = await self._run_in_slot(
                    Work(claim.task_id, claim.path, claim.media_type, claim.orientation, claim.parameters)
                )
            try:
                await self._until_database_answers(lambda: self._end(claim, outcome))
            except Exception as error:
                # What the engine found cannot be stored. It would find the same again.
                log.exception("end_not_written")
                refusal = Failed("inference_failed", f"The result cannot be stored ({type(error).__name__}).")
                await self._until_database_answers(lambda: self._end(claim, refusal))
            await self._transport.settle(held.delivery)
        finally:
            if self._held.get(claim.task_id) is held:
                del self._held[claim.task_id]
            self._metrics.held.set(len(self._held))
            self._room.set()

    async def _end(self, claim: Claim, outcome: Outcome) -> None:
        async with self._database.transaction() as transaction:
            state = await self._write_end(transaction, claim, outcome)
        self._metrics.tasks.labels(self._model.name, state).inc()
        log.info("task_ended", state=state, attempt=claim.attempt, code=getattr(outcome, "code", None))
        # Also where it is void: it may be the first try's end, cut off before the finish.
        if state != "queued":
            async with self._database.transaction() as transaction:
                job_has_ended = await self._jobs.finish(transaction, claim.job_id)
            if job_has_ended:
                self._notices.tell(job_ended(claim.job_id))

    async def _write_end(self, transaction: Transaction, claim: Claim, outcome: Outcome) -> str:
        """The task's state now; `void` where the claim was no longer ours and nothing was written."""
        match outcome:
            case Done():
                timings = Timings(
                    queue=claim.queue_ms, read=outcome.read_ms, decode=outcome.decode_ms, infer=outcome.infer_ms
                )
                self._metrics.observe(self._model.name, timings)
                written = await self._tasks.succeed(
                    transaction, claim, model=self._model, detections=outcome.detections, timings=timings
                )
                return "succeeded" if written else "void"
            case Failed(code, detail):
                written = await self._tasks.fail(transaction, claim, code=code, detail=detail)
                return "failed" if written else "void"
            case Retry(code, detail):
                ended = await self._tasks.retry(
                    transaction, claim, code=code, detail=detail, after_seconds=backoff_seconds(claim.spent)
                )
                return ended.state if ended else "void"

    async def _until_database_answers(self, write: Callable[[], Awaitable[None]]) -> None:
        # The picture has been worked on: its result is worth waiting for. If the lease runs out meanwhile, the fence
        # keeps the late end from changing anything.
        pause = 0.2
        while True:
            try:
                return await write()
            except CustodyError as error:
                log.warning("end_waits_for_database", code=error.code, detail=error.detail)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._tasks.lease_seconds / 3)
            held = list(self._held.values())
            if not held:
                continue
            try:
                async with self._database.transaction() as transaction:
                    ours = await self._tasks.extend(transaction, [one.delivery.claim for one in held])
            except CustodyError as error:
                log.warning("leases_not_extended", code=error.code, detail=error.detail)
                continue
            for one in held:
                if one.delivery.claim.task_id not in ours and not one.begun:
                    one.working.cancel()

    async def _drain(self) -> None:
        waiting = [one for one in self._held.values() if not one.begun]
        running = [one for one in self._held.values() if one.begun]
        log.info("draining", running=len(running), given_back=len(waiting))
        await self._let_go(waiting)
        if running:
            await asyncio.wait([one.working for one in running], timeout=self._drain_seconds)
        await self._let_go([one for one in running if not one.working.done()])

    async def _let_go(self, several: list[Held]) -> None:
        for one in several:
            one.working.cancel()
        await asyncio.gather(*(one.working for one in several), return_exceptions=True)
        if several:
            try:
                await self._transport.give_back([one.delivery for one in several])
            except CustodyError as error:
                # Their leases run out; what has begun is still worth finishing.
                log.warning("not_given_back", code=error.code, detail=error.detail)


def backoff_seconds(spent: int) -> float:
    """Exponential with jitter: about 1 s after the first attempt, doubling up to a minute."""
    return min(0.5 * 2.0**spent, LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311
