"""Clients that write down every promise they are given, to hold the service to them after a fault."""

import hashlib
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.e2e import boxes
from tests.e2e.service import Service, until

CLIENTS = 4


@dataclass
class Ledger:
    """`files`: the SHA-256 of each acknowledged file by its id; `jobs`: the inputs of each acknowledged job by its id;
    `refusals`: status and code of every answer that was no promise; `broken`: connections that ended without an answer;
    `longest`: the seconds that the slowest request took."""

    key: str
    files: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    refusals: set[tuple[int, str]] = field(default_factory=set)
    broken: int = 0
    longest: float = 0.0

    @property
    def promises(self) -> int:
        return len(self.files) + len(self.jobs)

    def check(self, service: Service, wanted: Sequence[boxes.Seen] | None = None) -> None:
        """Every byte is there, every job ends well, nothing was done twice, nothing is left lying about. `wanted`: the
        boxes on every picture, where all have the same."""
        with service.client(self.key) as http:
            for file_id, sha256 in self.files.items():
                content = http.get(f"/v1/files/{file_id}/content")
                assert content.status_code == 200, content.text
                assert hashlib.sha256(content.content).hexdigest() == sha256
            for job_id, inputs in self.jobs.items():
                job = http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=60"}).json()
                assert (job["state"], job["progress"]["done"]) == ("succeeded", inputs), job
                assert [result["state"] for result in job["results"]] == ["succeeded"] * inputs
                for result in job["results"] if wanted is not None else ():
                    boxes.assert_same(boxes.seen(result), wanted)
        until(lambda: service.staged() == [], "staging is empty")
        [(succeeded, results)] = service.ask(
            "SELECT (SELECT count(*) FROM wharf.tasks WHERE state = 'succeeded'), (SELECT count(*) FROM wharf.results)"
        )
        assert succeeded == results
        for sha256_, state in service.ask("SELECT encode(sha256, 'hex'), state FROM wharf.blobs"):
            path = service.volume / "blobs" / "sha256" / str(sha256_)[:2] / str(sha256_)[2] / str(sha256_)
            assert state == "present"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256_


@contextmanager
def clients(service: Service, page: bytes, pause_seconds: float = 0.0) -> Iterator[Ledger]:
    """Uploads and predicts, then pauses, while the body runs, each client with pictures of its own; goes on after a
    refusal or a broken connection."""
    ledger = Ledger(service.new_key())
    over = threading.Event()
    threads = [
        threading.Thread(target=_send, args=(service, page, pause_seconds, ledger, over)) for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _send(service: Service, page: bytes, pause_seconds: float, ledger: Ledger, over: threading.Event) -> None:
    with service.client(ledger.key) as http:
        while not over.wait(pause_seconds):
            contents = [page + random.randbytes(100_000) for _ in range(2)]
            try:
                uploaded = http.post("/v1/files", content=contents[0])
                if uploaded.is_success:
                    ledger.files[uploaded.json()["items"][0]["id"]] = hashlib.sha256(contents[0]).hexdigest()
                else:
                    ledger.refusals.add((uploaded.status_code, uploaded.json()["code"]))
                accepted = http.post("/v1/predict", files=[("image", content) for content in contents])
                if accepted.is_success:
                    ledger.jobs[accepted.json()["id"]] = len(contents)
                else:
                    ledger.refusals.add((accepted.status_code, accepted.json()["code"]))
                ledger.longest = max(ledger.longest, *(each.elapsed.total_seconds() for each in (uploaded, accepted)))
            except httpx.TransportError:
                ledger.broken += 1
                over.wait(0.1)
