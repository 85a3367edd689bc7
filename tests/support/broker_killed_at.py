"""The broker, killed with -9 at one step of an upload.

    python -m tests.support.broker_killed_at STEP

STEP is one of `STEPS`; the broker is set up by the environment, as `wharf broker` is.
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from broker.command import broker
from broker.metrics import BrokerMetrics
from custody import volume
from custody.audit import Audit
from custody.files import Files
from custody.volume import Staging, Volume

STEPS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "first bytes are staged": lambda: die_after(Staging, "_append"),
        "staged bytes are about to be synced": lambda: die_before(os, "fdatasync"),
        "staged bytes are synced": lambda: die_after(os, "fdatasync"),
        "the blob is locked": lambda: die_before(Volume, "keep"),
        "the rename has happened": lambda: die_after(Path, "rename"),
        "the folder is synced": lambda: die_after(volume, "_place"),
        "the bytes are in the tree, the file not yet a row": lambda: die_before(Files, "_add"),
        "every row is written, none committed": lambda: die_after(Files, "keep"),
        "the receipt is written, nothing committed": lambda: die_after(Audit, "record"),
        "all is committed, nothing answered": lambda: die_before(BrokerMetrics, "count"),
    }
)
"""In their order."""

COMMITTED = "all is committed, nothing answered"


def main() -> None:
    STEPS[sys.argv[1]]()
    broker()


def die_before(owner: object, name: str) -> None:
    getattr(owner, name)
    setattr(owner, name, lambda *_, **__: die())


def die_after(owner: object, name: str) -> None:
    original = getattr(owner, name)

    if inspect.iscoroutinefunction(original):

        async def then_die(*arguments: Any, **named: Any) -> None:
            await original(*arguments, **named)
            die()
    else:

        def then_die(*arguments: Any, **named: Any) -> None:
            original(*arguments, **named)
            die()

    setattr(owner, name, then_die)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
