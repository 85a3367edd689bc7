"""A verification, killed with -9 just before its n-th change of the database or the volume.

    python -m tests.support.verify_killed_before

For each `n what` on a line of its standard input it runs one, in a fork, so that nothing is imported twice, and prints
its exit status on a line: -9 where it was killed, 0 where it has fewer changes. `what`: `read` for `wharf verify`,
`accept` for `wharf verify --accept`. It is set up by the environment, as they are.
"""

import asyncio
import os
import sys

from broker.maintenance.verify.serve import accept, verify_once
from broker.maintenance.verify.settings import VerifySettings
from custody.settings import load
from custody.telemetry import configure_logging
from tests.support.countdown import Countdown


def main() -> None:
    configure_logging(process="verify", format="text", level="critical")
    for line in sys.stdin:
        number, what = line.split()
        child = os.fork()
        if child == 0:
            Countdown(int(number)).arm()
            settings = load(VerifySettings)
            if what == "accept":
                verification = accept(settings, lambda _: None)
            else:
                verification = verify_once(settings, quick=False, max_seconds=None, tell=lambda _: None)
            report = asyncio.run(verification)
            os._exit(0 if report is not None and report.run.stopped == "done" else 1)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
