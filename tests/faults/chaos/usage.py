"""What the processes hold, compared between two quiet moments: what has grown by more than a pool may is a leak."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from tests.e2e.service import family
from tests.faults.chaos.ledger import Violation
from tests.faults.chaos.site import EACH, Member, Site

MORE_BYTES = 64 << 20
MORE_DESCRIPTORS = 32
MORE_THREADS = 24
"""Of one process: what its pools may have lacked at the first look, for they make what they need when they need it."""

MORE_SESSIONS = EACH * 10
"""With PostgreSQL, of one role: likewise."""

MORE_CONNECTIONS = EACH
"""With RabbitMQ, and as many channels."""


SILENT_SECONDS = 5
"""Whoever has a transaction open and says nothing for longer has forgotten it."""


@dataclass(frozen=True)
class Usage:
    """Of a process and its children. `forlorn`: descriptors of removed files, and of connections that the other side
    has closed, of which there should be none; but a pool finds out about its sessions when it next wants them."""

    resident_bytes: int
    descriptors: int
    threads: int
    children: int
    forlorn: tuple[str, ...]


@dataclass(frozen=True)
class Moment:
    """`usages`: by the name of the process; `sessions`: with PostgreSQL, by role; `in_transaction`: those of them that
    have forgotten a transaction; `connections`, `channels` and `messages`: of RabbitMQ."""

    usages: Mapping[str, Usage]
    sessions: Mapping[str, int]
    in_transaction: int
    connections: int
    channels: int
    messages: int


def look(site: Site) -> Moment:
    sessions = site.service.ask(
        "SELECT usename::text, count(*), count(*) FILTER ("
        "  WHERE state LIKE 'idle in transaction%%' AND state_change < now() - make_interval(secs => %s))"
        " FROM pg_stat_activity WHERE usename LIKE 'wharf%%' GROUP BY usename",
        SILENT_SECONDS,
    )
    return Moment(
        {member.part.name: _usage(member) for member in site.members},
        {str(role): int(str(count)) for role, count, _ in sessions},
        sum(int(str(count)) for _, _, count in sessions),
        len(site.node.ctl("list_connections", "name").splitlines()),
        len(site.node.ctl("list_channels", "name").splitlines()),
        site.messages(),
    )


def leaks(before: Moment, after: Moment) -> Iterator[Violation]:
    """A process that was restarted in between is held to what the former one had."""
    for name, now in after.usages.items():
        then = before.usages[name]
        for what, had, has, more in (
            ("bytes", then.resident_bytes, now.resident_bytes, MORE_BYTES),
            ("descriptors", then.descriptors, now.descriptors, MORE_DESCRIPTORS),
            ("threads", then.threads, now.threads, MORE_THREADS),
            ("children", then.children, now.children, 0),
        ):
            if has > had + more:
                yield Violation("leaked", f"{name} has {has:,} {what}, and had {had:,}")
        for descriptor in now.forlorn:
            yield Violation("leaked", f"{name} holds {descriptor}")
    for role, count in after.sessions.items():
        if count > before.sessions.get(role, 0) + MORE_SESSIONS:
            yield Violation("leaked", f"{role} has {count} sessions, and had {before.sessions.get(role, 0)}")
    if after.in_transaction:
        yield Violation("leaked", f"{after.in_transaction} sessions have forgotten a transaction")
    for what, had, has in (
        ("connections", before.connections, after.connections),
        ("channels", before.channels, after.channels),
    ):
        if has > had + MORE_CONNECTIONS:
            yield Violation("leaked", f"RabbitMQ has {has} {what}, and had {had}")
    if after.messages:
        yield Violation("left over", f"{after.messages} messages are in RabbitMQ, and nothing to do")


def _usage(member: Member) -> Usage:
    processes = family(member.part.pid)
    postgres = member.links.get("postgres")
    return Usage(
        sum(process.memory_info().rss for process in processes),
        sum(process.num_fds() for process in processes),
        sum(process.num_threads() for process in processes),
        len(processes) - 1,
        tuple(line for process in processes for line in _forlorn(process, postgres.port if postgres else None)),
    )


def _forlorn(process: psutil.Process, pooled_port: int | None) -> Iterator[str]:
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_CLOSE_WAIT and connection.raddr.port != pooled_port:
            yield f"a connection to {connection.raddr} that the other side has closed"
    for number in os.listdir(f"/proc/{process.pid}/fd"):  # noqa: PTH208 - names, not paths
        with suppress(OSError):
            target = os.readlink(f"/proc/{process.pid}/fd/{number}")  # noqa: PTH115 - not a path where it is a socket
            if target.endswith(" (deleted)") and "/volume/" in target:
                yield f"the removed file {target}"
