"""What a picture costs beside its inference: a job of stored inputs through an engine that only sleeps."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import httpx

import starter_model
from bench.bare_engine import BareEngine
from bench.fleet import IDLE_SECONDS, TRANSPORTS, Fleet, fleet, per_thing
from bench.null_engine import NULL_ENGINE
from bench.peers import ENGINES
from bench.pictures import distinct, tiny
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario
from custody.wire import JobState

STORED = 100
WARM_UP = 500
LONGEST_WINDOW_SECONDS = 600
WAIT = {"Prefer": "wait=60"}


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    pictures = list(islice(distinct(tiny()), STORED))
    files = folder / "pictures"
    files.mkdir()
    for number, picture in enumerate(pictures):
        (files / f"{number}.jpg").write_bytes(picture)
    with ExitStack() as stack:
        bare = stack.enter_context(BareEngine(NULL_ENGINE, starter_model.MODEL, files))
        contenders = []
        for transport in TRANSPORTS:
            settings = {"WHARF_SLOTS": str(ENGINES), "WHARF_ENGINE": NULL_ENGINE}
            started = stack.enter_context(fleet(transport, folder / transport, starter_model.MODEL, settings))
            client = stack.enter_context(started.service.client())
            inputs = [_upload(client, picture) for picture in pictures]
            _measure(started, client, inputs, WARM_UP)
            contenders.append(Contender(transport, partial(_measure, started, client, inputs, size)))
        yield Contest(contenders, Contender("bare null engine", partial(bare.measure, size)))


def _measure(fleet: Fleet, client: httpx.Client, inputs: list[dict[str, str]], size: int) -> Window:
    counted, cpu_before = fleet.counts(), fleet.cpu_seconds()
    seconds = _run(client, inputs, size)
    cpu = per_thing(cpu_before, fleet.cpu_seconds(), size)
    time.sleep(IDLE_SECONDS)
    asked = per_thing(counted, fleet.counts(), size)
    return Window(
        size / seconds,
        {
            "CPU ms": sum(cpu.values()) * 1000,
            **{f"{role} ms": seconds * 1000 for role, seconds in cpu.items()},
            **asked,
        },
    )


def _upload(client: httpx.Client, picture: bytes) -> dict[str, str]:
    answer = client.post("/v1/files", files={"file": ("tiny.jpg", picture, "image/jpeg")}).raise_for_status()
    [file] = answer.json()["items"]
    return {"sha256": str(file["sha256"])}


def _run(client: httpx.Client, inputs: list[dict[str, str]], size: int) -> float:
    """One job, to its end; the seconds that it took."""
    wanted = {"inputs": [inputs[number % len(inputs)] for number in range(size)]}
    began = time.perf_counter()
    job = client.post("/v1/jobs", json=wanted, headers=WAIT, timeout=90).raise_for_status().json()
    while not JobState(job["state"]).ended:
        if time.perf_counter() - began > LONGEST_WINDOW_SECONDS:
            raise RuntimeError(f"A job of {size} inputs has not ended in {LONGEST_WINDOW_SECONDS} s: {job}")
        job = client.get(f"/v1/jobs/{job['id']}", headers=WAIT, timeout=90).raise_for_status().json()
    if job["state"] != "succeeded":
        raise RuntimeError(f"A job has not succeeded: {job}")
    return time.perf_counter() - began


SCENARIO = Scenario(
    "d", "CPU of each process, SQL and AMQP for a picture that costs 1.5 ms of sleep", "images", size=5000, open=_open
)
