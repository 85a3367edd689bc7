"""When a cleanup runs: once, because somebody asked, or again and again. Never two at a time."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from broker.maintenance.cleanup.cleanup import Cleanup, Preview, Rules, preview
from broker.maintenance.cleanup.metrics import CleanupMetrics
from broker.maintenance.cleanup.settings import CleanupSettings
from broker.maintenance.serving import pause, serving
from custody import cleanup, installation
from custody.cleanup import Retention, Run
from custody.database import Database
from custody.errors import CustodyError
from custody.installation import SweepOff
from custody.instance import Alone
from custody.pressure import Pressure, Watermarks
from custody.removal import FOLDERS
from custody.volume import Volume

log = structlog.get_logger()

WATCH_SECONDS = 2.0
"""Between two looks at how full the volume is."""

FRUITLESS_SECONDS = 15.0
"""Between two cleanups that are to make room and cannot."""


async def clean_once(
    settings: CleanupSettings, *, without_grace: bool, max_seconds: float | None, tell: Callable[[str], None]
) -> Run | None:
    """None where another cleanup runs. SIGTERM, as of a node that is drained, ends it early, in good order. Raises
    `StartError`, `CustodyError`."""
    async with _opened(settings) as (database, volume):
        rules = _rules(settings, without_grace=without_grace, max_seconds=max_seconds)
        cleaning = Cleanup(database, volume, rules, tell=tell)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, cleaning.stop)
        return await _alone(settings, cleaning)


async def look_ahead(settings: CleanupSettings, *, without_grace: bool) -> Preview:
    """What it would do. Raises `StartError`, `CustodyError`."""
    async with _opened(settings) as (database, volume):
        return await preview(database, volume, _rules(settings, without_grace=without_grace))


async def look_back(settings: CleanupSettings, limit: int) -> tuple[Sequence[Run], SweepOff | None]:
    """The newest runs first, and why orphans are only reported now. Raises `StartError`, `CustodyError`."""
    async with _opened(settings) as (database, _), database.transaction() as transaction:
        return await cleanup.list_runs(transaction, limit), await installation.sweep_off(transaction)


async def serve(settings: CleanupSettings, *, every: float, without_grace: bool, max_seconds: float | None) -> None:
    """A cleanup every so many seconds, until a signal asks for the end."""
    metrics = CleanupMetrics()
    async with (
        _opened(settings) as (database, volume),
        serving(settings.health_host, settings.health_port, metrics.registry) as stop,
    ):
        log.info("cleanup_ready", every_seconds=every)
        need = _Need(database, volume, settings.watermarks, metrics)
        due = 0.0
        while not stop.is_set():
            try:
                if await need.is_there():
                    rules = replace(_rules(settings, without_grace=True), make_room=settings.watermarks)
                    need.told(await _run(settings, database, Cleanup(database, volume, rules), stop, metrics))
                if time.monotonic() >= due and not stop.is_set():
                    due = time.monotonic() + every
                    sweep = await _sweep_is_due(database, timedelta(hours=settings.sweep_hours))
                    rules = _rules(settings, without_grace=without_grace, max_seconds=max_seconds, sweep=sweep)
                    await _run(settings, database, Cleanup(database, volume, rules), stop, metrics)
                    due = time.monotonic() + every
            except CustodyError as error:
                log.warning("cleanup_interrupted", code=error.code, detail=error.detail)
            await pause(stop, min(WATCH_SECONDS, every))
    log.info("cleanup_stopped")


class _Need:
    """Whether bytes have to go now: the volume is nearly full, and there are some that may."""

    def __init__(self, database: Database, volume: Volume, marks: Watermarks, metrics: CleanupMetrics) -> None:
        self._database = database
        self._volume = volume
        self._pressure = Pressure(marks)
        self._metrics = metrics
        self._not_before = 0.0

    async def is_there(self) -> bool:
        """Raises `CustodyError`."""
        usage = await self._volume.usage()
        was_on = self._pressure.is_on
        self._metrics.see(usage, pressed=self._pressure.see(usage))
        if not self._pressure.is_on or time.monotonic() < self._not_before:
            return False
        if not was_on:
            return True
        async with self._database.transaction() as transaction:
            return await cleanup.may_free(transaction)

    def told(self, run: Run | None) -> None:
        """`run`: the cleanup that followed."""
        if run is None or run.freed_bytes == 0:
            # What it found may be held by tasks for long.
            self._not_before = time.monotonic() + FRUITLESS_SECONDS


async def _run(
    settings: CleanupSettings, database: Database, cleaning: Cleanup, stop: asyncio.Event, metrics: CleanupMetrics
) -> Run | None:
    stopping = asyncio.create_task(_hand_on(stop, cleaning))
    try:
        run = await _alone(settings, cleaning)
    finally:
        stopping.cancel()
    if run is None:
        log.info("cleanup_kept_out")
        return None
    async with database.transaction() as transaction:
        metrics.count(run, await installation.sweep_off(transaction))
    return run


async def _hand_on(stop: asyncio.Event, cleaning: Cleanup) -> None:
    await stop.wait()
    cleaning.stop()


async def _alone(settings: CleanupSettings, cleaning: Cleanup) -> Run | None:
    async with Alone(settings.listen_url, work="cleanup") as taken:
        return await cleaning.run() if taken else None


async def _sweep_is_due(database: Database, every: timedelta) -> bool:
    """Also where the last sweep was stopped on its way."""
    async with database.transaction() as transaction:
        last = await cleanup.last_sweep(transaction)
    if last is None or last.started_at is None or last.swept_to != FOLDERS:
        return True
    return datetime.now(UTC) - last.started_at >= every


@asynccontextmanager
async def _opened(settings: CleanupSettings) -> AsyncIterator[tuple[Database, Volume]]:
    # No broker's name has a dot: what the one leaves in progress is never taken for the other's.
    volume = Volume(settings.volume, instance=f"cleanup.{settings.instance}")
    async with Database(
        settings.database_url.get_secret_value(),
        name="wharf cleanup",
        role="wharf_cleanup",
        size=2,
        by_index=True,
        prepares=not settings.is_pooled,
    ) as database:
        async with database.transaction() as transaction:
            await installation.check_volume(transaction, volume)
        yield database, volume


def _rules(
    settings: CleanupSettings, *, without_grace: bool, max_seconds: float | None = None, sweep: bool = True
) -> Rules:
    return Rules(
        retention=Retention(
            files=timedelta(days=settings.file_retention_days), jobs=timedelta(days=settings.job_retention_days)
        ),
        receipt_days=settings.audit_retention_days,
        grace=None if without_grace else timedelta(seconds=settings.cleanup_grace_seconds),
        staging=timedelta(hours=settings.staging_hours),
        orphan_fraction=settings.max_orphan_fraction,
        quarantine=timedelta(days=settings.quarantine_days),
        sweep=sweep,
        max_seconds=max_seconds,
    )
