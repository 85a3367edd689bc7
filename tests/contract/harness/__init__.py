"""What a transport brings along to run the contract suite: how its workers start, die and are followed up."""

from types import TracebackType
from typing import Protocol, Self

from custody.transport import Transport
from tests.support.domain import POOL


class TransportHarness(Protocol):
    """Entered on a `Domain`, whose tasks it transports. Whatever the transport needs in the background, a relay say,
    runs from entry to exit. Leases last for 30 s and three attempts are granted, as in the domain's `tasks`."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def connect(self, worker: str, pool: str = POOL) -> Transport:
        """The transport of a worker that has started, under a name that was not used before."""
        ...

    async def announce(self, pool: str = POOL) -> None:
        """What the broker does after a submission's commit."""
        ...

    async def abandon(self, worker: str) -> None:
        """The worker dies without a word, its leases run out, and whatever mends that has taken notice. Its transport
        object is still there, for what it may say too late."""
        ...

    async def reconcile(self) -> None:
        """One turn of the loop that mends what a death left behind."""
        ...
