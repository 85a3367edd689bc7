"""`wharf worker`: one pool's worker process, wired."""

import asyncio
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from custody import models
from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.installation import check_volume
from custody.instance import InstanceLock
from custody.jobs import Jobs
from custody.models import ModelFiles, Registration
from custody.notices import Notices
from custody.reconcile import Reconciler
from custody.settings import load
from custody.tasks import Tasks
from custody.telemetry import configure_logging
from custody.transport.embedded import EmbeddedTransport
from custody.volume import Volume
from custody.wire import ModelReference
from inference_worker.consumer import Consumer
from inference_worker.cpus import granted_cpus
from inference_worker.health import HealthServer
from inference_worker.metrics import WorkerMetrics
from inference_worker.settings import WorkerSettings
from inference_worker.slots import Slots

log = structlog.get_logger()

SEEN_EVERY_SECONDS = 5.0
SLOTLESS_SECONDS = 60.0
DEAF_SECONDS = 30.0
"""A worker whose event loop has not turned for longer is not alive."""


def worker(
    model: Annotated[str | None, typer.Option(help="Registered name, or a file to register (WHARF_MODEL)")] = None,
) -> None:
    """Claim tasks of one model and run them. Everything else is set by environment variables."""
    try:
        settings = load(WorkerSettings, **({"model": model} if model else {}))
        configure_logging(process="worker", format=settings.log_format, level=settings.log_level)
        uvloop.run(serve(settings))
    except StartError as error:
        sys.exit(f"wharf worker: {error}")
    except CustodyError as error:
        sys.exit(f"wharf worker: {error.detail}")


async def serve(settings: WorkerSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database(
                settings.database_url.get_secret_value(),
                name="wharf worker",
                role="wharf_worker",
                size=8,
                # A worker that is paused inside a transaction keeps its tasks no longer than any other silent one.
                idle_seconds=settings.lease_seconds,
            )
        )
        async with database.transaction() as transaction:
            await check_volume(transaction, Volume(settings.volume, instance=settings.instance))
        await stack.enter_async_context(InstanceLock(settings.listen_url, kind="worker", instance=settings.instance))
        files = await _model_files(database, settings)
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
        )
        stack.push_async_callback(slots.close)
        found = await slots.start()
        async with database.transaction() as transaction:
            model = await models.register(
                transaction, Registration(files, found.task, found.classes, found.input_width, found.input_height)
            )
        tasks = Tasks(lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts)
        jobs = Jobs()
        reconciler = Reconciler(database, tasks, jobs, notices, every_seconds=settings.reconcile_seconds)
        async with database.transaction() as transaction:
            released = await tasks.give_back_former(transaction, settings.instance)
        await reconciler.follow(released)
        metrics = WorkerMetrics()
        pulse = Pulse()
        if settings.health_port:
            stack.enter_context(
                HealthServer(
                    settings.health_host,
                    settings.health_port,
                    metrics.registry,
                    is_alive=pulse.is_recent,
                    is_ready=lambda: slots.ready_count > 0 and pulse.is_recent() and not stop.is_set(),
                )
            )
        loops: list[asyncio.Task[None]] = []
        for loop in (
            reconciler.run(),
            pulse.beat(),
            _say_alive(database, settings, model, slots),
            _stop_without_slots(slots, stop),
        ):
            task = asyncio.create_task(loop)
            # A worker one of whose loops broke is no worker: it ends, and is started again.
            task.add_done_callback(lambda _: stop.set())
            stack.callback(task.cancel)
            loops.append(task)
        log.info("worker_ready", model=model.name, version=model.version, slots=count, released=len(released))
        consumer = Consumer(
            database=database,
            transport=EmbeddedTransport(database, tasks, notices, pool=model.name, worker=settings.instance),
            tasks=tasks,
            jobs=jobs,
            notices=notices,
            run_in_slot=slots.run,
            has_slots=lambda: slots.ready_count > 0,
            model=model,
            slots=count,
            prefetch=settings.prefetch,
            drain_seconds=settings.drain_seconds,
            metrics=metrics,
        )
        await consumer.run(stop)
        for task in loops:
            if task.done():
                task.result()
        with suppress(CustodyError):
            async with database.transaction() as transaction:
                await models.forget_worker(transaction, settings.instance)
    log.info("worker_stopped")


async def _model_files(database: Database, settings: WorkerSettings) -> ModelFiles:
    path = Path(settings.model)
    if path.suffix in models.SUFFIXES:
        return models.install(path, settings.volume)
    async with database.transaction() as transaction:
        found = await models.newest_path(transaction, settings.model)
    if found is None:
        raise StartError(
            f"WHARF_MODEL: no active model {settings.model} is registered. Name a file (.onnx, .xml) to register it."
        )
    return found


async def _say_alive(database: Database, settings: WorkerSettings, model: ModelReference, slots: Slots) -> None:
    while True:
        ready = slots.ready_count  # once: a slot may die while the transaction begins
        try:
            if ready:
                async with database.transaction() as transaction:
                    await models.report_worker(
                        transaction,
                        worker=settings.instance,
                        model=model,
                        engine=settings.engine,
                        slots=ready,
                    )
        except CustodyError as error:
            log.warning("report_interrupted", code=error.code)
        await asyncio.sleep(SEEN_EVERY_SECONDS)


async def _stop_without_slots(slots: Slots, stop: asyncio.Event) -> None:
    """Ends a worker none of whose slots can be started again, so that its tasks go to others."""
    last_ready = time.monotonic()
    while time.monotonic() - last_ready < SLOTLESS_SECONDS:
        await asyncio.sleep(1)
        if slots.ready_count:
            last_ready = time.monotonic()
    log.error("no_slot_can_be_started", seconds=SLOTLESS_SECONDS)
    stop.set()


class Pulse:
    """Tells a thread outside whether the event loop still turns."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    async def beat(self) -> None:
        while True:
            self._last = time.monotonic()
            await asyncio.sleep(1)

    def is_recent(self) -> bool:
        return time.monotonic() - self._last < DEAF_SECONDS
