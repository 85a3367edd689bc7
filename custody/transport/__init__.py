"""The seam between the task rows and the workers: who hands a task to whom, and how it is settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from custody.tasks import Claim
from custody.wire import Priority


@dataclass(frozen=True)
class Delivery:
    """A claimed task on its way through a worker. A transport may add what it needs to settle it."""

    claim: Claim


class Transport(Protocol):
    """Hands tasks of one pool to one worker, at least once each. Truth stays in the task rows: a delivery that is lost,
    doubled or late changes nothing there. `tests/contract/test_transport_contract.py` is its full promise."""

    async def receive(self, priority: Priority, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        """Up to `limit` claimed tasks of this class, each tenant's oldest first. Waits for work where there is none,
        and gives nothing when that took `wait_seconds`. Both classes may be waited for at once."""
        ...

    async def settle(self, delivery: Delivery) -> None:
        """The task's end is committed, or its claim turned out void: the transport may forget the delivery."""
        ...

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Received and never begun: others may take them at once, and the attempt does not count. So may they take
        whatever else had come to this worker and was not received."""
        ...
