"""`wharf relay`: one relay process, wired."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import structlog

from broker.relay.metrics import RelayMetrics
from broker.relay.relay import Relay
from broker.relay.release import Window
from broker.relay.settings import RelaySettings
from custody import relays
from custody.database import Database
from custody.errors import CustodyError
from custody.health import HealthServer, Pulse
from custody.instance import InstanceLock
from custody.jobs import Jobs
from custody.notices import Notices
from custody.process import END_SECONDS, end_within, release, run
from custody.reconcile import Reconciler
from custody.spans import tracing
from custody.tasks import Tasks
from custody.transport.connection import Amqp, Login

log = structlog.get_logger()

SEEN_EVERY_SECONDS = 5.0


def relay() -> None:
    """Release tasks to RabbitMQ and mend what a death left behind. It is set by environment variables."""
    run("relay", RelaySettings, serve)


async def serve(settings: RelaySettings) -> None:
    stop = asyncio.Event()

    def end() -> None:
        stop.set()
        end_within(END_SECONDS)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    name = f"wharf relay {settings.instance}"
    async with AsyncExitStack() as stack:
        traced = stack.enter_context(tracing("relay", instance=settings.instance, release=release()))
        database = await stack.enter_async_context(
            Database(
                settings.database_url.get_secret_value(),
                name="wharf relay",
                role="wharf_relay",
                size=8,
                by_index=True,
                prepares=not settings.is_pooled,
            )
        )
        await stack.enter_async_context(InstanceLock(settings.listen_url, kind="relay", instance=settings.instance))
        notices = await stack.enter_async_context(Notices(settings.listen_url, name="wharf relay"))
        tasks = Tasks(lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts)
        metrics, pulse = RelayMetrics(), Pulse()
        amqp = Amqp(Login.of(settings), name=name)
        reconciler = Reconciler(database, tasks, Jobs(), notices, every_seconds=settings.reconcile_seconds)
        process = Relay(
            database=database,
            locks_url=settings.listen_url,
            notices=notices,
            window=Window(settings.window, settings.batch),
            metrics=metrics,
            name=name,
            tracing=traced,
        )

        def faults() -> str:
            return amqp.fault or "; ".join(f"{queue}: {reason}" for queue, reason in process.faults.items())

        if settings.health_port:
            stack.enter_context(
                HealthServer(
                    settings.health_host,
                    settings.health_port,
                    metrics.registry,
                    is_alive=pulse.is_recent,
                    is_ready=lambda: not faults() and pulse.is_recent() and not stop.is_set(),
                )
            )
        loops = [
            asyncio.create_task(loop)
            for loop in (
                amqp.keep(process.run),
                reconciler.run(),
                pulse.beat(),
                _say_alive(database, settings.instance, faults),
            )
        ]
        for loop in loops:
            # A relay one of whose loops broke is no relay: it ends, and is started again.
            loop.add_done_callback(lambda _: stop.set())
        log.info("relay_ready", window=settings.window)
        try:
            await stop.wait()
        finally:
            broken = [loop for loop in loops if loop.done()]
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        for loop in broken:
            loop.result()
        with suppress(CustodyError):
            async with database.transaction() as transaction:
                await relays.forget_relay(transaction, settings.instance)
    log.info("relay_stopped")


async def _say_alive(database: Database, instance: str, faults: Callable[[], str]) -> None:
    while True:
        try:
            async with database.transaction() as transaction:
                await relays.report_relay(transaction, instance, faults() or None, release=release())
        except CustodyError as error:
            log.warning("report_interrupted", code=error.code)
        await asyncio.sleep(SEEN_EVERY_SECONDS)
