"""The relay, killed with -9 at one step from the task's row to its message, or from a dead letter back to the row.

    python -m tests.support.relay_killed_at STEP

STEP is one of `STEPS` or `LETTER_STEPS`; the relay is set up by the environment, as `wharf relay` is.
"""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

from broker.relay.command import relay
from broker.relay.publisher import Publisher
from broker.relay.release import Release
from custody import releases
from custody.instance import PoolLocks
from custody.transport import topology
from custody.transport.connection import Channel
from tests.support.broker_killed_at import die_after, die_before

STEPS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "the pool is taken": lambda: die_after(PoolLocks, "take"),
        "what its queue lost is released again, not committed": lambda: die_after(Release, "_undo_lost"),
        "its queue is made": lambda: die_after(topology, "declare"),
        "tasks are marked, not published": lambda: die_before(Publisher, "publish"),
        "they are published, not confirmed": lambda: die_after(Publisher, "publish"),
        "the first is confirmed": lambda: die_after(Publisher, "_settled"),
    }
)
"""In their order."""

LETTER_STEPS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "its task is dispatched again, not committed": lambda: die_after(releases, "dispatch_again"),
        "all is committed, the letter not acknowledged": lambda: die_before(Channel, "ack"),
    }
)


def main() -> None:
    {**STEPS, **LETTER_STEPS}[sys.argv[1]]()
    relay()


if __name__ == "__main__":
    main()
