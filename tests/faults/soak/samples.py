"""What everything holds, looked at while the load goes on, and what of it grows."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import linear_regression

import psutil

from tests.e2e.service import family
from tests.faults.chaos import usage
from tests.faults.chaos.site import Site

BYTES_PER_REQUEST = 64
"""What is kept for good for every request takes more: an entry of a dict with a key of its own has over 100 bytes."""
LEAST_BYTES = 8 << 20
"""Of growth in one process: less is the allocator's, whose heaps grow by pages and arenas, and says nothing."""
LEAST_DESCRIPTORS = 12
LEAST_THREADS = 4
LEAST_SESSIONS = 6
LEAST_CONNECTIONS = 1
"""What a pool or the moment makes of these: a leak of one in 1,000 requests is more in any run that is worth it."""

MORE_TABLES = ("suspects", "tenants", "api_keys", "audit", "audit_objects", "cleanup_runs")
"""Of which all but the first keep what they have: receipts for 30 days at least, runs for 90."""


@dataclass(frozen=True)
class Sample:
    """After so many requests. `postgres_bytes`: of all its processes, what each has for itself; `rows`: by table;
    `volume_files`, `volume_bytes`: in its tree."""

    requests: int
    seconds: float
    moment: usage.Moment
    postgres_bytes: int
    rabbitmq_bytes: int
    rows: Mapping[str, int]
    database_bytes: int
    volume_files: int
    volume_bytes: int

    def measures(self) -> Iterator[tuple[str, float, float]]:
        """Name, value, and how much growth through the second half of a run says nothing."""
        for name, held in self.moment.usages.items():
            yield f"{name}: bytes", held.resident_bytes, LEAST_BYTES
            yield f"{name}: descriptors", held.descriptors, LEAST_DESCRIPTORS
            yield f"{name}: threads", held.threads, LEAST_THREADS
            yield f"{name}: children", held.children, LEAST_CONNECTIONS
        yield "PostgreSQL: bytes", self.postgres_bytes, 4 * LEAST_BYTES
        yield "PostgreSQL: sessions", sum(self.moment.sessions.values()), LEAST_SESSIONS
        yield "RabbitMQ: connections", self.moment.connections, LEAST_CONNECTIONS
        yield "RabbitMQ: channels", self.moment.channels, LEAST_CONNECTIONS


def take(site: Site, requests: int, began: float) -> Sample:
    seconds = time.monotonic() - began
    [(database_bytes,)] = site.service.ask("SELECT pg_database_size('wharf')")
    counts = ", ".join(f"(SELECT count(*) FROM wharf.{table})" for table in MORE_TABLES)
    [row] = site.service.ask(f"SELECT {counts}")
    more = {table: int(str(count)) for table, count in zip(MORE_TABLES, row, strict=True)}
    files, volume_bytes = tree(site)
    return Sample(
        requests,
        seconds,
        usage.look(site),
        sum(own_bytes(process) for process in family(site.postmaster)),
        site.node.memory_bytes(),
        site.service.rows() | more,
        int(str(database_bytes)),
        files,
        volume_bytes,
    )


def own_bytes(process: psutil.Process) -> int:
    """What it shares with nobody: Postgres' shared memory is resident in each of its processes. 0 once it has ended, as
    a look's own session does."""
    try:
        return int(process.memory_full_info().uss)
    except psutil.NoSuchProcess:
        return 0


def line(sample: Sample, before: Sample | None) -> str:
    then = (before.requests, before.seconds) if before else (0, 0.0)
    rate = (sample.requests - then[0]) / max(sample.seconds - then[1], 0.001)
    processes = "; ".join(
        f"{name} {held.resident_bytes / 2**20:.1f} MiB {held.descriptors} fds {held.threads} threads"
        for name, held in sorted(sample.moment.usages.items())
    )
    moment = sample.moment
    sessions = " ".join(f"{role.removeprefix('wharf_')} {count}" for role, count in sorted(moment.sessions.items()))
    rows = " ".join(f"{table} {count:,}" for table, count in sample.rows.items())
    return (
        f"{sample.requests:,} requests, {sample.seconds:.0f} s, {rate:.0f}/s\n"
        f"    {processes}\n"
        f"    PostgreSQL {sample.postgres_bytes / 2**20:.1f} MiB, sessions: {sessions}; "
        f"RabbitMQ {sample.rabbitmq_bytes / 2**20:.0f} MiB, {moment.connections} connections, {moment.channels} "
        f"channels, {moment.messages} messages\n"
        f"    rows: {rows}; database {sample.database_bytes / 2**20:.0f} MiB; "
        f"volume {sample.volume_files:,} files, {sample.volume_bytes / 2**20:.1f} MiB"
    )


@dataclass(frozen=True)
class Growth:
    """By a line through the second half of the samples: `per_million` requests, and what is `allowed` of it."""

    name: str
    last: float
    per_million: float
    allowed: float

    @property
    def is_leak(self) -> bool:
        return self.per_million > self.allowed


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """The first half is the warm-up: pools, caches and heaps get as large as the load makes them."""
    half = samples[len(samples) // 2 :]
    requests = [sample.requests for sample in half]
    span = (requests[-1] - requests[0]) / 1e6
    series: dict[str, list[tuple[float, float]]] = {}
    for sample in half:
        for name, value, least in sample.measures():
            series.setdefault(name, []).append((value, least))
    found = []
    for name, pairs in series.items():
        slope = linear_regression([each / 1e6 for each in requests], [value for value, _ in pairs]).slope
        least = pairs[-1][1] / span
        allowed = max(BYTES_PER_REQUEST * 1e6, least) if name.endswith(": bytes") else least
        found.append(Growth(name, pairs[-1][0], slope, allowed))
    return found


def tree(site: Site) -> tuple[int, int]:
    """Files of uploads, kept and in progress, and their bytes."""
    files = size = 0
    folders = (os.walk(site.service.volume / name) for name in ("blobs", "staging", "dropped"))
    for folder, _, names in chain.from_iterable(folders):
        for name in names:
            try:
                size += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118 - tens of thousands
            except FileNotFoundError:
                continue
            files += 1
    return files, size
