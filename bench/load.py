"""Clients in a closed loop: each sends its next request when it has the last one's answer.

wrk, with one thread: on the same cores as the service, a client has to cost little."""

import resource
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from bench.fleet import per_thing
from bench.pictures import NUMBER
from bench.request import Request
from bench.rounds import Window
from bench.scenario import program

SCRIPT = Path(__file__).with_name("wrk.lua")
LONGEST_SECONDS = 900
ANSWER_SECONDS = 60

_numbers = count(step=10_000_000)
"""The first of each loop: no picture is sent twice."""


class Served(Protocol):
    """What is measured: it answers at `url`; `cpu_seconds` tells what it has used so far, by role."""

    @property
    def url(self) -> str: ...

    def cpu_seconds(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Load:
    """`seconds`: from the first request to the last answer; `client_seconds`: CPU. The percentiles are an answer's, in
    seconds; those of more than one connection are wrk's, with what it adds for answers that took over twice the mean.
    """

    seconds: float
    p50: float
    p95: float
    p99: float
    client_seconds: float


def closed_loop(url: str, request: Request, requests: int, connections: int) -> Load:
    """Raises where one is not answered well."""
    wrk = program("wrk")
    before = _children_seconds()
    with tempfile.NamedTemporaryFile() as template:
        template.write(request.written(url))
        template.flush()
        loop = (template.name, NUMBER.decode(), next(_numbers), requests, connections, request.status, request.words)
        options = f"-t1 -c{connections} -d{LONGEST_SECONDS}s --timeout {ANSWER_SECONDS}s".split()
        done = subprocess.run(
            [wrk, *options, "-s", SCRIPT, url, "--", *map(str, loop)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise RuntimeError(f"{request.method} {request.path} was not answered as it should be:\n{done.stderr}")
    sent, answered, seconds, *percentiles = map(float, done.stdout.splitlines()[-1].split())
    if not sent == answered == requests:
        raise RuntimeError(f"{sent:.0f} of {requests} requests were sent and {answered:.0f} answered:\n{done.stdout}")
    p50, p95, p99 = (microseconds / 1e6 for microseconds in percentiles)
    return Load(seconds, p50, p95, p99, _children_seconds() - before)


def measured(served: Served, request: Request, requests: int, connections: int) -> Window:
    """A closed loop and what it cost: CPU of all that serves, without the client's."""
    before = served.cpu_seconds()
    load = closed_loop(served.url, request, requests, connections)
    cpu = per_thing(before, served.cpu_seconds(), requests)
    return Window(
        requests / load.seconds,
        {
            "p50 ms": load.p50 * 1000,
            "p95 ms": load.p95 * 1000,
            "p99 ms": load.p99 * 1000,
            **cpu_figures(cpu),
            "client ms": load.client_seconds / requests * 1000,
        },
    )


def cpu_figures(cpu: Mapping[str, float]) -> dict[str, float]:
    """Of seconds by role: the sum, and each role's own, in milliseconds."""
    return {
        "CPU ms": sum(cpu.values()) * 1000,
        **{f"{role} ms": seconds * 1000 for role, seconds in cpu.items()},
    }


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
