"""From a delivery to the end of its task: claims are held, worked on in slots, and ended once."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from custody.database import Database, Transaction
from custody.errors import CustodyError
from custody.jobs import Jobs
from custody.notices import Notices, job_ended, tasks_queued
from custody.spans import Stage, Tracing
from custody.tasks import Claim, Success, Tasks
from custody.transport import Delivery, Transport
from custody.wire import EngineReference, ModelReference, Priority, Timings
from inference_worker.metrics import WorkerMetrics
from inference_worker.outcomes import Corrupt, Done, Failed, Outcome, Retry, Unprocessable, Work

log = structlog.get_logger()

RECEIVE_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0

TWINS = 500
"""Answered together."""


@dataclass(eq=False)
class Held:
    """A task in this worker's hands. `working`: it has begun; before that it can be given back unharmed. `in_slot`: its
    picture is being looked at; after that its end is being written, until `has_ended`. Times in nanoseconds since 1970.
    """

    delivery: Delivery
    priority: Priority
    working: asyncio.Task[None] | None = None
    in_slot: bool = False
    received_ns: int = field(default_factory=time.time_ns)
    answered_ns: int = 0
    stored_ns: int = 0
    state: str = "void"
    has_ended: bool = False

    @property
    def claim(self) -> Claim:
        return self.delivery.claim


class Consumer:
    """`run_in_slot` does the work of one task, while `has_slots`; `slots` of them run at once. `prefetch` more tasks a
    slot are held ready, so that none waits for the database between two pictures. `verified_share`: of the pictures,
    0 to 1, whose bytes are compared with their SHA-256 first.

    Interactive tasks are received however many batch ones are held, and begin before them: such a task waits for the
    one that runs in each slot at most. A task that a worker died of, perhaps, runs while nothing else is held.

    `commit_ms`: what this worker's last write took, which the next result tells of itself."""

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
        engine: EngineReference,
        verified_share: float,
        slots: int,
        prefetch: int,
        drain_seconds: float,
        metrics: WorkerMetrics,
        commit_ms: float | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._database = database
        self._transport = transport
        self._tasks = tasks
        self._jobs = jobs
        self._notices = notices
        self._run_in_slot = run_in_slot
        self._has_slots = has_slots
        self._model = model
        self._engine = engine
        self._verified_share = verified_share
        self._slots = slots
        self._capacity = slots * (1 + prefetch)
        self._drain_seconds = drain_seconds
        self._metrics = metrics
        self._commit_ms = commit_ms
        self._tracing = tracing
        self._held: dict[UUID, Held] = {}
        self._stopping = False
        self._room_made = {priority: asyncio.Event() for priority in Priority}

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; then takes nothing more, finishes what has begun and gives the rest back."""
        receiving = [asyncio.create_task(self._receive(each), name=f"receive-{each}") for each in Priority]
        keeping = asyncio.create_task(self._keep_leases(), name="keep-leases")
        for loop in (*receiving, keeping):
            loop.add_done_callback(lambda _: stop.set())
        try:
            await stop.wait()
            self._stopping = True
            self._make_room()
            # Nobody cuts off a receive that has claimed something: it would be nobody's until its lease ends.
            await asyncio.wait(receiving)
            await self._drain()
            for loop in (*receiving, keeping):
                if loop.done():
                    loop.result()
        finally:
            keeping.cancel()

    async def _receive(self, priority: Priority) -> None:
        while not self._stopping:
            self._room_made[priority].clear()
            if not self._has_slots():
                await asyncio.sleep(RECEIVE_SECONDS)
                continue
            if (room := self._room(priority)) <= 0:
                await self._room_made[priority].wait()
                continue
            try:
                deliveries = await self._transport.receive(priority, room, RECEIVE_SECONDS)
            except CustodyError as error:
                log.warning("receive_interrupted", code=error.code, detail=error.detail)
                await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311
                continue
            received = [Held(delivery, priority) for delivery in deliveries]
            self._held |= {held.claim.task_id: held for held in received}
            if self._is_alone():
                await self._let_go(received)
            self._begin()

    def _room(self, priority: Priority) -> int:
        """How many more of this class may be held. For interactive tasks, those of the other class do not count."""
        if any(held.claim.alone for held in self._held.values()):
            return 0
        counted = [held for held in self._held.values() if priority is Priority.BATCH or held.priority is priority]
        return self._capacity - len(counted)

    def _make_room(self) -> None:
        for event in self._room_made.values():
            event.set()

    def _begin(self) -> None:
        """Gives the free slots to those who wait."""
        while held := self._next():
            held.in_slot = held.claim.fault is None
            held.working = asyncio.create_task(self._work(held), name=f"task-{held.claim.task_id}")
        self._metrics.held.set(len(self._held))

    def _next(self) -> Held | None:
        """Those that need no slot, there being nothing to read. Then interactive tasks first, in each class the first
        that came. One that is to run alone waits until the slots are empty, and what comes after it waits for it."""
        if self._stopping:
            return None
        for held in self._not_begun():
            if held.claim.fault is not None:
                return held
        in_slots = [held for held in self._held.values() if held.in_slot]
        if len(in_slots) >= self._slots or self._is_alone():
            return None
        waiting = sorted(self._not_begun(), key=lambda held: held.priority is Priority.BATCH)
        return waiting[0] if waiting and not (waiting[0].claim.alone and in_slots) else None

    def _not_begun(self) -> list[Held]:
        return [held for held in self._held.values() if held.working is None]

    def _is_alone(self) -> bool:
        return any(held.in_slot and held.claim.alone for held in self._held.values())

    async def _work(self, held: Held) -> None:
        claim = held.claim
        structlog.contextvars.bind_contextvars(
            task_id=str(claim.task_id), job_id=str(claim.job_id), tenant_id=str(claim.tenant_id)
        )
        if claim.traceparent:
            structlog.contextvars.bind_contextvars(trace_id=claim.traceparent.split("-")[1])
        try:
            work = self._work_of(claim)
            if claim.fault is None:
                if claim.alone:
                    await self._let_go(self._not_begun())
                outcome = await self._run_in_slot(work)
            else:
                outcome = Unprocessable(
                    "file_corrupt",
                    f"The bytes on the volume are {claim.fault}. Upload the file again, then submit it again.",
                )
            held.answered_ns = time.time_ns()
            # The next picture does not wait until this one's result is written.
            held.in_slot = False
            self._begin()
            try:
                await self._until_database_answers(lambda: self._end(held, work, outcome))
            except Exception as error:
                # What the engine found cannot be stored. It would find the same again.
                log.exception("end_not_written")
                refusal = Failed("inference_failed", f"The result cannot be stored ({type(error).__name__}).")
                await self._until_database_answers(lambda: self._end(held, work, refusal))
                outcome = refusal
            await self._transport.settle(held.delivery)
            if self._tracing:
                self._tell(self._tracing, held, outcome)
        finally:
            held.in_slot = False
            self._forget(held)
            self._begin()

    def _work_of(self, claim: Claim) -> Work:
        return Work(
            task=claim.task_id,
            path=claim.path,
            media_type=claim.media_type,
            orientation=claim.orientation,
            parameters=claim.parameters,
            sha256=claim.sha256.hex(),
            verify=random.random() < self._verified_share,  # noqa: S311
        )

    def _forget(self, held: Held) -> None:
        if self._held.get(held.claim.task_id) is held:
            del self._held[held.claim.task_id]
        self._make_room()

    async def _end(self, held: Held, work: Work, outcome: Outcome) -> None:
        claim = held.claim
        async with self._database.statements() as statements:
            state, success = await self._write_end(statements, claim, work, outcome)
        held.has_ended = True
        held.state, held.stored_ns = state, time.time_ns()
        self._commit_ms = round((held.stored_ns - held.answered_ns) / 1e6, 3)
        self._metrics.observe_commit(self._model.name, self._commit_ms)
        self._metrics.tasks.labels(self._model.name, state).inc()
        log.info(
            "task_ended", state=state, attempt=claim.attempt, code=None if isinstance(outcome, Done) else outcome.code
        )
        if state == "queued" or (claim.recipe is not None and state != "succeeded"):
            # Whoever hands it out again, or its twins, learns when it is due.
            for priority in Priority:
                self._notices.tell(tasks_queued(self._model.name, priority))
        if state == "queued":
            return
        if (success and success.finished) or await self._finish(claim.job_id):
            self._notices.tell(job_ended(claim.job_id))
        if success and success.awaited:
            await self._answer_twins(claim)

    async def _finish(self, job_id: UUID) -> bool:
        """Also after an end that was void: it may have been the first try's, cut off before the finish. While another
        task of the job is in these hands, the end of that one has to see to it."""
        if any(held.claim.job_id == job_id and not held.has_ended for held in self._held.values()):
            return False
        async with self._database.statements() as statements:
            return await self._jobs.finish(statements, job_id)

    async def _answer_twins(self, claim: Claim) -> None:
        async with self._database.statements() as statements:
            answered_all = False
            while not answered_all:
                answered = await self._tasks.answer_twins(statements, claim, limit=TWINS)
                answered_all = len(answered) < TWINS
                self._metrics.cache.labels(self._model.name, "twin").inc(len(answered))
                for job_id in {task.job_id for task in answered}:
                    if await self._jobs.finish(statements, job_id):
                        self._notices.tell(job_ended(job_id))

    def _tell(self, tracing: Tracing, held: Held, outcome: Outcome) -> None:
        """The task as a span of the trace that its job belongs to, its work within."""
        claim, pool = held.claim, self._model.name
        span = tracing.begin(f"process {pool}", "consumer", parent=claim.traceparent, at_ns=held.received_ns)
        stages = [Stage("commit", held.answered_ns, held.stored_ns)]
        if isinstance(outcome, Done):
            # A slot's times follow one another, and its answer follows them: they are laid before it.
            ended_ns = held.answered_ns
            for name, milliseconds in (
                ("infer", outcome.infer_ms),
                ("decode", outcome.decode_ms),
                ("read", outcome.read_ms),
            ):
                began_ns = ended_ns - round(milliseconds * 1e6)
                stages.insert(0, Stage(name, began_ns, ended_ns))
                ended_ns = began_ns
        span.end(
            at_ns=time.time_ns(),
            attributes={
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": pool,
                "messaging.message.id": str(claim.task_id),
                "wharf.job_id": str(claim.job_id),
                "wharf.attempt": claim.attempt,
                "wharf.state": held.state,
                "wharf.queue_ms": claim.queue_ms,
            },
            error=None if isinstance(outcome, Done) else outcome.code,
            stages=stages,
        )

    async def _write_end(
        self, transaction: Transaction, claim: Claim, work: Work, outcome: Outcome
    ) -> tuple[str, Success | None]:
        """The task's state now, `void` where the claim was no longer ours and nothing was written."""
        if not isinstance(outcome, Done):
            return await self._write_other_end(transaction, claim, work, outcome), None
        timings = Timings(
            queue=claim.queue_ms,
            read=outcome.read_ms,
            decode=outcome.decode_ms,
            infer=outcome.infer_ms,
            commit=self._commit_ms,
        )
        self._metrics.observe(self._model.name, timings, outcome.batch_size)
        written = await self._tasks.succeed(
            transaction,
            claim,
            model=self._model,
            engine=self._engine,
            verified=work.verify,
            detections=outcome.detections,
            timings=timings,
        )
        if written is None:
            return "void", None
        if claim.recipe is not None:
            self._metrics.cache.labels(self._model.name, "miss").inc()
        return "succeeded", written

    async def _write_other_end(
        self, transaction: Transaction, claim: Claim, work: Work, outcome: Failed | Unprocessable | Corrupt | Retry
    ) -> str:
        match outcome:
            case Failed(code, detail):
                written = await self._tasks.fail(transaction, claim, code=code, detail=detail)
                return "failed" if written else "void"
            case Unprocessable(code, detail):
                written = await self._tasks.refuse(transaction, claim, code=code, detail=detail)
                return "unprocessable" if written else "void"
            case Corrupt(detail):
                log.error("file_corrupt", sha256=work.sha256)
                if not await self._tasks.report_corrupt(transaction, claim):
                    # An upload has put new bytes in place meanwhile.
                    return await self._try_again(transaction, claim, outcome.code, detail)
                written = await self._tasks.refuse(transaction, claim, code=outcome.code, detail=detail)
                return "unprocessable" if written else "void"
            case Retry(code, detail):
                return await self._try_again(transaction, claim, code, detail)

    async def _try_again(self, transaction: Transaction, claim: Claim, code: str, detail: str) -> str:
        after = backoff_seconds(claim.spent)
        ended = await self._tasks.retry(transaction, claim, code=code, detail=detail, after_seconds=after)
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
                async with self._database.statements() as statements:
                    ours = await self._tasks.extend(statements, [one.claim for one in held])
            except CustodyError as error:
                log.warning("leases_not_extended", code=error.code, detail=error.detail)
                continue
            for one in held:
                if one.claim.task_id not in ours and one.working is None:
                    self._forget(one)
                    await self._transport.settle(one.delivery)

    async def _drain(self) -> None:
        waiting = self._not_begun()
        begun = [held for held in self._held.values() if held.working]
        log.info("draining", running=len(begun), given_back=len(waiting))
        await self._let_go(waiting)
        working = [held.working for held in begun if held.working]
        if working:
            await asyncio.wait(working, timeout=self._drain_seconds)
        late = [held for held in begun if held.working and not held.working.done()]
        for held in late:
            assert held.working is not None
            held.working.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await self._let_go(late)

    async def _let_go(self, several: Sequence[Held]) -> None:
        for held in several:
            self._forget(held)
        if several:
            try:
                await self._transport.give_back([held.delivery for held in several])
            except CustodyError as error:
                # Their leases run out; what has begun is still worth finishing.
                log.warning("not_given_back", code=error.code, detail=error.detail)


def backoff_seconds(spent: int) -> float:
    """Exponential with jitter: about 1 s after the first attempt, doubling up to a minute."""
    return min(0.5 * 2.0**spent, LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311
