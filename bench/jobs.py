"""Files in custody, and one job over them."""

import time
from collections.abc import Iterable, Sequence

import httpx

from bench.fleet import Fleet
from custody.wire import JobState

LONGEST_SECONDS = 900
WAIT = {"Prefer": "wait=60"}

Inputs = Sequence[dict[str, str]]
"""As `POST /v1/jobs` takes them."""


def upload(fleet: Fleet, pictures: Iterable[bytes]) -> Inputs:
    with fleet.service.client() as client:
        return [{"sha256": _uploaded(client, picture)} for picture in pictures]


def run_job(fleet: Fleet, inputs: Inputs, size: int, *, cache: bool = False) -> float:
    """One job of `size` inputs, those that there are again and again, each of them inferred unless the `cache` may know
    it; from its submission until somebody who waits is told that it has succeeded, in seconds."""
    wanted = {"inputs": [inputs[number % len(inputs)] for number in range(size)], "cache": cache}
    with fleet.service.client() as client:
        began = time.perf_counter()
        job = client.post("/v1/jobs", json=wanted, headers=WAIT, timeout=90).raise_for_status().json()
        while not JobState(job["state"]).ended:
            if time.perf_counter() - began > LONGEST_SECONDS:
                raise RuntimeError(f"A job of {size} inputs has not ended in {LONGEST_SECONDS} s: {job}")
            job = client.get(f"/v1/jobs/{job['id']}", headers=WAIT, timeout=90).raise_for_status().json()
        seconds = time.perf_counter() - began
    if job["state"] != "succeeded":
        raise RuntimeError(f"A job has not succeeded: {job}")
    return seconds


def _uploaded(client: httpx.Client, picture: bytes) -> str:
    answer = client.post("/v1/files", content=picture, headers={"Content-Type": "image/jpeg"}).raise_for_status()
    [file] = answer.json()["items"]
    return str(file["sha256"])
