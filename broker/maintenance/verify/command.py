"""`wharf verify`: the volume's bytes looked at, once or again and again, wired."""

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Annotated

import structlog
import typer

from broker.maintenance.verify.metrics import VerifyMetrics
from broker.maintenance.verify.pace import Pace
from broker.maintenance.verify.report import print_history, print_run
from broker.maintenance.verify.settings import VerifySettings
from broker.maintenance.verify.verification import Verification
from custody.database import Database
from custody.errors import CustodyError
from custody.health import HealthServer, Pulse
from custody.installation import check_volume
from custody.instance import Alone
from custody.integrity import Counts, Integrity
from custody.process import run
from custody.volume import Volume

log = structlog.get_logger()

HISTORY = 20


@dataclass(frozen=True)
class Wanted:
    quick: bool
    max_seconds: float | None
    every: float | None
    history: bool
    as_json: bool


def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Compare existence and sizes; read nothing")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="End after these; the next run goes on from there")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1, help="Bytes read in a second (WHARF_VERIFY_BYTES_PER_SECOND)")
    ] = None,
    every: Annotated[float | None, typer.Option(min=1, help="Begin again every so many seconds, until stopped")] = None,
    history: Annotated[bool, typer.Option("--history", help=f"Show the last {HISTORY} runs and end")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Read what the volume keeps and quarantine what is damaged, while everything else goes on. Status 1 where damage
    was found. WHARF_DATABASE_URL is a login of the role wharf_cleanup."""
    wanted = Wanted(quick, max_seconds, every, history, as_json)
    damage = 0

    async def serve(settings: VerifySettings) -> None:
        nonlocal damage
        damage = await _serve(settings, wanted)

    run("verify", VerifySettings, serve, verify_bytes_per_second=rate)
    raise typer.Exit(1 if damage else 0)


async def _serve(settings: VerifySettings, wanted: Wanted) -> int:
    """What was found damaged or unreadable."""
    pace = Pace(settings.verify_bytes_per_second)
    stop = asyncio.Event()

    def end() -> None:
        stop.set()
        pace.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database(
                settings.database_url.get_secret_value(),
                name="wharf verify",
                role="wharf_cleanup",
                size=4,
                by_index=True,
            )
        )
        if wanted.history:
            async with database.transaction() as transaction:
                print_history(await Integrity().history(transaction, limit=HISTORY), as_json=wanted.as_json)
            return 0
        volume = Volume(settings.volume, instance="verify", threads=settings.verify_threads)
        async with database.transaction() as transaction:
            await check_volume(transaction, volume)
        work = _Work(settings, wanted, database, volume, pace)
        return await (work.once() if wanted.every is None else work.again_and_again(wanted.every, stop))


class _Work:
    def __init__(
        self, settings: VerifySettings, wanted: Wanted, database: Database, volume: Volume, pace: Pace
    ) -> None:
        self._settings = settings
        self._wanted = wanted
        self._database = database
        self._volume = volume
        self._pace = pace
        self._metrics = VerifyMetrics()

    async def once(self) -> int:
        async with Alone(self._settings.listen_url, work="verify") as alone:
            if not alone:
                typer.echo("Another verification is running: this one has nothing to do.", err=True)
                return 0
            verification = Verification(
                self._database,
                self._volume,
                self._pace,
                quick=self._wanted.quick,
                max_seconds=self._wanted.max_seconds,
                keep_seconds=self._settings.quarantine_days * 86_400,
                progress=_show_progress if sys.stderr.isatty() else lambda counts: None,
            )
            ended = await verification.run()
        self._metrics.observe(ended)
        async with self._database.transaction() as transaction:
            quarantined = await Integrity().count_quarantined(transaction)
            lost = await Integrity().files_lost(transaction)
        if self._wanted.every is None:
            print_run(ended, quarantined, lost, as_json=self._wanted.as_json)
        log.info("verified", stopped=ended.stopped, quarantined=sum(quarantined.values()), **_logged(ended.counts))
        return ended.counts.damage

    async def again_and_again(self, seconds: float, stop: asyncio.Event) -> int:
        pulse = Pulse()
        beating = asyncio.create_task(pulse.beat())
        async with AsyncExitStack() as stack:
            stack.callback(beating.cancel)
            if self._settings.health_port:
                stack.enter_context(
                    HealthServer(
                        self._settings.health_host,
                        self._settings.health_port,
                        self._metrics.registry,
                        is_alive=pulse.is_recent,
                        is_ready=pulse.is_recent,
                    )
                )
            while not stop.is_set():
                try:
                    await self.once()
                except CustodyError as error:
                    log.warning("verify_interrupted", code=error.code, detail=error.detail)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), seconds)
        return 0


def _logged(counts: Counts) -> dict[str, int]:
    return {
        "checked": counts.checked,
        "bytes": counts.bytes,
        "corrupt": counts.corrupt,
        "missing": counts.missing,
        "unreadable": counts.unreadable,
    }


def _show_progress(counts: Counts) -> None:
    typer.echo(f"\rchecked {counts.checked:,}, {counts.bytes:,} bytes, damaged {counts.damage:,} ", err=True, nl=False)
