"""The worker, killed with -9 at one step from a message to its acknowledgement.

    python -m tests.support.worker_killed_at STEP

STEP is one of `STEPS`; the worker is set up by the environment, as `wharf worker` is.
"""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

from custody.tasks import Tasks
from custody.transport.amqp import Feed, Intake
from inference_worker.child import Child
from inference_worker.command import worker
from tests.support.broker_killed_at import die_after, die_before

STEPS: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "a message has come": lambda: die_after(Feed, "_on_arrival"),
        "its task is claimed": lambda: die_after(Tasks, "claim"),
        "the picture is about to be looked at": lambda: die_before(Child, "ask"),
        "the picture has been looked at": lambda: die_after(Child, "ask"),
        "the result is written, nobody told of it": lambda: die_after(Tasks, "succeed"),
        "the job is finished, nothing acknowledged": lambda: die_before(Intake, "settle"),
        "the message is acknowledged": lambda: die_after(Intake, "flush"),
    }
)
"""In their order."""


def main() -> None:
    STEPS[sys.argv[1]]()
    worker()


if __name__ == "__main__":
    main()
