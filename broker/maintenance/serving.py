"""What all maintenance that goes on and on has in common: its probes, its metrics, and its end."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry

from custody.health import HealthServer, Pulse
from custody.process import END_SECONDS, end_within


@asynccontextmanager
async def serving(host: str, port: int, registry: CollectorRegistry) -> AsyncIterator[asyncio.Event]:
    """Answers probes on `port`, where it is not 0, until the block ends. The event is set by the signal that asks for
    the end: SIGTERM or SIGINT. What has not ended 10 s later is cut off."""
    stop, pulse = asyncio.Event(), Pulse()
    with ExitStack() as stack:
        if port:
            stack.enter_context(
                HealthServer(
                    host,
                    port,
                    registry,
                    is_alive=pulse.is_recent,
                    is_ready=lambda: pulse.is_recent() and not stop.is_set(),
                )
            )
        beating = asyncio.create_task(pulse.beat())

        def end() -> None:
            stop.set()
            end_within(END_SECONDS)

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        try:
            yield stop
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Until the time is over, or the end is asked for."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
