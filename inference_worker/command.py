"""`wharf worker`: one pool's worker process, wired."""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Annotated

import structlog
import typer

from custody import models, releases
from custody.cache import Computation
from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.health import HealthServer, Pulse
from custody.installation import check_volume
from custody.instance import InstanceLock
from custody.jobs import Jobs
from custody.models import ModelFiles, Registration
from custody.notices import POOLS_CHANGED, Notices
from custody.process import end_within, release, run
from custody.reconcile import Reconciler
from custody.spans import tracing
from custody.tasks import Ended, Tasks
from custody.transport import Transport
from custody.transport.amqp import AmqpTransport
from custody.transport.connection import Amqp, Login
from custody.transport.embedded import EmbeddedTransport
from custody.volume import Volume
from custody.wire import EngineReference, ModelReference
from inference_worker.child import keep_to_itself
from inference_worker.consumer import Consumer
from inference_worker.cpus import granted_cpus
from inference_worker.metrics import WorkerMetrics
from inference_worker.outcomes import PIPELINE_VERSION
from inference_worker.settings import WorkerSettings
from inference_worker.slots import Slots

log = structlog.get_logger()

SEEN_EVERY_SECONDS = 5.0
UNSEEN_SECONDS = 0.5
"""Between looks whether a worker that cannot work yet can."""
SLOTLESS_SECONDS = 60.0
GIVE_BACK_SECONDS = 5.0
"""After the drain, for what has not ended by then."""


def worker(
    model: Annotated[str | None, typer.Option(help="Registered name, or a file to register (WHARF_MODEL)")] = None,
) -> None:
    """Claim tasks of one model and run them. Everything else is set by environment variables."""
    run("worker", WorkerSettings, serve, model=model)


async def serve(settings: WorkerSettings) -> None:
    check_consumer_timeout(settings)
    keep_to_itself()
    stop = asyncio.Event()

    def end() -> None:
        stop.set()
        end_within(settings.drain_seconds + GIVE_BACK_SECONDS)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    async with AsyncExitStack() as stack:
        traced = stack.enter_context(tracing("worker", instance=settings.instance, release=release()))
        database = await stack.enter_async_context(
            Database(
                settings.database_url.get_secret_value(),
                name="wharf worker",
                role="wharf_worker",
                size=8,
                # A worker that is paused inside a transaction keeps its tasks no longer than any other silent one.
                idle_seconds=settings.lease_seconds,
                by_index=True,
                plans_once=True,
                prepares=not settings.is_pooled,
            )
        )
        async with database.transaction() as transaction:
            await check_volume(transaction, Volume(settings.volume, instance=settings.instance))
        await stack.enter_async_context(InstanceLock(settings.listen_url, kind="worker", instance=settings.instance))
        files = await _model_files(database, settings)
        await asyncio.to_thread(models.check_bytes, files, settings.volume)
        notices = await stack.enter_async_context(Notices(settings.listen_url, name="wharf worker"))
        count = settings.slots or granted_cpus()
        slots = Slots(
            count,
            engine=settings.engine,
            model_path=settings.volume / files.path,
            volume_root=settings.volume,
            threads=max(1, granted_cpus() // count),
            precision=settings.precision,
            max_pixels=settings.max_pixels,
            read_patience_seconds=settings.read_retry_seconds,
            time_limit_seconds=settings.task_seconds,
            start_limit_seconds=settings.start_seconds,
            max_batch=settings.max_batch,
            max_delay_ms=settings.max_delay_ms,
            compiled=settings.compiled_folder,
            compiled_bytes=settings.compiled_bytes,
        )
        stack.push_async_callback(slots.close)
        ready = await slots.start()
        found = ready.model
        computes = Computation(
            files.digest, f"{PIPELINE_VERSION} {settings.engine} {ready.engine_version} {settings.precision}"
        )
        began = time.perf_counter()
        async with database.transaction() as transaction:
            model = await models.register(
                transaction,
                Registration(
                    files, found.task, found.classes, found.input_width, found.input_height, computes.pipeline
                ),
            )
        registered_ms = round((time.perf_counter() - began) * 1000, 3)
        tasks = Tasks(lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts, computes=computes)
        jobs = Jobs()
        reconciler = Reconciler(database, tasks, jobs, notices, every_seconds=settings.reconcile_seconds)
        async with database.transaction() as transaction:
            released = await tasks.give_back_former(transaction, settings.instance)
        await reconciler.follow(released)
        metrics = WorkerMetrics()

        async def follow(ended: list[Ended]) -> None:
            metrics.cache.labels(model.name, "hit").inc(sum(task.state == "succeeded" for task in ended))
            await reconciler.follow(ended)

        pulse = Pulse()
        amqp = Amqp(Login.of(settings), name=f"wharf worker {settings.instance}") if settings.amqp_url else None

        def usable_slots() -> int:
            return slots.ready_count if amqp is None or amqp.fault is None else 0

        if settings.health_port:
            stack.enter_context(
                HealthServer(
                    settings.health_host,
                    settings.health_port,
                    metrics.registry,
                    is_alive=pulse.is_recent,
                    is_ready=lambda: usable_slots() > 0 and pulse.is_recent() and not stop.is_set(),
                )
            )
        loops: list[asyncio.Task[None]] = []
        for loop in (
            *([] if settings.amqp_url else [reconciler.run()]),
            pulse.beat(),
            _say_alive(database, settings, model, usable_slots),
            _stop_without_slots(slots, stop, seconds=max(SLOTLESS_SECONDS, settings.start_seconds)),
        ):
            task = asyncio.create_task(loop)
            # A worker one of whose loops broke is no worker: it ends, and is started again.
            task.add_done_callback(lambda _: stop.set())
            stack.callback(task.cancel)
            loops.append(task)
        transport: Transport = EmbeddedTransport(
            database, tasks, notices, pool=model.name, worker=settings.instance, follow=follow
        )
        if amqp:
            transport = await stack.enter_async_context(
                AmqpTransport(
                    amqp,
                    database,
                    tasks,
                    pool=model.name,
                    worker=settings.instance,
                    prefetch=slots.places * (1 + settings.prefetch),
                    follow=follow,
                    rejected=lambda reason: metrics.rejected.labels(reason).inc(),
                )
            )
        else:
            # What a relay had put into a queue, before there was none.
            async with database.transaction() as transaction:
                await releases.undo_pool(transaction, model.name)
        notices.tell(POOLS_CHANGED)
        log.info("worker_ready", model=model.name, version=model.version, slots=count, released=len(released))
        consumer = Consumer(
            database=database,
            transport=transport,
            tasks=tasks,
            jobs=jobs,
            notices=notices,
            run_in_slot=slots.run,
            has_slots=lambda: slots.ready_count > 0,
            model=model,
            engine=EngineReference(name=settings.engine, version=ready.engine_version),
            verified_share=settings.verified_share,
            slots=slots.places,
            prefetch=settings.prefetch,
            drain_seconds=settings.drain_seconds,
            metrics=metrics,
            commit_ms=registered_ms,
            tracing=traced,
        )
        await consumer.run(stop)
        for task in loops:
            if task.done():
                task.result()
        with suppress(CustodyError):
            async with database.transaction() as transaction:
                await models.forget_worker(transaction, settings.instance)
    log.info("worker_stopped")


def check_consumer_timeout(settings: WorkerSettings) -> None:
    """Raises `StartError` where a delivery may be held for longer than half of what RabbitMQ allows."""
    longest = (1 + settings.prefetch) * settings.task_seconds
    if settings.amqp_url and longest > settings.amqp_consumer_timeout_seconds / 2:
        raise StartError(
            f"WHARF_TASK_SECONDS: a task may be held for {longest:g} s, its turn awaited, and RabbitMQ takes deliveries"
            f" away after {settings.amqp_consumer_timeout_seconds:g} s. Lower WHARF_TASK_SECONDS or WHARF_PREFETCH, or "
            "raise RabbitMQ's consumer_timeout and WHARF_AMQP_CONSUMER_TIMEOUT_SECONDS with it."
        )


async def _model_files(database: Database, settings: WorkerSettings) -> ModelFiles:
    if models.is_file(settings.model):
        if settings.model.endswith(".pt") and settings.engine == "openvino":
            raise StartError(
                f"WHARF_MODEL: the openvino engine does not take {settings.model}, which is a pickle. `wharf models "
                f"add {settings.model}` exports and registers it; WHARF_ENGINE=ultralytics runs it as it is."
            )
        return models.install(Path(settings.model), settings.volume)
    async with database.transaction() as transaction:
        found = await models.newest_path(transaction, settings.model)
    if found is None:
        raise StartError(
            f"WHARF_MODEL: no active model {settings.model} is registered. Name a file (.onnx, .xml) to register it."
        )
    return found


async def _say_alive(
    database: Database, settings: WorkerSettings, model: ModelReference, usable_slots: Callable[[], int]
) -> None:
    while True:
        ready = usable_slots()  # once: a slot may die while the transaction begins
        try:
            if ready:
                async with database.transaction() as transaction:
                    await models.report_worker(
                        transaction,
                        worker=settings.instance,
                        model=model,
                        engine=settings.engine,
                        slots=ready,
                        release=release(),
                    )
        except CustodyError as error:
            log.warning("report_interrupted", code=error.code)
        await asyncio.sleep(SEEN_EVERY_SECONDS if ready else UNSEEN_SECONDS)


async def _stop_without_slots(slots: Slots, stop: asyncio.Event, *, seconds: float) -> None:
    """Ends a worker that had no slot for so long, none being able to start, so that its tasks go to others."""
    last_ready = time.monotonic()
    while time.monotonic() - last_ready < seconds:
        await asyncio.sleep(1)
        if slots.ready_count:
            last_ready = time.monotonic()
    log.error("no_slot_can_be_started", seconds=seconds)
    stop.set()
