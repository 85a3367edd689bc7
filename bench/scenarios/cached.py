"""Answers that are known: a job on a picture that was inferred before, its row written and its boxes in the answer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import starter_model
from bench.fleet import Fleet, fleet
from bench.jobs import Inputs, upload
from bench.load import measured
from bench.null_engine import FINDING_ENGINE
from bench.pictures import tiny
from bench.request import WAIT_SECONDS, Request
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario, program

CONNECTIONS = 4
WARM_UP = 500
KNOWN = '"cached":true'


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    program("wrk")
    settings = {"WHARF_SLOTS": "1", "WHARF_ENGINE": FINDING_ENGINE}
    with fleet("embedded", folder / "embedded", starter_model.MODEL, settings) as started:
        inputs = upload(started, [tiny()])
        with started.service.client() as client:
            client.post("/v1/jobs", json={"inputs": inputs}, headers={"Prefer": "wait=60"}).raise_for_status()
            job = client.post("/v1/jobs", json={"inputs": inputs}, headers={"Prefer": "wait=60"}).raise_for_status()
        read = Request(f"/v1/jobs/{job.json()['id']}", b"", words=KNOWN, method="GET", headers=_key(started))
        for request in (submission(started, inputs), read):
            measured(started, request, WARM_UP, CONNECTIONS)
        yield Contest(
            [Contender(f"a known picture, c={CONNECTIONS}", partial(_ask, started, submission(started, inputs), size))],
            Contender(f"GET of such a job, c={CONNECTIONS}", partial(_ask, started, read, size)),
        )


def submission(fleet: Fleet, inputs: Inputs) -> Request:
    """`POST /v1/jobs` on inputs whose answers are known."""
    headers = {**_key(fleet), "Content-Type": "application/json", "Prefer": f"wait={WAIT_SECONDS}"}
    return Request("/v1/jobs", json.dumps({"inputs": inputs}).encode(), words=KNOWN, headers=headers)


def _ask(fleet: Fleet, request: Request, size: int) -> Window:
    return measured(fleet, request, size, CONNECTIONS)


def _key(fleet: Fleet) -> dict[str, str]:
    return {"Authorization": f"Bearer {fleet.service.key}"}


SCENARIO = Scenario(
    "g", "Jobs whose answer is known, by HTTP, against reading such a job again", "answers", size=10_000, open=_open
)
