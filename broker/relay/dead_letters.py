"""The dead letters: messages that were delivered too often or that a worker rejected, each looked at once more."""

import asyncio
from dataclasses import dataclass
from typing import NoReturn

import structlog

from broker.relay.metrics import RelayMetrics
from custody import releases
from custody.database import Database
from custody.errors import CustodyError
from custody.messages import MessageError, decode
from custody.transport.connection import Arrival, Connection, QueueError
from custody.transport.topology import DEAD_LETTERS, declare_dead_letters

log = structlog.get_logger()

PREFETCH = 50
AGAIN_SECONDS = 2.0


@dataclass(frozen=True)
class DeadLetters:
    """A task that is still queued is dispatched again; its attempts, counted in its row, decide how often. The letters
    of others are void, and what is no message of ours is counted and dropped."""

    database: Database
    metrics: RelayMetrics

    async def run(self, connection: Connection) -> None:
        """Raises `QueueError` when the connection is lost or the queue goes away."""
        letters: asyncio.Queue[Arrival] = asyncio.Queue()
        channel = await connection.channel()
        await declare_dead_letters(channel)
        async with asyncio.TaskGroup() as group:
            group.create_task(channel.until_closed())

            deleted = asyncio.Event()
            group.create_task(_end_at(deleted))
            await channel.consume(DEAD_LETTERS, PREFETCH, letters.put_nowait, deleted.set)
            while True:
                letter = await letters.get()
                self.metrics.dead_letters.labels(await self._outcome(letter.body)).inc()
                channel.ack(letter.tag)

    async def _outcome(self, body: bytes) -> str:
        try:
            task = decode(body).task
        except MessageError as error:
            log.warning("dead_letter_dropped", reason=error.reason, bytes=len(body))
            return error.reason
        while True:
            try:
                async with self.database.transaction() as transaction:
                    again = await releases.dispatch_again(transaction, task)
            except CustodyError as error:
                log.warning("dead_letter_waits_for_database", code=error.code, detail=error.detail)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            log.warning("dead_letter", task_id=str(task), dispatched_again=again)
            return "dispatched" if again else "void"


async def _end_at(deleted: asyncio.Event) -> NoReturn:
    await deleted.wait()
    # With that everything ends, and is made anew.
    raise QueueError(f"The queue {DEAD_LETTERS} was deleted.")
