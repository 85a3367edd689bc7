"""One relay: everything that it does while it has a connection to RabbitMQ."""

import asyncio
from dataclasses import dataclass, field

import structlog

from broker.relay.dead_letters import DeadLetters
from broker.relay.metrics import RelayMetrics
from broker.relay.publisher import Publisher
from broker.relay.release import DELETED_SECONDS, Release, SilentQueueError, Window
from custody import pools
from custody.database import Database
from custody.errors import CustodyError
from custody.instance import PoolLocks
from custody.notices import POOLS_CHANGED, Notices
from custody.spans import Tracing
from custody.transport import topology
from custody.transport.connection import ChannelFailedError, Connection, reasons
from custody.wire import Priority

log = structlog.get_logger()

FAULTY_SECONDS = 15.0
"""Pause before a queue that could not be made or filled is tried again."""


@dataclass(frozen=True)
class Relay:
    """`locks_url` reaches the database itself, without a transaction pooler in between."""

    database: Database
    locks_url: str
    notices: Notices
    window: Window
    metrics: RelayMetrics
    name: str
    tracing: Tracing | None = None
    faults: dict[str, str] = field(default_factory=dict)
    """By queue: why it is not filled now."""

    async def run(self, connection: Connection) -> None:
        """Releases tasks of every pool that no other relay looks after, and takes the dead letters. Ends only by an
        error: `QueueError`, or `CustodyError` where the session that holds the pools is gone."""
        publisher = await Publisher.open(connection, self.tracing)
        async with PoolLocks(self.locks_url, name=self.name) as locks, asyncio.TaskGroup() as group:
            group.create_task(connection.until_lost())
            group.create_task(publisher.until_closed())
            group.create_task(DeadLetters(self.database, self.metrics).run(connection))
            group.create_task(self._keep_pools(group, locks, connection, publisher))

    async def _keep_pools(
        self, group: asyncio.TaskGroup, locks: PoolLocks, connection: Connection, publisher: Publisher
    ) -> None:
        ours: set[str] = set()
        with self.notices.subscribe(POOLS_CHANGED) as subscription:
            while True:
                for pool in await self._pools():
                    if pool not in ours and await locks.take(pool):
                        log.info("pool_taken", pool=pool)
                        ours.add(pool)
                        for priority in Priority:
                            group.create_task(self._keep_filled(pool, priority, connection, publisher))
                self.metrics.pools.set(len(ours))
                await locks.check()
                await subscription.wait()

    async def _pools(self) -> list[str]:
        try:
            async with self.database.transaction() as transaction:
                return await pools.names(transaction)
        except CustodyError as error:
            log.warning("pools_not_read", code=error.code, detail=error.detail)
            return []

    async def _keep_filled(self, pool: str, priority: Priority, connection: Connection, publisher: Publisher) -> None:
        queue = topology.queue_of(pool, priority)
        while True:
            self.faults.pop(queue, None)
            release = Release(
                pool,
                priority,
                self.window,
                database=self.database,
                notices=self.notices,
                connection=connection,
                publisher=publisher,
                metrics=self.metrics,
            )
            try:
                await release.run()
            except* SilentQueueError as errors:
                log.error("queue_made_anew", queue=queue, reason=reasons(errors))  # noqa: TRY400
                await topology.delete(connection, pool, priority)
                await asyncio.sleep(DELETED_SECONDS)
            except* (ChannelFailedError, CustodyError) as errors:
                # One queue that was made with other arguments, say, is no reason to leave the others alone.
                self.faults[queue] = reasons(errors)
                log.error("queue_faulty", queue=queue, reason=self.faults[queue])  # noqa: TRY400
                await asyncio.sleep(FAULTY_SECONDS)
