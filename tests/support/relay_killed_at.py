"""The relay, killed with -9 at one step from the task's row to its message.

    python -m tests.support.relay_killed_at STEP

STEP is one of `STEPS`; the relay is set up by the environment, as `wharf relay` is.
"""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

from prometheus_client import Counter

from broker.relay.command import relay
from broker.relay.publisher import Publisher
from custody.instance import PoolLocks
from custody.tasks import Tasks
from custody.transport import topology
from tests.support.broker_killed_at import die_after, die_before

STEPS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "the pool is taken": lambda: die_after(PoolLocks, "take"),
        "its queue is made": lambda: die_after(topology, "declare"),
        "tasks are chosen": lambda: die_before(Publisher, "publish"),
        "they are published, not confirmed": lambda: die_after(Publisher, "publish"),
        "they are confirmed, not marked": lambda: die_before(Tasks, "mark_released"),
        "they are marked, not committed": lambda: die_after(Tasks, "mark_released"),
        "all is committed, not counted": lambda: die_before(Counter, "inc"),
    }
)
"""In their order."""


def main() -> None:
    STEPS[sys.argv[1]]()
    relay()


if __name__ == "__main__":
    main()
