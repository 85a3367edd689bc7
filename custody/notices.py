"""What happened, told from process to process: sent after the commit, on a connection of its own.

NOTIFY inside a data transaction makes commits wait in line, so nobody does that here. A notice may be lost; a waiter
subscribes first, reads then, and reads again every few seconds, so that a lost one costs seconds and no truth.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self
from uuid import UUID

import psycopg
import structlog

from custody.errors import CustodyError
from custody.wire import Priority

log = structlog.get_logger()

CHANNEL = "wharf"
PAUSE_SECONDS = 0.005
PAYLOAD_BYTES = 7000
READ_AGAIN_SECONDS = 5.0


def job_ended(job_id: UUID) -> str:
    return f"job:{job_id}"


def tasks_queued(pool: str, priority: Priority) -> str:
    return f"pool:{pool}:{priority.value}"


POOLS_CHANGED = "pools"
"""A model was registered: there is a pool that relays may not know."""


HEARD_SECONDS = 5.0
"""For a notice that is told to oneself."""


async def are_heard(url: str) -> bool:
    """Whether what one connection tells comes to another. Through a transaction pooler it does not. Raises
    `CustodyError("database_unavailable")`."""
    channel = f"wharf_{secrets.token_hex(8)}"
    try:
        async with (
            await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=10) as listening,
            await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=10) as telling,
        ):
            await listening.execute(f"LISTEN {channel}".encode())
            await telling.execute("SELECT pg_notify(%s, '')", [channel])
            async for _ in listening.notifies(timeout=HEARD_SECONDS, stop_after=1):
                return True
    except psycopg.Error as error:
        raise CustodyError("database_unavailable", f"The database does not answer: {str(error).strip()}") from error
    return False


class Notices:
    """`url` must reach the server itself: LISTEN does not work through a transaction pooler."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._unsent: dict[str, None] = {}
        self._to_send = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._loops = [
            asyncio.create_task(self._keep_going(self._listen), name="notices-listen"),
            asyncio.create_task(self._keep_going(self._send), name="notices-send"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    def tell(self, topic: str) -> None:
        """Returns at once; topics told within 5 ms travel together. Call it after the commit."""
        self._unsent[topic] = None
        self._to_send.set()

    def wake_all(self) -> None:
        """Every waiter of this process reads again now."""
        for topic in list(self._waiting):
            self._wake(topic)

    @contextmanager
    def subscribe(self, topic: str) -> Iterator["Subscription"]:
        event = asyncio.Event()
        self._waiting[topic].add(event)
        try:
            yield Subscription(event)
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    async def _keep_going(self, loop: Callable[[psycopg.AsyncConnection], Awaitable[None]]) -> None:
        pause = 0.1
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, application_name=f"{self._name} notices", connect_timeout=10
                ) as connection:
                    pause = 0.1
                    await loop(connection)
            except psycopg.Error as error:
                log.warning("notices_interrupted", error=str(error).strip(), again_in_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, READ_AGAIN_SECONDS)

    async def _listen(self, connection: psycopg.AsyncConnection) -> None:
        await connection.execute(f"LISTEN {CHANNEL}")
        # Whatever was told while nobody listened is found by reading again.
        self.wake_all()
        async for notice in connection.notifies():
            for topic in notice.payload.split("\n"):
                self._wake(topic)

    async def _send(self, connection: psycopg.AsyncConnection) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            unsent, self._unsent = self._unsent, {}
            try:
                for payload in _payloads(unsent):
                    await connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
            except psycopg.Error:
                # A restart of the server is found out here, by the first notice after it. Telling twice does no harm.
                self._unsent = {**unsent, **self._unsent}
                self._to_send.set()
                raise
            await asyncio.sleep(PAUSE_SECONDS)

    def _wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()


def _payloads(topics: Iterable[str]) -> Iterator[str]:
    """As many topics in each as the server takes."""
    gathered = ""
    for topic in topics:
        if gathered and len(gathered) + len(topic) > PAYLOAD_BYTES:
            yield gathered
            gathered = ""
        gathered += f"\n{topic}" if gathered else topic
    if gathered:
        yield gathered


class Subscription:
    """One waiter. Read first, then `wait`, then read again."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    async def wait(self, timeout_seconds: float = READ_AGAIN_SECONDS) -> None:
        """Returns when the topic was told since the last call, or at the timeout: read again either way."""
        # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
        with suppress(TimeoutError):
            async with asyncio.timeout(min(timeout_seconds, READ_AGAIN_SECONDS)):
                await self._event.wait()
        self._event.clear()
