"""`python -m bench.batching [FOLDER]`: what the worker's policy of batches gives and costs on a device of known
latency, as FOLDER/batching.json and, where the pictures' environment can be made, batching.png.

Computed and not measured: the policy is the worker's own, the clock and the device are not.
"""

import heapq
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import quantiles

from bench.environment import UnavailableError, python_of
from bench.machine import ROOT
from inference_worker.batch_policy import BatchPolicy, Latency

FIXED_SECONDS = 0.004
EACH_SECONDS = 0.001
"""Of a batch, and of each picture in it: a small network on a mid-range GPU, assumed."""

DECODE_SECONDS = (0.003, 0.006)
"""Least and most, of a photo of 810 x 1080; see docs/benchmarks."""

POLICIES = [(1, 0.0), (4, 2.0), (8, 0.0), (8, 2.0), (8, 5.0), (16, 2.0), (32, 2.0)]
"""`max_batch`, `max_delay_ms`."""

LOADS = [25, 50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900]
"""Pictures a second that come, at random."""

PICTURES = 4_000


@dataclass(frozen=True)
class Picture:
    """Seconds: when it is known to come, and when the device could have it."""

    announced: float
    ready: float


@dataclass(frozen=True)
class Batch:
    """`places`: of its pictures among all."""

    start: float
    places: tuple[int, ...]


def affine(fixed_seconds: float, each_seconds: float) -> Latency:
    return lambda size: fixed_seconds + each_seconds * size


def schedule(pictures: Sequence[Picture], policy: BatchPolicy, latency: Latency) -> list[Batch]:
    """What batch goes when. `pictures`: in the order of `announced`. Each is expected as soon as it will be ready."""
    batches: list[Batch] = []
    order = sorted(range(len(pictures)), key=lambda place: pictures[place].ready)
    announced: list[float] = []  # When those are ready that are known and not ready.
    taken = known = 0
    now = free = 0.0
    while taken < len(order):
        first = pictures[order[taken]].ready
        now = max(now, first)
        waiting = taken
        while waiting < len(order) and pictures[order[waiting]].ready <= now:
            waiting += 1
        while known < len(pictures) and pictures[known].announced <= now:
            heapq.heappush(announced, pictures[known].ready)
            known += 1
        while announced and announced[0] <= now:
            heapq.heappop(announced)
        next_in = announced[0] - now if announced else None
        if policy.hold_seconds(waiting - taken, now - max(free, first), next_in, latency):
            now = announced[0]
            continue
        size = policy.size(waiting - taken, latency)
        batches.append(Batch(now, tuple(order[taken : taken + size])))
        taken += size
        free = now = now + latency(size)
    return batches


def look(policy: BatchPolicy, load: float) -> dict[str, float]:
    """Throughput, and the delay from decoded to answered, of pictures that come at random."""
    random = Random(load)  # noqa: S311 - the same for every policy
    now, pictures = 0.0, []
    for _ in range(PICTURES):
        now += random.expovariate(load)
        pictures.append(Picture(now, now + random.uniform(*DECODE_SECONDS)))
    latency = affine(FIXED_SECONDS, EACH_SECONDS)
    batches = schedule(pictures, policy, latency)
    delays = [
        batch.start + latency(len(batch.places)) - pictures[place].ready for batch in batches for place in batch.places
    ]
    cuts = quantiles(delays, n=20)
    return {
        "offered": load,
        "per second": PICTURES / (batches[-1].start + latency(len(batches[-1].places))),
        "p50 ms": cuts[9] * 1000,
        "p95 ms": cuts[18] * 1000,
        "mean batch": PICTURES / len(batches),
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "computed": True,
        "device": {"fixed ms": FIXED_SECONDS * 1000, "each ms": EACH_SECONDS * 1000},
        "decode ms": [each * 1000 for each in DECODE_SECONDS],
        "pictures": PICTURES,
        "policies": [
            {
                "max_batch": max_batch,
                "max_delay_ms": max_delay_ms,
                "loads": [look(BatchPolicy(max_batch, max_delay_ms / 1000), load) for load in LOADS],
            }
            for max_batch, max_delay_ms in POLICIES
        ],
    }
    file = folder / "batching.json"
    file.write_text(json.dumps(document, indent=2) + "\n")
    try:
        subprocess.run([python_of("charts"), "-m", "bench.batching_chart", file], check=True, cwd=ROOT)
    except UnavailableError as error:
        sys.stderr.write(f"There is no picture of it. {error}\n")


if __name__ == "__main__":
    main()
