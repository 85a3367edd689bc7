"""Verifications, wired: one, one after the other, those that were, and the end of a restore."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

import structlog

from broker.maintenance.marks import leave_mark, suspected_restore
from broker.maintenance.serving import pause, serving
from broker.maintenance.verify.metrics import VerifyMetrics
from broker.maintenance.verify.pace import Pace
from broker.maintenance.verify.settings import VerifySettings
from broker.maintenance.verify.verification import Verification
from custody import installation
from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.instance import Alone
from custody.integrity import Counts, Integrity, Run
from custody.removal import Removal
from custody.volume import Volume

log = structlog.get_logger()

CLEANUP_SECONDS = 60
"""An accept waits for a cleanup so long: it is to find the pair as it was accepted, or not to have begun."""


@dataclass(frozen=True)
class Report:
    """What a run has found, and how things stand after it. `quarantined`: contents, by fault; `files_lost`: files that
    have such bytes, by tenant; `restored`: why database or volume seem to have been put back to an older state."""

    run: Run
    quarantined: Mapping[str, int]
    files_lost: Mapping[str, int]
    restored: str | None


async def verify_once(
    settings: VerifySettings, *, quick: bool, max_seconds: float | None, tell: Callable[[Counts], None]
) -> Report | None:
    """None where another one runs. A signal ends it early, in good order. Raises `StartError`, `CustodyError`."""
    pace = Pace(settings.verify_bytes_per_second)
    _on_signal(pace.stop)
    async with _opened(settings) as (database, volume):
        return await _alone(settings, database, volume, pace, quick=quick, max_seconds=max_seconds, tell=tell)


async def accept(settings: VerifySettings, tell: Callable[[Counts], None]) -> Report | None:
    """Looks quickly at what there is, and lets database and volume belong together as they are. The report is of the
    time before; None where another verification runs. Raises `StartError` where the look was cut off, or where a
    cleanup does not end; `CustodyError`."""
    pace = Pace(settings.verify_bytes_per_second)
    _on_signal(pace.stop)
    async with _opened(settings) as (database, volume):
        report = await _alone(settings, database, volume, pace, quick=True, max_seconds=None, tell=tell)
        if report is None or report.restored is None:
            return report
        if report.run.stopped != "done":
            raise StartError("Not everything was looked at, and nothing was accepted. Try again.")
        async with asyncio.timeout(CLEANUP_SECONDS):
            await _mark_as_accepted(settings, database, volume)
        log.warning("restore_accepted", reason=report.restored)
        return report


async def look_back(settings: VerifySettings, limit: int) -> Sequence[Run]:
    """The newest first. Raises `StartError`, `CustodyError`."""
    async with _opened(settings) as (database, _), database.transaction() as transaction:
        return await Integrity().history(transaction, limit=limit)


async def serve(settings: VerifySettings, *, every: float, quick: bool, max_seconds: float | None) -> None:
    """A verification every so many seconds, until a signal asks for the end."""
    pace, metrics = Pace(settings.verify_bytes_per_second), VerifyMetrics()
    async with (
        _opened(settings) as (database, volume),
        serving(settings.health_host, settings.health_port, metrics.registry) as stop,
    ):
        stopping = asyncio.create_task(_hand_on(stop, pace))
        log.info("verify_ready", every_seconds=every)
        try:
            while not stop.is_set():
                try:
                    report = await _alone(
                        settings, database, volume, pace, quick=quick, max_seconds=max_seconds, tell=lambda _: None
                    )
                    if report is not None:
                        metrics.observe(report.run)
                except CustodyError as error:
                    log.warning("verify_interrupted", code=error.code, detail=error.detail)
                await pause(stop, every)
        finally:
            stopping.cancel()
    log.info("verify_stopped")


async def _hand_on(stop: asyncio.Event, pace: Pace) -> None:
    await stop.wait()
    pace.stop()


async def _alone(
    settings: VerifySettings,
    database: Database,
    volume: Volume,
    pace: Pace,
    *,
    quick: bool,
    max_seconds: float | None,
    tell: Callable[[Counts], None],
) -> Report | None:
    async with Alone(settings.listen_url, work="verify") as taken:
        if not taken:
            log.info("verify_kept_out")
            return None
        run = await Verification(
            database,
            volume,
            pace,
            quick=quick,
            max_seconds=max_seconds,
            keep_seconds=settings.quarantine_days * 86_400,
            progress=tell,
        ).run()
        log.info("verify_ended", stopped=run.stopped, quick=run.quick, **asdict(run.counts))
        suspected = await suspected_restore(database, Removal(volume))
        integrity = Integrity()
        async with database.transaction() as transaction:
            off = await installation.sweep_off(transaction)
            return Report(
                run,
                await integrity.count_quarantined(transaction),
                await integrity.files_lost(transaction),
                off.reason if off else suspected,
            )


async def _mark_as_accepted(settings: VerifySettings, database: Database, volume: Volume) -> None:
    while True:
        async with Alone(settings.listen_url, work="cleanup") as taken:
            if taken:
                await leave_mark(database, Removal(volume))
                async with database.transaction() as transaction:
                    await installation.turn_sweep_on(transaction)
                return
        await asyncio.sleep(1)


def _on_signal(act: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act)


@asynccontextmanager
async def _opened(settings: VerifySettings) -> AsyncIterator[tuple[Database, Volume]]:
    volume = Volume(settings.volume, instance=settings.instance, threads=settings.verify_threads)
    url = settings.database_url.get_secret_value()
    async with Database(
        url, name="wharf verify", role="wharf_cleanup", size=4, by_index=True, prepares=not settings.is_pooled
    ) as database:
        async with database.transaction() as transaction:
            await installation.check_volume(transaction, volume)
        yield database, volume
