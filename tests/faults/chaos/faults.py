"""What is done to a site: each fault is brought as its context is entered, and ended as it is left."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import pika
from pika.exceptions import AMQPError

from tests.faults.chaos.site import Member, Site
from tests.faults.fleet import QUEUES
from tests.support.proxy import Proxy

MOMENT = (0.0, 2.0)
STOPPED = (7.0, 10.0)
"""Longer than a lease, and than RabbitMQ waits for a heartbeat."""
WHILE = (2.0, 6.0)

EVERYTHING = "everything"
DELAY_SECONDS = (0.05, 0.4)

Dice = random.Random


@dataclass(frozen=True)
class Fault:
    """`hurts`: what it works on; two at once work on two things. `seconds`: the least and the most that it lasts.
    `share`: how many times it comes in the time in which each of the others comes once."""

    name: str
    hurts: str
    seconds: tuple[float, float]
    bring: Callable[[Site, Dice], AbstractContextManager[None]]
    share: int = 1


def faults_of(site: Site) -> Sequence[Fault]:
    """All that can be done to it."""
    found = []
    for kind in dict.fromkeys(member.kind for member in site.members):
        found += [
            Fault(f"{kind} killed", kind, MOMENT, partial(_killed, kind=kind), share=3),
            Fault(f"{kind} stopped, goes on", kind, STOPPED, partial(_stopped, kind=kind)),
            Fault(f"{kind} restarted", kind, MOMENT, partial(_restarted, kind=kind)),
        ]
        for server in site.of(kind)[0].links:
            way = f"{kind} to {server}"
            found += [
                Fault(f"{way}: cut", way, WHILE, partial(_cut, kind=kind, server=server)),
                Fault(f"{way}: silent", way, STOPPED, partial(_silent, kind=kind, server=server)),
                Fault(f"{way}: slow", way, WHILE, partial(_slow, kind=kind, server=server)),
                Fault(f"{way}: half closed", way, WHILE, partial(_half_closed, kind=kind, server=server)),
            ]
    found += [
        Fault("slot killed", "worker", MOMENT, _slot_killed, share=2),
        Fault("everything killed", EVERYTHING, MOMENT, _everything_killed),
        Fault("postgres killed", "postgres", MOMENT, _postgres_killed, share=2),
        Fault("postgres stopped, goes on", "postgres", STOPPED, lambda site, dice: site.postgres_stopped()),
        Fault("postgres restarted", "postgres", MOMENT, _postgres_restarted),
        Fault("rabbitmq killed", "rabbitmq", MOMENT, _rabbitmq_killed),
        Fault("rabbitmq stopped, goes on", "rabbitmq", STOPPED, lambda site, dice: site.rabbitmq_stopped()),
        Fault("rabbitmq restarted", "rabbitmq", MOMENT, _rabbitmq_restarted),
        Fault("rabbitmq wiped", "rabbitmq", MOMENT, _rabbitmq_wiped),
        Fault("queue deleted", "rabbitmq", MOMENT, _queue_deleted),
    ]
    if site.volume_disk.allowed and site.postgres_disk.allowed:
        found.append(Fault("volume full", "volume", WHILE, _volume_full))
        found.append(Fault("postgres full", "postgres", WHILE, _postgres_full))
    return found


def _some(site: Site, dice: Dice, kind: str) -> list[Member]:
    """One of the kind, or now and then all of it."""
    members = site.of(kind)
    return members if dice.random() < 0.3 else [dice.choice(members)]


@contextmanager
def _killed(site: Site, dice: Dice, *, kind: str) -> Iterator[None]:
    members = _some(site, dice, kind)
    for member in members:
        site.kill(member)
    try:
        yield
    finally:
        for member in members:
            site.start(member)


@contextmanager
def _slot_killed(site: Site, dice: Dice) -> Iterator[None]:
    site.kill_slot(dice.choice(site.of("worker")))
    yield


@contextmanager
def _everything_killed(site: Site, dice: Dice) -> Iterator[None]:
    """As when the power goes; what comes back first finds nobody."""
    members = dice.sample(site.members, len(site.members))
    for member in members:
        site.kill(member)
    site.node.kill()
    site.kill_postgres()
    try:
        yield
    finally:
        servers = [site.start_postgres, site.node.start]
        dice.shuffle(servers)
        for member in members[::2]:
            site.start(member)
        for start in servers:
            start()
        for member in members[1::2]:
            site.start(member)


@contextmanager
def _stopped(site: Site, dice: Dice, *, kind: str) -> Iterator[None]:
    members = _some(site, dice, kind)
    for member in members:
        site.stop(member)
    try:
        yield
    finally:
        for member in members:
            site.go_on(member)


@contextmanager
def _restarted(site: Site, dice: Dice, *, kind: str) -> Iterator[None]:
    members = _some(site, dice, kind)
    for member in members:
        site.end(member)
    try:
        yield
    finally:
        for member in members:
            site.start(member)


@contextmanager
def _healed(site: Site, dice: Dice, kind: str, server: str) -> Iterator[list[Proxy]]:
    """The links of some of the kind to the server, to be broken; whole again afterwards."""
    links = [member.links[server] for member in _some(site, dice, kind)]
    try:
        yield links
    finally:
        for link in links:
            link.heal()


@contextmanager
def _cut(site: Site, dice: Dice, *, kind: str, server: str) -> Iterator[None]:
    with _healed(site, dice, kind, server) as links:
        for link in links:
            link.cut()
        yield


@contextmanager
def _silent(site: Site, dice: Dice, *, kind: str, server: str) -> Iterator[None]:
    with _healed(site, dice, kind, server) as links:
        for link in links:
            link.freeze()
        yield


@contextmanager
def _slow(site: Site, dice: Dice, *, kind: str, server: str) -> Iterator[None]:
    with _healed(site, dice, kind, server) as links:
        for link in links:
            link.delay(dice.uniform(*DELAY_SECONDS))
        yield


@contextmanager
def _half_closed(site: Site, dice: Dice, *, kind: str, server: str) -> Iterator[None]:
    with _healed(site, dice, kind, server) as links:
        for link in links:
            link.half_close(dice.choice(("up", "down")))
        yield


@contextmanager
def _postgres_killed(site: Site, dice: Dice) -> Iterator[None]:
    site.kill_postgres()
    try:
        yield
    finally:
        site.start_postgres()


@contextmanager
def _postgres_restarted(site: Site, dice: Dice) -> Iterator[None]:
    site.stop_postgres()
    try:
        yield
    finally:
        site.start_postgres()


@contextmanager
def _rabbitmq_killed(site: Site, dice: Dice) -> Iterator[None]:
    site.node.kill()
    try:
        yield
    finally:
        site.node.start()


@contextmanager
def _rabbitmq_restarted(site: Site, dice: Dice) -> Iterator[None]:
    site.node.stop()
    try:
        yield
    finally:
        site.node.start()


@contextmanager
def _rabbitmq_wiped(site: Site, dice: Dice) -> Iterator[None]:
    site.node.kill()
    site.node.wipe()
    try:
        yield
    finally:
        site.node.start()


@contextmanager
def _queue_deleted(site: Site, dice: Dice) -> Iterator[None]:
    try:
        with pika.BlockingConnection(pika.URLParameters(site.node.url())) as connection:
            connection.channel().queue_delete(dice.choice(QUEUES))
    except AMQPError:
        # A node that has just started has no leader for its queues yet.
        pass
    yield


@contextmanager
def _volume_full(site: Site, dice: Dice) -> Iterator[None]:
    # Sometimes a small picture still goes in, and a large one does not.
    with site.volume_disk.full(dice.choice((0, 30_000))):
        yield


@contextmanager
def _postgres_full(site: Site, dice: Dice) -> Iterator[None]:
    """It may give up: without room for its log it ends."""
    try:
        with site.postgres_disk.full(dice.choice((0, 1_000_000))):
            yield
    finally:
        site.revive_postgres()
