"""Backpressure: how much may wait in a pool, of one tenant and of all, before submissions are refused.

What waits is counted once a second at most, and what this broker has let in since is added: its own submissions pass
no limit, however many come at once. What other brokers let in between two counts may.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from custody import pools
from custody.database import Database, Transaction
from custody.errors import CustodyError

COUNT_AGAIN_SECONDS = 1.0
COUNT_AGAIN_FACTOR = 20
"""A count that takes long, half a second for a million, is good for so many times as long."""

WATCH_SECONDS = 5.0

FORGET_SECONDS = 60.0

FULL_SECONDS = 5
"""After which a refused client asks again."""


@dataclass
class Line:
    """What waits in one pool, of one tenant or of all: `counted` then, `submitted` here since that count began, and
    `in_flight`: about to be submitted by transactions that have not ended."""

    counted: int = 0
    submitted: int = 0
    in_flight: int = 0
    good_until: float = 0.0
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def waiting(self) -> int:
        return self.counted + self.submitted + self.in_flight

    async def count(self, count: Callable[[], Awaitable[int]]) -> None:
        """Counts again where the last count is too old. While one caller does, the others go by what is known."""
        if self.good_until and self.counting.locked():
            return
        async with self.counting:
            began = time.monotonic()
            if began < self.good_until:
                return
            # What was submitted before the count began is in it. What ends meanwhile is counted twice for a while.
            before = self.submitted
            self.counted = await count()
            self.submitted -= before
            took = time.monotonic() - began
            self.good_until = time.monotonic() + max(COUNT_AGAIN_SECONDS, COUNT_AGAIN_FACTOR * took)


class Backlog:
    """`pool_limit`: inputs that may wait in one pool; `tenant_limit`: those of one tenant among them."""

    def __init__(self, *, pool_limit: int, tenant_limit: int) -> None:
        self._pool_limit = pool_limit
        self._tenant_limit = tenant_limit
        self._lines: dict[tuple[str, UUID | None], Line] = {}

    @asynccontextmanager
    async def admission(self) -> AsyncIterator["Admission"]:
        """Around a transaction that submits: what `admit` lets in counts until it is known what became of it."""
        admission = Admission(self)
        try:
            yield admission
        except BaseException:
            admission.end(submitted=False)
            raise
        admission.end(submitted=True)

    async def waiting(self, transaction: Transaction, pool: str) -> int:
        """Inputs that wait in the pool, of all tenants; never more than its limit."""
        return min(self._pool_limit, (await self._pool(transaction, pool)).waiting)

    async def watch(self, database: Database, tell: Callable[[Mapping[str, int] | None], None]) -> None:
        """Tells again and again what `waiting` says of every pool; None while the database does not answer."""
        while True:
            try:
                async with database.transaction() as transaction:
                    names = await pools.names(transaction)
                    waiting = {name: await self.waiting(transaction, name) for name in names}
            except CustodyError:
                tell(None)
            else:
                tell(waiting)
            await asyncio.sleep(WATCH_SECONDS)

    async def room(self, transaction: Transaction, tenant: UUID, pool: str, inputs: int) -> tuple[Line, ...]:
        """The lines in which there is room for so many inputs. Raises `CustodyError` as `Admission.admit` says."""
        most = min(self._pool_limit, self._tenant_limit)
        if inputs > most:
            raise CustodyError("request_too_large", f"{most} inputs may wait at once; cut the job in several.")
        mine = await self._tenant(transaction, tenant, pool)
        everybodys = await self._pool(transaction, pool)
        for code, line, limit, whose in (
            ("tenant_backlog_full", mine, self._tenant_limit, "of your inputs "),
            ("pool_backlog_full", everybodys, self._pool_limit, "inputs "),
        ):
            if line.waiting + inputs > limit:
                raise CustodyError(
                    code,
                    f"{min(line.waiting, limit)} {whose}wait for {pool} and {limit} may: there is no room for {inputs} "
                    "more. Try again when some are done.",
                    retry_after=FULL_SECONDS,
                )
        return mine, everybodys

    async def _pool(self, transaction: Transaction, pool: str) -> Line:
        line = self._line(pool, None)
        await line.count(lambda: pools.backlog(transaction, pool, most=self._pool_limit))
        return line

    async def _tenant(self, transaction: Transaction, tenant: UUID, pool: str) -> Line:
        line = self._line(pool, tenant)
        await line.count(lambda: pools.seen_backlog(transaction, pool, most=self._tenant_limit))
        return line

    def _line(self, pool: str, tenant: UUID | None) -> Line:
        if (pool, tenant) not in self._lines:
            long_ago = time.monotonic() - FORGET_SECONDS
            self._lines = {
                key: line
                for key, line in self._lines.items()
                if line.good_until > long_ago or line.in_flight or line.counting.locked()
            }
            self._lines[pool, tenant] = Line()
        return self._lines[pool, tenant]


class Admission:
    """What one transaction was allowed to submit."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._inputs = 0
        self._lines: tuple[Line, ...] = ()

    async def admit(self, transaction: Transaction, tenant: UUID, pool: str, inputs: int) -> None:
        """Raises `CustodyError`: `tenant_backlog_full` or `pool_backlog_full` where there is no room for so many
        inputs now, `request_too_large` where there never is."""
        self._lines = await self._backlog.room(transaction, tenant, pool, inputs)
        self._inputs = inputs
        for line in self._lines:
            line.in_flight += inputs

    def end(self, *, submitted: bool) -> None:
        for line in self._lines:
            line.in_flight -= self._inputs
            line.submitted += self._inputs if submitted else 0
