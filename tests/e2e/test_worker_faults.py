"""Pictures that crash or hang, workers that are killed, stopped or paused: every job ends, and only the guilty pay."""

import io
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

import starter_model
from tests.e2e import boxes
from tests.e2e.conftest import HAZARD
from tests.e2e.service import Part, Service, Strict, alive, family, start_worker, until
from tests.support.engines import CRASHING, HANGING, RAISING, SLUGGISH

WAIT = {"Prefer": "wait=30"}
LOAD = 150


@pytest.fixture
def http(strict: Strict) -> Iterator[httpx.Client]:
    with strict.service.client(strict.service.new_key()) as client:
        yield client


@pytest.fixture
def worker(strict: Strict) -> Iterator[Strict]:
    """The worker may be killed in the test: afterwards it runs again."""
    yield strict
    if strict.worker.process is None or strict.worker.process.poll() is not None:
        start_worker(strict.worker)


@pytest.mark.parametrize(
    ("colour", "code", "attempts"),
    [
        (CRASHING, "worker_crashed", 2),
        (HANGING, "time_limit_exceeded", 2),
        (RAISING, "inference_failed", 1),
    ],
    ids=["crashing", "hanging", "raising"],
)
def test_a_poisonous_picture_fails_alone(
    strict: Strict, http: httpx.Client, page: bytes, colour: tuple[int, int, int], code: str, attempts: int
) -> None:
    pictures = [page, plain(colour), page + b"neighbour"]
    job = http.post("/v1/predict", files=[("image", picture) for picture in pictures]).json()
    with strict.service.client(strict.service.new_key()) as another:
        innocent = another.post("/v1/predict", files={"image": page}, headers=WAIT).json()
    job = http.get(f"/v1/jobs/{job['id']}", headers=WAIT).json()
    assert (job["state"], job["progress"]) == ("failed", {"done": 2, "failed": 1, "total": 3})
    first, guilty, last = job["results"]
    assert (guilty["state"], guilty["error"]["code"], guilty["attempts"]) == ("failed", code, attempts)
    assert guilty["detections"] is None
    for result in (first, last, *innocent["results"]):
        assert (result["state"], result["attempts"]) == ("succeeded", 1)
        boxes.assert_same(boxes.seen(result), boxes.digits())


def test_poison_in_every_slot_does_not_keep_others_waiting_for_ever(http: httpx.Client, page: bytes) -> None:
    poison = http.post("/v1/predict", files=[("image", plain(CRASHING, size)) for size in (41, 42, 43)]).json()
    good = http.post("/v1/predict", files={"image": page}, headers=WAIT).json()
    assert good["state"] == "succeeded"
    ended = http.get(f"/v1/jobs/{poison['id']}", headers=WAIT).json()
    assert ended["progress"] == {"done": 0, "failed": 3, "total": 3}


def test_a_worker_killed_in_the_middle_of_its_tasks_finishes_them_after_its_restart(
    worker: Strict, http: httpx.Client, page: bytes
) -> None:
    job = submit_load(http, page)
    until(lambda: done(worker.service, job) >= 10, "the job is under way")
    processes = family(worker.worker.pid)
    worker.worker.send(signal.SIGKILL)
    assert worker.worker.ended() == -signal.SIGKILL
    until(lambda: not alive(processes), "its slots have ended with it")
    assert 10 <= done(worker.service, job) < LOAD
    held = running(worker.service, job)
    said = worker.worker.log.stat().st_size
    start_worker(worker.worker)
    until(lambda: events(worker.worker, "worker_ready", said), "it says what it found")
    [ready] = events(worker.worker, "worker_ready", said)
    assert ready["released"] == len(held)  # at once, not when their leases end
    results = finished(http, job)
    assert {result["input"] for result in results if result["attempts"] > 1} == held
    assert_stored_once(worker.service, job)


def test_a_slot_that_is_killed_costs_its_picture_one_attempt(worker: Strict, http: httpx.Client, page: bytes) -> None:
    job = submit_load(http, page)
    until(lambda: done(worker.service, job) >= 10, "the job is under way")
    slot = psutil.Process(worker.worker.pid).children()[0]
    slot.kill()
    results = finished(http, job)
    assert sum(result["attempts"] > 1 for result in results) <= 1
    assert_stored_once(worker.service, job)


def test_a_worker_asked_to_stop_finishes_gives_back_and_ends_well(
    worker: Strict, http: httpx.Client, page: bytes
) -> None:
    job = submit_load(http, page)
    until(lambda: done(worker.service, job) >= 10, "the job is under way")
    processes = family(worker.worker.pid)
    worker.worker.send(signal.SIGTERM)
    assert worker.worker.ended() == 0
    assert not alive(processes)
    assert 10 <= done(worker.service, job) < LOAD
    assert running(worker.service, job) == set()
    assert worker.service.ask("SELECT name FROM wharf.workers WHERE name = 'hazard'") == []
    start_worker(worker.worker)
    assert {result["attempts"] for result in finished(http, job)} == {1}
    assert_stored_once(worker.service, job)


def test_probes_tell_an_engine_that_hangs_from_one_that_is_slow(strict: Strict, tmp_path: Path) -> None:
    """Neither is the worker's fault: the slow one ends, the hung one is replaced, and nobody restarts the worker. Only
    a worker that answers no more is for the cluster to restart."""
    model = tmp_path / "sluggish.onnx"
    model.write_bytes(starter_model.MODEL.read_bytes())
    settings = {"WHARF_MODEL": str(model), "WHARF_SLOTS": "1", "WHARF_TASK_SECONDS": "4", "WHARF_MAX_ATTEMPTS": "1"}
    worker = strict.installation.worker("sluggish", **HAZARD | settings)
    start_worker(worker)
    probes = httpx.Client(
        base_url=f"http://127.0.0.1:{worker.environment['WHARF_HEALTH_PORT']}", timeout=5, trust_env=False
    )
    try:
        with strict.service.client(strict.service.new_key()) as http, probes:
            pictures = [plain(SLUGGISH, 41), plain(HANGING), plain(SLUGGISH, 42)]
            files = [("image", picture) for picture in pictures]
            answer = http.post("/v1/predict", files=files, data={"model": "sluggish"})
            job = answer.raise_for_status().json()
            seen = []
            while not (ended := http.get(f"/v1/jobs/{job['id']}").json())["finished_at"]:
                seen.append(probes.get("/livez").status_code)
                time.sleep(0.1)
            assert set(seen) == {200}
            ends = [(result["state"], (result["error"] or {}).get("code")) for result in ended["results"]]
            good = ("succeeded", None)
            assert ends == [good, ("failed", "time_limit_exceeded"), good]
            assert {result["attempts"] for result in ended["results"]} == {1}
            worker.send(signal.SIGSTOP)
            with pytest.raises(httpx.TimeoutException):
                probes.get("/livez", timeout=1)
    finally:
        worker.send(signal.SIGKILL)
        worker.ended()


def test_a_paused_worker_loses_its_tasks_to_another_and_changes_nothing_when_it_wakes(
    worker: Strict, http: httpx.Client, page: bytes
) -> None:
    other = worker.installation.worker("other", **HAZARD)
    start_worker(other)
    try:
        job = submit_load(http, page)
        until(lambda: done(worker.service, job) >= 10, "the job is under way")
        worker.worker.send(signal.SIGSTOP)
        held = {number for number, name in workers_of(worker.service, job).items() if name == "hazard"}
        assert held
        results = finished(http, job)
        assert {result["input"] for result in results if result["attempts"] > 1} == held
        said = worker.worker.log.stat().st_size
        worker.worker.send(signal.SIGCONT)
        # Its slots answered long ago: it comes to write those answers down and finds that they are void.
        until(lambda: '"void"' in worker.worker.log.read_text()[said:], "the late ends")
        assert finished(http, job) == results
        assert_stored_once(worker.service, job)
    finally:
        worker.worker.send(signal.SIGCONT)
        other.stop()


def test_a_job_cancelled_under_way_keeps_what_was_found_and_frees_the_slots(
    strict: Strict, http: httpx.Client, page: bytes
) -> None:
    job = submit_load(http, page)
    until(lambda: done(strict.service, job) >= 10, "the job is under way")
    cancelled = http.post(f"/v1/jobs/{job}/cancel").json()
    assert cancelled["state"] == "cancelled"
    found = cancelled["progress"]["done"]
    assert 10 <= found < LOAD
    states = [result["state"] for result in all_results(http, job)]
    assert (states.count("succeeded"), states.count("cancelled")) == (found, LOAD - found)
    after = http.post("/v1/predict", files={"image": page}, headers=WAIT).json()
    assert after["state"] == "succeeded"
    assert http.get(f"/v1/jobs/{job}").json() == cancelled


def events(part: Part, name: str, begin: int) -> list[dict[str, Any]]:
    """What it logged under this name from this byte of its log on."""
    lines = (line for line in part.log.read_bytes()[begin:].decode().splitlines() if line.endswith("}"))
    return [event for event in map(json.loads, lines) if event["event"] == name]


def plain(colour: tuple[int, int, int], size: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, 40), colour).save(file, "PNG")
    return file.getvalue()


def submit_load(http: httpx.Client, page: bytes) -> str:
    """A job that takes a second or two."""
    [file] = http.post("/v1/files", content=page).json()["items"]
    answer = http.post("/v1/jobs", json={"inputs": [{"sha256": file["sha256"]}] * LOAD})
    assert answer.status_code == 202
    return str(answer.json()["id"])


def done(service: Service, job: str) -> int:
    [(count,)] = service.ask("SELECT count(*) FROM wharf.tasks WHERE job_id = %s AND state = 'succeeded'", job)
    return int(str(count))


def running(service: Service, job: str) -> set[int]:
    return set(workers_of(service, job))


def workers_of(service: Service, job: str) -> dict[int, str]:
    rows = service.ask("SELECT input, worker FROM wharf.tasks WHERE job_id = %s AND state = 'running'", job)
    return {int(str(number)): str(worker) for number, worker in rows}


def finished(http: httpx.Client, job: str) -> list[dict[str, Any]]:
    ended = http.get(f"/v1/jobs/{job}", headers=WAIT).json()
    assert (ended["state"], ended["progress"]) == ("succeeded", {"done": LOAD, "failed": 0, "total": LOAD})
    return all_results(http, job)


def all_results(http: httpx.Client, job: str) -> list[dict[str, Any]]:
    return list(http.get(f"/v1/jobs/{job}/results", params={"limit": LOAD}).json()["items"])


def assert_stored_once(service: Service, job: str) -> None:
    [(results, tasks)] = service.ask(
        """
        SELECT count(*), count(DISTINCT r.task_id) FROM wharf.results r JOIN wharf.tasks t ON t.id = r.task_id
        WHERE t.job_id = %s AND r.attempt = t.attempt
        """,
        job,
    )
    assert results == tasks == LOAD
