"""The embedded transport under the contract suite."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from custody.notices import Notices, tasks_queued
from custody.reconcile import Reconciler
from custody.transport import Transport
from custody.transport.embedded import EmbeddedTransport
from custody.wire import Priority
from tests.support.domain import POOL, Domain


class EmbeddedHarness:
    """Broker and workers have notices of their own, as the processes do."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        url = self._domain.installation.url
        self._broker = await self._stack.enter_async_context(Notices(url("wharf_api"), name="broker"))
        self._worker = await self._stack.enter_async_context(Notices(url("wharf_worker"), name="worker"))
        self._reconciler = Reconciler(
            self._domain.worker, self._domain.tasks, self._domain.jobs, self._worker, every_seconds=1
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def connect(self, worker: str, pool: str = POOL) -> Transport:
        return EmbeddedTransport(
            self._domain.worker,
            self._domain.tasks,
            self._worker,
            pool=pool,
            worker=worker,
            follow=self._reconciler.follow,
        )

    async def announce(self, pool: str = POOL) -> None:
        for priority in Priority:
            self._broker.tell(tasks_queued(pool, priority))

    async def abandon(self, worker: str) -> None:
        await self._domain.expire_leases(worker)
        await self.reconcile()

    async def reconcile(self) -> None:
        await self._reconciler.run_once()
