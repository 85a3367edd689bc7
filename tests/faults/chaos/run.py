"""One run: a warm-up, a storm of faults under load, and the reckoning."""

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from tests.faults.chaos import checks, usage
from tests.faults.chaos.clients import CLIENTS, SOON_SECONDS, Client, Load, Pictured
from tests.faults.chaos.faults import EVERYTHING, Fault, faults_of
from tests.faults.chaos.ledger import Ledger
from tests.faults.chaos.site import Site, holds_at_last

WARM_UP_SECONDS = (4.0, 20.0)
"""Before the first fault, and before anything is measured; a tenth of the run within these."""
RECOVERY_SECONDS = 90.0
"""Where nothing works for longer after a fault, that is a violation: a lost task is noticed after 60 s."""
QUIET_SECONDS = 180.0
UP_SECONDS = 60.0
CALM_SECONDS = (0.0, 1.5)
"""Between two faults."""
TWO_AT_ONCE = "two at once"
OFTEN = 0.2
"""How often a second fault comes while the first one lasts."""

Tell = Callable[[str], None]


@dataclass
class Account:
    """What came of a run. `brought`: how often each fault was; `recoveries`: for each, the seconds from its end until
    the first job that was submitted afterwards had ended."""

    ledger: Ledger
    brought: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=dict)


def play(site: Site, ledger: Ledger, *, seconds: float, seed: str, tell: Tell) -> Account:
    """`seconds`: of load; the reckoning comes after it. What was broken is in the ledger."""
    account = Account(ledger)
    with ExitStack() as stack:
        prober, *workers = [stack.enter_context(closing(client)) for client in _clients(site, ledger, seed)]
        load = Load(workers, ledger)
        warm_up = min(max(seconds / 10, WARM_UP_SECONDS[0]), WARM_UP_SECONDS[1])
        with load.running():
            time.sleep(warm_up)
        _work_off(site)
        before = usage.look(site)
        with load.running():
            _storm(site, prober, account, random.Random(seed), time.monotonic() + seconds - warm_up, tell)
    tell("everything is healed: waiting until all is done")
    _settle(site)
    tell("reckoning")
    ledger.violations += usage.leaks(before, usage.look(site))
    ledger.violations += checks.broken_promises(ledger, site.service)
    return account


def conclude(site: Site, ledger: Ledger) -> None:
    """Every process ends as it is told to, and has told of no bug."""
    for member in site.members:
        site.end(member)
    ledger.violations += checks.bugs_told(site)


def _clients(site: Site, ledger: Ledger, seed: str) -> Iterator[Client]:
    """The first one is alone in waiting for what recovers."""
    commons: deque[Pictured] = deque(maxlen=20)
    for number in range(CLIENTS + 1):
        key = site.service.new_key("admin")
        yield Client(f"client-{number}", key, site.broker_urls, ledger, seed, commons)


def _storm(site: Site, prober: Client, account: Account, dice: random.Random, until: float, tell: Tell) -> None:
    """Every fault has come as often as is its share before one comes again."""
    began = time.monotonic()
    faults = [fault for fault in faults_of(site) for _ in range(fault.share)]
    deck: list[Fault] = []
    while time.monotonic() < until:
        deck = deck or dice.sample(faults, len(faults))
        first = deck.pop()
        others = [
            fault for fault in deck if EVERYTHING not in (fault.hurts, first.hurts) and fault.hurts != first.hurts
        ]
        second = dice.choice(others) if others and dice.random() < OFTEN else None
        if second:
            deck.remove(second)
        names = [fault.name for fault in (first, second) if fault]
        site.excused = True
        _bring(site, dice, first, second)
        ended = prober.first_ended(RECOVERY_SECONDS)
        _await_all(site, account.ledger, " and ".join(names))
        site.excused = False
        account.brought.update(names)
        if ended is None:
            account.ledger.broken("stuck", f"{RECOVERY_SECONDS:g} s after {' and '.join(names)}, no new job has ended")
        else:
            account.recoveries.setdefault(TWO_AT_ONCE if second else first.name, []).append(ended)
        recovered = "not recovered" if ended is None else f"recovered in {ended:.2f} s"
        tell(
            f"{time.monotonic() - began:5.0f} s  {' and '.join(names)}: {recovered};"
            f" {account.ledger.requests} requests, {account.ledger.acknowledged} acknowledged,"
            f" {len(account.ledger.violations)} violations"
        )
        time.sleep(dice.uniform(*CALM_SECONDS))


def _bring(site: Site, dice: random.Random, first: Fault, second: Fault | None) -> None:
    with first.bring(site, dice):
        if second is None:
            time.sleep(dice.uniform(*first.seconds))
            return
        time.sleep(dice.uniform(*first.seconds) / 2)
        with second.bring(site, dice):
            time.sleep(dice.uniform(*second.seconds))


def _await_all(site: Site, ledger: Ledger, fault: str) -> None:
    """Every process answers again."""
    for member in site.members:
        if not holds_at_last(lambda member=member: site.is_up(member), UP_SECONDS):  # type: ignore[misc]
            ledger.broken("stuck", f"{member.part.name} does not answer {UP_SECONDS:g} s after {fault}")


def _settle(site: Site) -> None:
    """Nothing is left to do or to clear away, and the time of every file that was shortened is over. What never
    settles is for the reckoning to tell."""
    time.sleep(max(SOON_SECONDS))
    _work_off(site)
    # Bytes that only a task referred to are looked at again after a minute.
    holds_at_last(lambda: not checks.left_over(site.service), QUIET_SECONDS)


def _work_off(site: Site) -> None:
    """Every job has ended, and no message is left."""

    def worked_off() -> bool:
        [(work,)] = site.service.ask(
            "SELECT EXISTS (SELECT FROM wharf.jobs WHERE state = 'open') OR EXISTS (SELECT FROM wharf.released)"
            " OR EXISTS (SELECT FROM wharf.tasks WHERE ended_at IS NULL)"
        )
        return not work and site.messages() == 0

    holds_at_last(worked_off, QUIET_SECONDS)
