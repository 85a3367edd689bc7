"""Clients as they should be: they send a request until it is answered, with the same Idempotency-Key, take the other
broker when one does not answer, and write down what they were promised."""

import hashlib
import io
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
from PIL import Image

from custody.errors import KINDS
from tests.faults.chaos.ledger import Deletion, KeptFile, Ledger, PromisedJob
from tests.support.engines import RAISING, fingerprint

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

CLIENTS = 8
PAUSE_SECONDS = 0.3
ANSWER_SECONDS = 10.0
"""A connection that is silent for longer is given up."""
ASK_AGAIN_SECONDS = 1.0
"""Less than `Retry-After` asks for: the load is to be there when a fault ends."""
GOODBYE_SECONDS = 90.0
"""What the last requests may take once nothing is broken any more."""

SOON_SECONDS = (1.0, 5.0)
"""After which a file goes whose time is shortened."""

ENDED = ("succeeded", "failed", "cancelled", "expired")


@dataclass(frozen=True)
class Pictured:
    """A picture that nobody else has, and what is to be found in it, as the wire has it."""

    content: bytes
    sha256: str
    fingerprint: dict[str, Any]


def new_picture(dice: random.Random) -> Pictured:
    """Noise: 7 KB, and one in 40 with 100 KB, which is decoded as it is."""
    side = 180 if dice.random() < 1 / 40 else 48
    return _pictured(_noise(dice, side))


def new_refused_picture(dice: random.Random) -> Pictured:
    """At which the engine raises."""
    return _pictured(_noise(dice, 48) // 16 + np.array(RAISING, dtype=np.uint8) // 16 * 15)


def _noise(dice: random.Random, side: int) -> Pixels:
    return np.frombuffer(dice.randbytes(side * side * 3), dtype=np.uint8).reshape(side, side, 3)


def _pictured(pixels: Pixels) -> Pictured:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG", compress_level=1)
    content = written.getvalue()
    return Pictured(content, hashlib.sha256(content).hexdigest(), fingerprint(pixels).model_dump(mode="json"))


class Client:
    """One tenant's, with files and jobs of its own. `brokers`: their URLs; `commons`: pictures that others have sent,
    which it sends as well now and then."""

    def __init__(
        self, name: str, key: str, brokers: Sequence[str], ledger: Ledger, seed: str, commons: deque[Pictured]
    ) -> None:
        self.name = name
        self._key = key
        self._brokers = brokers
        self._ledger = ledger
        self._dice = random.Random(f"{seed} {name}")
        self._commons = commons
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"}, timeout=ANSWER_SECONDS, trust_env=False, verify=False
        )
        self._turn = self._dice.randrange(len(brokers))
        self._operations = 0
        self._files: list[KeptFile] = []
        self._jobs: list[PromisedJob] = []
        self._once: deque[PromisedJob] = deque(maxlen=20)
        """Jobs on files that are never deleted, not rerun yet."""
        self._refused: deque[PromisedJob] = deque(maxlen=20)
        """Jobs whose last input the engine refuses, not rerun yet."""
        self._sent: deque[tuple[dict[str, Any], list[str]]] = deque(maxlen=20)
        self.closed = threading.Event()
        """Set: it gives up what is not answered."""

    def close(self) -> None:
        self._http.close()

    def work(self, over: threading.Event) -> None:
        """One operation after the other until `over`, of which none is left half done."""
        doings: Sequence[tuple[Callable[[], None], int]] = (
            (self.predict, 8),
            (self.upload, 5),
            (self.submit, 5),
            (self.delete, 4),
            (self.cancel, 2),
            (self.rerun, 2),
            (self.retry, 1),
            (self.fail, 2),
            (self.rerun_failed, 2),
            (self.purge, 2),
            (self.pin, 1),
            (self.shorten, 2),
            (self.send_again, 2),
            (self.look, 5),
        )
        weights = [weight for _, weight in doings]
        while not over.wait(self._dice.uniform(0, 2 * PAUSE_SECONDS)):
            [(doing, _)] = self._dice.choices(doings, weights)
            doing()

    def predict(self, wait_seconds: float = 0) -> None:
        pictures = [self._picture() for _ in range(self._dice.choice((1, 1, 1, 2, 3)))]
        request = self._predict(pictures, wait_seconds or self._dice.choice((0, 0, 3)))
        if answer := self._until_answered(**request):
            self._accepted(answer, request, pictures)

    def upload(self) -> None:
        pictures = [self._picture() for _ in range(self._dice.choice((1, 1, 2)))]
        self._files += self._upload(pictures)

    def _upload(self, pictures: Sequence[Pictured]) -> list[KeptFile]:
        """What was promised; nothing where it was not."""
        request: dict[str, Any] = {"method": "POST", "path": "/v1/files", "headers": self._operation()}
        if len(pictures) == 1 and self._dice.random() < 0.5:
            request["content"] = pictures[0].content
        else:
            request["files"] = [("file", (f"{p.sha256[:8]}.png", p.content)) for p in pictures]
        answer = self._until_answered(**request)
        if answer is None:
            return []
        if not answer.is_success:
            self._unexpected(answer, request)
            return []
        items = answer.json()["items"]
        if [item["sha256"] for item in items] != [picture.sha256 for picture in pictures]:
            self._ledger.broken("wrong", f"{self.name}: the answer to an upload names other bytes: {items}")
        files = [
            KeptFile(item["id"], picture.sha256, self._key, picture.fingerprint)
            for item, picture in zip(items, pictures, strict=True)
        ]
        self._ledger.promised(*files)
        self._sent.append((request, [file.id for file in files]))
        self._commons.extend(pictures)
        return files

    def submit(self) -> None:
        held = [file for file in self._files if file.deletion is Deletion.NONE]
        if not held:
            return
        self._submit([self._dice.choice(held) for _ in range(self._dice.choice((1, 2, 5)))])

    def _submit(self, inputs: Sequence[KeptFile]) -> PromisedJob | None:
        """None where it was not promised."""
        by_sha256 = self._dice.random() < 0.3
        headers = self._operation()
        body: dict[str, Any] = {
            "inputs": [{"sha256": file.sha256} if by_sha256 else {"file": file.id} for file in inputs],
            "metadata": {"operation": headers["Idempotency-Key"]},
            "priority": self._dice.choice(("interactive", "batch")),
        }
        if self._dice.random() < 0.1:
            body["expires_in"] = self._dice.uniform(0.05, 5)
        request: dict[str, Any] = {"method": "POST", "path": "/v1/jobs", "headers": headers, "json": body}
        answer = self._until_answered(**request)
        if answer is None:
            return None
        if not answer.is_success:
            self._unexpected(answer, request)
            return None
        fingerprints = [file.fingerprint for file in inputs]
        endings = ("succeeded", "expired") if "expires_in" in body else ("succeeded",)
        return self._promise_job(answer, request, fingerprints, endings=endings)

    def delete(self) -> None:
        held = [file for file in self._files if file.deletion is Deletion.NONE]
        if len(held) < 5:
            return
        file = self._dice.choice(held)
        file.deletion = Deletion.ASKED
        self._files.remove(file)
        answer = self._until_answered(method="DELETE", path=f"/v1/files/{file.id}", headers={})
        # 404: it was done, and the answer lost.
        if answer is not None and answer.status_code in (204, 404):
            file.deletion = Deletion.DONE
            self._ledger.promised()

    def purge(self) -> None:
        """A picture of its own, which others may have sent meanwhile, and its job, which may be anywhere by then."""
        for file in self._upload([new_picture(self._dice)]):
            job = self._submit([file])
            self.closed.wait(self._dice.choice((0, 0.3, 2)))
            file.deletion = Deletion.ASKED
            if job:
                job.purge = Deletion.ASKED
                job.endings.add("failed")
            answer = self._until_answered(method="DELETE", path=f"/v1/files/{file.id}?purge=true", headers={})
            if answer is None:
                return
            if answer.status_code != 200 or file.id not in answer.json()["file_ids"]:
                self._ledger.broken("wrong", f"file {file.id} cannot be purged: {answer.status_code} {answer.text}")
                return
            file.deletion = Deletion.PURGED
            self._ledger.promised()
            if job:
                job.purge = Deletion.PURGED
                self._stays_purged(job)

    def _stays_purged(self, job: PromisedJob) -> None:
        answer = self._until_answered(method="GET", path=f"/v1/jobs/{job.id}", headers={})
        if answer is not None and not (answer.is_success and answer.json()["results"][0]["purged_at"]):
            self._ledger.broken("wrong", f"job {job.id} after its purge: {answer.status_code} {answer.text}")
        answer = self._until_answered(method="POST", path=f"/v1/jobs/{job.id}/rerun", headers=self._operation())
        if answer is not None and answer.status_code != 410:
            self._ledger.broken("wrong", f"job {job.id} runs again after its purge: {answer.status_code} {answer.text}")

    def pin(self) -> None:
        """A file whose time is over soon. It stays, until it is deleted like any other."""
        held = [file for file in self._files if file.deletion is Deletion.NONE]
        if not held:
            return
        file = self._dice.choice(held)
        pinned = self._change(file, {"pinned": True})
        if pinned is None:
            return
        if not (pinned.is_success and pinned.json()["pinned"]):
            self._ledger.broken("lost", f"file {file.id} cannot be pinned: {pinned.status_code} {pinned.text}")
            return
        self._ledger.promised()
        self._change(file, self._soon())

    def shorten(self) -> None:
        """A file that nobody uses any more, and that goes by itself."""
        for file in self._upload([new_picture(self._dice)]):
            file.deletion = Deletion.ASKED
            answer = self._change(file, self._soon())
            # 404: it was done, the answer lost, and the file's time over.
            if answer is not None and (answer.is_success or answer.status_code == 404):
                file.deletion = Deletion.DATED
                self._ledger.promised()

    def _change(self, file: KeptFile, change: dict[str, Any]) -> httpx.Response | None:
        return self._until_answered(method="PATCH", path=f"/v1/files/{file.id}", headers={}, json=change)

    def _soon(self) -> dict[str, str]:
        """What comes too late, being sent again, is refused, and may have been done before."""
        return {"expires_at": (datetime.now(UTC) + timedelta(seconds=self._dice.uniform(*SOON_SECONDS))).isoformat()}

    def cancel(self) -> None:
        open_jobs = [job for job in self._jobs[-10:] if job.ended is None]
        if not open_jobs:
            return
        job = self._dice.choice(open_jobs)
        job.endings.add("cancelled")
        answer = self._until_answered(method="POST", path=f"/v1/jobs/{job.id}/cancel", headers={})
        if answer is None:
            return
        if not answer.is_success:
            self._ledger.broken("lost", f"job {job.id} cannot be cancelled: {answer.status_code} {answer.text}")
        elif answer.json()["state"] not in ENDED:
            self._ledger.broken("wrong", f"job {job.id} is cancelled and {answer.json()['state']}")
        else:
            self._saw(job, answer)
            self._ledger.promised()

    def rerun(self) -> None:
        ended = [job for job in self._once if job.ended]
        if not ended:
            return
        self._once.remove(ended[0])
        path = f"/v1/jobs/{ended[0].id}/rerun"
        request: dict[str, Any] = {"method": "POST", "path": path, "headers": self._operation()}
        answer = self._until_answered(**request)
        if answer is None:
            return
        if answer.is_success:
            self._promise_job(answer, request, ended[0].fingerprints, operation=ended[0].operation)
        else:
            self._unexpected(answer, request)

    def retry(self) -> None:
        """Nothing is run twice: of a job that succeeded there is nothing to run again."""
        ended = [job for job in self._jobs[-20:] if job.ended == "succeeded"]
        if not ended:
            return
        path = f"/v1/jobs/{self._dice.choice(ended).id}/rerun?only=failed"
        answer = self._until_answered(method="POST", path=path, headers=self._operation())
        if answer is not None and (answer.status_code, answer.json()["code"]) != (409, "nothing_to_rerun"):
            self._ledger.broken("wrong", f"{path}: {answer.status_code} {answer.text}")

    def fail(self) -> None:
        """A job with an input that succeeds and one that does not."""
        pictures = [self._picture(), new_refused_picture(self._dice)]
        request = self._predict(pictures, self._dice.choice((0, 3)))
        answer = self._until_answered(**request)
        if answer is None:
            return
        if answer.is_success:
            fingerprints = [picture.fingerprint for picture in pictures]
            self._refused.append(self._promise_job(answer, request, fingerprints, endings=("failed",)))
        else:
            self._unexpected(answer, request)

    def rerun_failed(self) -> None:
        """The input that failed, and it alone; by its job or, as an operator does it, by what failed how."""
        if not self._refused:
            return
        job = self._refused[0]
        if seen := self._until_answered(method="GET", path=f"/v1/jobs/{job.id}", headers={}):
            self._saw(job, seen)
        if job.ended is None:
            return
        self._refused.popleft()
        if job.ended == "failed":
            self._dice.choice((self._rerun_failed, self._retry_failed))(job)

    def _rerun_failed(self, job: PromisedJob) -> None:
        path = f"/v1/jobs/{job.id}/rerun?only=failed"
        request: dict[str, Any] = {"method": "POST", "path": path, "headers": self._operation()}
        answer = self._until_answered(**request)
        if answer is None:
            return
        if answer.is_success:
            self._promise_job(answer, request, job.fingerprints[-1:], operation=job.operation, endings=("failed",))
        else:
            self._unexpected(answer, request)

    def _retry_failed(self, job: PromisedJob) -> None:
        body = {"error_code": "inference_failed", "metadata": {"operation": job.operation}}
        request: dict[str, Any] = {"method": "POST", "path": "/v1/jobs/retry", "headers": self._operation()}
        answer = self._until_answered(**request, json=body)
        if answer is None:
            return
        if not answer.is_success:
            self._unexpected(answer, request)
            return
        retried = answer.json()["jobs"]
        if [(each["job"], each["failed"], each["error"]) for each in retried] != [(job.id, 1, None)]:
            self._ledger.broken("wrong", f"a retry of job {job.id}, one of whose inputs failed: {answer.text}")
            return
        rerun = PromisedJob(retried[0]["rerun"], self._key, job.operation, job.fingerprints[-1:], {"failed"})
        self._jobs.append(rerun)
        self._ledger.promised(rerun)

    def send_again(self) -> None:
        """What was acknowledged already, as if the answer had been lost: nothing is done twice."""
        if not self._sent:
            return None
        request, ids = self._dice.choice(self._sent)
        answer = self._until_answered(**request)
        if answer is None or answer.status_code == 410:
            return None
        if not answer.is_success:
            return self._unexpected(answer, request)
        again = [item["id"] for item in answer.json().get("items", [answer.json()])]
        if again != ids:
            key = request["headers"]["Idempotency-Key"]
            self._ledger.broken("duplicated", f"{self.name}: the key {key} stood for {ids}, and then for {again}")
        return None

    def look(self) -> None:
        """At something that was promised, while it may be anywhere between the promise and its end."""
        if self._jobs and self._dice.random() < 0.5:
            job = self._dice.choice(self._jobs[-20:])
            answer = self._until_answered(method="GET", path=f"/v1/jobs/{job.id}", headers={})
            if answer is not None and not answer.is_success:
                self._ledger.broken("lost", f"job {job.id}, once acknowledged: {answer.status_code} {answer.text}")
            elif answer is not None:
                self._saw(job, answer)
        elif self._files:
            file = self._dice.choice(self._files)
            answer = self._until_answered(method="GET", path=f"/v1/files/{file.id}/content", headers={})
            if answer is not None and hashlib.sha256(answer.content).hexdigest() != file.sha256:
                self._ledger.broken("lost", f"file {file.id}, once acknowledged: {answer.status_code}")

    def first_ended(self, most_seconds: float) -> float | None:
        """Seconds until the first job that is submitted from now on has ended; None where none does in that time.
        Nothing is sent again here: each try is a new job."""
        began = time.monotonic()
        open_jobs: list[PromisedJob] = []
        while time.monotonic() - began < most_seconds:
            pictures = [new_picture(self._dice)]
            request = self._predict(pictures, wait_seconds=2 if open_jobs else 1)
            answer = self._answered(**request)
            if answer is None:
                time.sleep(0.05)
            elif self._accepted(answer, request, pictures) and answer.is_success:
                open_jobs.append(self._jobs[-1])
            for job in open_jobs:
                if job.ended is None and (seen := self._answered("GET", f"/v1/jobs/{job.id}", {})) and seen.is_success:
                    self._saw(job, seen)
            if any(job.ended for job in open_jobs):
                return time.monotonic() - began
        return None

    def _predict(self, pictures: Sequence[Pictured], wait_seconds: float) -> dict[str, Any]:
        headers = self._operation()
        return {
            "method": "POST",
            "path": "/v1/predict",
            "headers": {**headers, **({"Prefer": f"wait={wait_seconds:g}"} if wait_seconds else {})},
            "files": [("image", (f"{picture.sha256[:8]}.png", picture.content)) for picture in pictures],
            "data": {"metadata": json.dumps({"operation": headers["Idempotency-Key"]})},
        }

    def _accepted(self, answer: httpx.Response, request: dict[str, Any], pictures: Sequence[Pictured]) -> bool:
        if not answer.is_success:
            self._unexpected(answer, request)
            return False
        self._promise_job(answer, request, [picture.fingerprint for picture in pictures])
        self._once.append(self._jobs[-1])
        return True

    def _promise_job(
        self,
        answer: httpx.Response,
        request: dict[str, Any],
        fingerprints: list[dict[str, Any]],
        *,
        operation: str | None = None,
        endings: Sequence[str] = ("succeeded",),
    ) -> PromisedJob:
        """`operation`: that of the job that this one reruns."""
        operation = operation or request["headers"]["Idempotency-Key"]
        job = PromisedJob(answer.json()["id"], self._key, operation, fingerprints, set(endings))
        self._saw(job, answer)
        self._jobs.append(job)
        self._ledger.promised(job)
        self._sent.append((request, [job.id]))
        return job

    def _saw(self, job: PromisedJob, answer: httpx.Response) -> None:
        state = answer.json()["state"]
        if job.ended not in (None, state):
            self._ledger.broken("wrong", f"job {job.id} was {job.ended}, and then {state}")
        if state in ENDED:
            job.ended = state

    def _picture(self) -> Pictured:
        if self._commons and self._dice.random() < 0.2:
            return self._dice.choice(list(self._commons))
        return new_picture(self._dice)

    def _operation(self) -> dict[str, str]:
        self._operations += 1
        return {"Idempotency-Key": f"{self.name}-{self._operations}"}

    def _until_answered(self, method: str, path: str, headers: dict[str, str], **body: Any) -> httpx.Response | None:
        """Sends it until the answer is one that waiting would not change. None: this client is closed."""
        while not self.closed.is_set():
            answer = self._answered(method, path, headers, **body)
            if answer is not None and not _may_succeed_later(answer):
                return answer
            asked = float(answer.headers.get("Retry-After", ASK_AGAIN_SECONDS)) if answer is not None else 0.1
            self.closed.wait(min(asked, ASK_AGAIN_SECONDS))
        return None

    def _answered(self, method: str, path: str, headers: dict[str, str], **body: Any) -> httpx.Response | None:
        """One try. None: the connection broke, or nothing came for `ANSWER_SECONDS`."""
        self._ledger.asked()
        try:
            answer = self._http.request(method, self._brokers[self._turn] + path, headers=headers, **body)
        except httpx.TransportError as error:
            self._ledger.refused(type(error).__name__)
            answer = None
        if answer is not None and not answer.is_success:
            code = str(answer.json()["code"])
            self._ledger.refused(f"{answer.status_code} {code}")
            if code == "internal_error":
                self._ledger.broken("harmed", f"{method} {path}: {answer.json()}")
        if answer is None or answer.status_code >= 500:
            self._turn = (self._turn + 1) % len(self._brokers)
        return answer

    def _unexpected(self, answer: httpx.Response, request: dict[str, Any]) -> None:
        """A good request, on what this client holds, that was refused for good."""
        if not _may_succeed_later(answer):
            named = f"{request['method']} {request['path']} ({request['headers']})"
            self._ledger.broken("wrong", f"{self.name}: {named} was refused: {answer.status_code} {answer.text}")


def _may_succeed_later(answer: httpx.Response) -> bool:
    return not answer.is_success and KINDS[answer.json()["code"]].retryable


class Load:
    """All clients at once."""

    def __init__(self, clients: Sequence[Client], ledger: Ledger) -> None:
        self._clients = clients
        self._ledger = ledger

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the body runs; by its end nothing is broken any more, and the clients get their last answers."""
        over = threading.Event()
        threads = [
            threading.Thread(target=self._work, args=(client, over), name=client.name, daemon=True)
            for client in self._clients
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            deadline = time.monotonic() + GOODBYE_SECONDS
            for thread in threads:
                thread.join(max(0, deadline - time.monotonic()))
            for client, thread in zip(self._clients, threads, strict=True):
                if thread.is_alive():
                    self._ledger.broken("stuck", f"{client.name} has no answer {GOODBYE_SECONDS:g} s after the end")
                    client.closed.set()
                    thread.join()

    def _work(self, client: Client, over: threading.Event) -> None:
        try:
            client.work(over)
        except Exception as error:  # noqa: BLE001 - told where the run is judged
            self._ledger.broken("harmed", f"{client.name} was answered what it did not understand: {error!r}")
