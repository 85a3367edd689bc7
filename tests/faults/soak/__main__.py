"""`python -m tests.faults.soak`: a fleet in good health, asked as much as the machine gives, and held to need no more
in the end than on the way. See README.md in the folder above."""

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from tests.faults.chaos import checks
from tests.faults.chaos.ledger import Ledger
from tests.faults.chaos.run import conclude
from tests.faults.chaos.site import Site, holds_at_last
from tests.faults.soak import samples
from tests.faults.soak.clients import Clients, Told
from tests.faults.soak.samples import Growth, Sample
from tests.support.engines import QUICK_ENGINE
from tests.support.rabbitmq import available

REQUESTS = 1_000_000
LEAST_REQUESTS = 10_000
SAMPLES = 20
SILENT_SECONDS = 180.0
"""Without an answer for so long, the run is over."""
EMPTY_SECONDS = 300.0
"""What has expired goes within so long after the last request."""

KEPT_DAYS = str(60 / 86400)
RETENTION = {"WHARF_FILE_RETENTION_DAYS": KEPT_DAYS, "WHARF_JOB_RETENTION_DAYS": KEPT_DAYS}
PATIENT = {"WHARF_LEASE_SECONDS": "30", "WHARF_RECONCILE_SECONDS": "5"}
# Nothing is broken here: what a busy machine makes late is not to be taken for a death.
SETTINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "broker": {"WHARF_DATABASE_CONNECTIONS": "16", **RETENTION},
        "relay": {**PATIENT, "WHARF_WINDOW": "500"},
        "worker": {**PATIENT, "WHARF_ENGINE": QUICK_ENGINE},
        "cleanup": {**RETENTION, "WHARF_STAGING_HOURS": str(120 / 3600), "WHARF_SWEEP_HOURS": str(60 / 3600)},
    }
)
# Quorum queues keep in memory what they have written until their log has 512 MiB, which takes a million requests.
RABBITMQ: Mapping[str, str] = MappingProxyType({"heartbeat": "30", "vm_memory_high_watermark": '{absolute, "2048MB"}'})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Looks for what grows.")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"{REQUESTS} unless told")
    requests = parser.parse_args().requests
    if requests < LEAST_REQUESTS:
        parser.error(f"{LEAST_REQUESTS:,} requests are the least of which a line can be drawn")
    if not available():
        sys.exit("python -m tests.faults.soak: no RabbitMQ on this machine: run make soak as root, or install it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    folder = Path(tempfile.mkdtemp(prefix="wharf-soak-"))
    console.print(f"{requests:,} requests, logs in {folder}; starting")
    ledger = Ledger()
    with Site(folder, ledger, proxied=False, rabbitmq=RABBITMQ, settings=SETTINGS) as site:
        taken, answers = soak(site, ledger, requests, console.print)
        console.print("waiting until all has expired and is gone")
        _empty(site, ledger)
        _judge_quiet(site, ledger, samples.take(site, answers.total(), time.monotonic()))
        conclude(site, ledger)
    console.print(", ".join(f"{what}: {count:,}" for what, count in sorted(answers.items())))
    # Without the last one, for which no client was left.
    for growth in samples.growths(taken[:-1]):
        console.print(_told(growth))
        if growth.is_leak:
            ledger.broken("leaked", _told(growth))
    if not ledger.violations:
        console.print("Nothing grows.")
        shutil.rmtree(folder)
        return 0
    for line in checks.shortened(ledger.violations):
        console.print(line)
    console.print(f"Something grows, or was answered wrongly. The logs are in {folder}.")
    return 1


def soak(site: Site, ledger: Ledger, requests: int, tell: Callable[[str], None]) -> tuple[list[Sample], Counter[str]]:
    """A sample after every twentieth of the requests, and all answers."""
    answers: Counter[str] = Counter()
    taken: list[Sample] = []
    began = time.monotonic()
    for told in _answers(site, requests):
        answers += told.answers
        for words in told.unforeseen:
            ledger.broken("wrong", words)
        if answers.total() * SAMPLES >= requests * (len(taken) + 1):
            taken.append(samples.take(site, answers.total(), began))
            tell(samples.line(taken[-1], taken[-2] if len(taken) > 1 else None))
    return taken, answers


def _answers(site: Site, requests: int) -> Iterator[Told]:
    """Until the clients are done."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    clients = Clients(site.broker_urls, site.service.key, requests, str(random.randrange(10**6)), theirs)
    process = processes.Process(target=clients.run, name="clients", daemon=True)
    process.start()
    theirs.close()
    try:
        is_over = False
        while not is_over:
            if not ours.poll(SILENT_SECONDS):
                raise RuntimeError(f"No answer came for {SILENT_SECONDS:g} s.")
            gathered = Told(Counter(), [])
            # All that there is: it was told while a sample was taken.
            while not is_over and ours.poll():
                try:
                    told: Told = ours.recv()
                except EOFError:
                    is_over = True
                else:
                    gathered = Told(gathered.answers + told.answers, [*gathered.unforeseen, *told.unforeseen])
            yield gathered
        process.join()
        if process.exitcode:
            raise RuntimeError(f"The clients ended with {process.exitcode}.")
    finally:
        process.kill()


def _empty(site: Site, ledger: Ledger) -> None:
    """By itself, as all has expired: rows and bytes, to the last."""

    def left() -> dict[str, int]:
        return {**site.service.rows(), "files on the volume": samples.tree(site)[0]}

    if not holds_at_last(lambda: not any(left().values()), EMPTY_SECONDS):
        ledger.broken("left over", f"{EMPTY_SECONDS:g} s after the last request: {left()}")


def _judge_quiet(site: Site, ledger: Ledger, last: Sample) -> None:
    """Nothing is asked any more: nothing may hang about."""
    for name, held in last.moment.usages.items():
        for descriptor in held.forlorn:
            ledger.broken("leaked", f"{name} holds {descriptor}")
    if last.moment.in_transaction:
        ledger.broken("leaked", f"{last.moment.in_transaction} sessions have forgotten a transaction")
    if last.moment.messages:
        ledger.broken("left over", f"{last.moment.messages} messages are in RabbitMQ, and nothing to do")


def _told(growth: Growth) -> str:
    is_size = growth.name.endswith(": bytes")
    unit, scale = (" MiB", 2**20) if is_size else ("", 1)
    return (
        f"{growth.name}: {growth.last / scale:,.1f}{unit} at the end, growing by {growth.per_million / scale:+,.1f}"
        f"{unit} for 1,000,000 requests ({growth.allowed / scale:,.1f}{unit} allowed)"
    )


if __name__ == "__main__":
    sys.exit(main())
