"""`python -m tests.faults.chaos`: what README.md in the folder above tells."""

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.faults.chaos.checks import shortened
from tests.faults.chaos.ledger import Ledger
from tests.faults.chaos.report import table_of_faults, table_of_promises
from tests.faults.chaos.run import conclude, play
from tests.faults.chaos.site import Site
from tests.support.rabbitmq import available

SECONDS = 600.0
LOAD = 0.85
"""Of that time there is load; the rest is for the start and the reckoning."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description="Hurts a whole fleet at random.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"about; {SECONDS:g} unless told")
    parser.add_argument("--seed", default=None, help="that of an earlier run brings its faults in the same order")
    arguments = parser.parse_args()
    if not available():
        sys.exit("python -m tests.faults.chaos: no RabbitMQ on this machine: run make faults as root, or install it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = arguments.seed or str(random.randrange(10**6))
    console = Console(highlight=False, soft_wrap=True)
    folder = Path(tempfile.mkdtemp(prefix="wharf-chaos-"))
    console.print(f"seed {seed}, {arguments.seconds:g} s, logs in {folder}; starting")
    ledger = Ledger()
    with Site(folder, ledger) as site:
        account = play(site, ledger, seconds=arguments.seconds * LOAD, seed=seed, tell=console.print)
        conclude(site, ledger)
    console.print(table_of_faults(account))
    refusals = ", ".join(f"{how}: {count}" for how, count in ledger.refusals.most_common())
    console.print(f"no promise was given {ledger.refusals.total()} times ({refusals})")
    console.print(table_of_promises(account))
    if not ledger.violations:
        shutil.rmtree(folder)
        return 0
    for line in shortened(ledger.violations):
        console.print(line, markup=False)
    console.print(f"Promises were broken. The same faults again: make faults SEED={seed}. The logs are in {folder}.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
