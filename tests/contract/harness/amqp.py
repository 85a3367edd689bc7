"""The amqp transport under the contract suite: one relay, and a connection of its own for each worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

from broker.relay.metrics import RelayMetrics
from broker.relay.relay import Relay
from broker.relay.release import Window
from custody.database import Database
from custody.notices import Notices, tasks_queued
from custody.reconcile import Reconciler
from custody.transport import Transport, topology
from custody.transport.amqp import AmqpTransport
from custody.transport.connection import Amqp, Connection, Login
from custody.wire import Priority
from tests.support.domain import POOL, Domain

POOLS = (POOL, "other")
PREFETCH = 64


class AmqpHarness:
    """Broker, relay and workers have notices of their own, as the processes do."""

    def __init__(self, domain: Domain, amqp_url: str, *, workers_url: str | None = None, window: int = 1000) -> None:
        self._domain = domain
        self._login = Login(amqp_url)
        self._workers_login = Login(workers_url or amqp_url)
        self._window = Window(window, batch=250)
        self._stack = AsyncExitStack()
        self._workers: dict[str, AmqpTransport] = {}
        self.metrics = RelayMetrics()
        self.rejected: list[str] = []

    async def __aenter__(self) -> Self:
        for pool in POOLS:
            self._domain.add_model(pool)
        url = self._domain.installation.url
        self._broker = await self._stack.enter_async_context(Notices(url("wharf_api"), name="broker"))
        self._notices = await self._stack.enter_async_context(Notices(url("wharf_relay"), name="relay"))
        self._database = await self._stack.enter_async_context(
            Database(url("wharf_relay"), name="relay", role="wharf_relay")
        )
        self._reconciler = Reconciler(
            self._database, self._domain.tasks, self._domain.jobs, self._notices, every_seconds=1
        )
        self._relaying = asyncio.create_task(self._relay(self.metrics))
        self._stack.push_async_callback(_end, self._relaying)
        control = await Connection.open(self._login.parameters("test"))
        self._stack.push_async_callback(control.close)
        async with asyncio.timeout(20):
            for pool in POOLS:
                for priority in Priority:
                    while await topology.find(control, pool, priority) is None:
                        assert not self._relaying.done(), self._relaying.result()
                        await asyncio.sleep(0.05)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def connect(self, worker: str, pool: str = POOL, *, prefetch: int = PREFETCH) -> Transport:
        transport = AmqpTransport(
            Amqp(self._workers_login, name=worker),
            self._domain.worker,
            self._domain.tasks,
            pool=pool,
            worker=worker,
            prefetch=prefetch,
            follow=self._reconciler.follow,
            rejected=self.rejected.append,
        )
        self._workers[worker] = await self._stack.enter_async_context(transport)
        return transport

    def tell(self, pool: str = POOL) -> None:
        for priority in Priority:
            self._broker.tell(tasks_queued(pool, priority))

    async def announce(self, pool: str = POOL) -> None:
        self.tell(pool)
        ready = """
            SELECT t.id FROM wharf.tasks t JOIN wharf.jobs j ON j.id = t.job_id
            WHERE t.pool = %s AND t.state = 'queued' AND t.not_before <= now() AND j.state = 'open'
              AND NOT EXISTS (SELECT FROM wharf.released r WHERE r.task_id = t.id) LIMIT 1
        """
        async with asyncio.timeout(20):
            while await self._domain.ask(ready, [pool]):
                await asyncio.sleep(0.01)

    async def vanish(self, worker: str) -> None:
        """Its connection is gone, and so are its process and whatever it had to say."""
        keeping = self._workers[worker]._keeping
        assert keeping is not None
        await _end(keeping)

    async def abandon(self, worker: str) -> None:
        await self.vanish(worker)
        await self._domain.expire_leases(worker)
        await self.reconcile()

    async def reconcile(self) -> None:
        await self._reconciler.run_once()

    async def end_relay(self) -> None:
        await _end(self._relaying)

    @asynccontextmanager
    async def another_relay(self) -> AsyncIterator[RelayMetrics]:
        """Beside the first; gives what it counts."""
        metrics = RelayMetrics()
        relaying = asyncio.create_task(self._relay(metrics))
        await asyncio.sleep(0.5)
        try:
            yield metrics
        finally:
            await _end(relaying)

    async def _relay(self, metrics: RelayMetrics) -> None:
        relay = Relay(
            database=self._database,
            locks_url=self._domain.installation.url("wharf_relay"),
            notices=self._notices,
            window=self._window,
            metrics=metrics,
            name="relay",
        )
        await Amqp(self._login, name="relay").keep(relay.run)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
