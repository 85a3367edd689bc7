"""A cleanup, killed with -9 just before its n-th change of the database or the volume.

    python -m tests.support.cleanup_killed_at

For each n on a line of its standard input it runs one cleanup, in a fork, so that nothing is imported twice, and
prints its exit status on a line: -9 where it was killed, 0 where it has fewer changes. The cleanup is set up by the
environment, as `wharf cleanup --now` is.
"""

import asyncio
import os
import sys

from broker.maintenance.cleanup.schedule import clean_once
from broker.maintenance.cleanup.settings import CleanupSettings
from custody.settings import load
from custody.telemetry import configure_logging
from tests.support.countdown import Countdown


def main() -> None:
    configure_logging(process="cleanup", format="text", level="critical")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            Countdown(int(line)).arm()
            settings = load(CleanupSettings)
            run = asyncio.run(clean_once(settings, without_grace=True, max_seconds=None, tell=lambda _: None))
            os._exit(0 if run is not None and run.stopped == "done" else 1)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
