"""Pools that fill, pause and drain, jobs with a deadline, models that retire, and what /health tells of it all."""

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import httpx
import pytest
from PIL import Image

import starter_model
from custody.wire import Cluster, Health, HealthDetails, JobState, Pool, PoolState
from tests.e2e.conftest import HAZARD
from tests.e2e.problems import assert_problem
from tests.e2e.service import Service, Strict, start_worker, until
from tests.support.engines import HANGING
from wharfinger import Client

WAIT = {"Prefer": "wait=30"}
TENANT_LIMIT, POOL_LIMIT = 300, 350


@pytest.fixture
def service(strict: Strict) -> Service:
    return strict.service


@pytest.fixture
def admin(service: Service) -> Iterator[httpx.Client]:
    """Of the operator's tenant."""
    with service.client() as client:
        yield client


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A tenant of its own, of whom nothing waits afterwards."""
    yield from tenant_of(service)


@pytest.fixture
def another(service: Service) -> Iterator[httpx.Client]:
    yield from tenant_of(service)


@pytest.fixture
def unserved(service: Service) -> str:
    """A model that no worker serves."""
    name = f"m-{uuid4().hex}"
    service.ask(
        "INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)"
        " VALUES (%s, 1, sha256(%s), 'models/none', 'detect', '[]', 320, 320) RETURNING name",
        name,
        name.encode(),
    )
    return name


@pytest.fixture
def running(admin: httpx.Client) -> Iterator[None]:
    """The pool of the worker is resumed afterwards, whatever the test did to it."""
    yield
    admin.post("/v1/pools/digits/resume")


# Nobody there


def test_a_job_that_no_worker_serves_waits_and_says_so(http: httpx.Client, unserved: str, page: bytes) -> None:
    answer = predict(http, page, model=unserved)
    assert (answer.status_code, answer.json()["state"], answer.json()["ready_workers"]) == (202, "queued", 0)
    [listed] = http.get("/v1/jobs").json()["items"]
    assert listed["ready_workers"] == 0
    details = http.get("/health/detailed").json()
    assert details["status"] == "degraded"
    [warning] = [each for each in details["warnings"] if unserved in each]
    assert "1 input waits" in warning
    assert f"wharf worker --model {unserved}" in warning


def test_a_job_that_is_served_tells_by_how_many(http: httpx.Client, page: bytes) -> None:
    job = predict(http, hanging(), model="digits").json()
    assert job["ready_workers"] == 1
    assert http.post(f"/v1/jobs/{job['id']}/cancel").json()["ready_workers"] is None


# Deadlines


def test_a_job_that_has_not_ended_in_time_expires_and_wakes_those_who_wait(
    http: httpx.Client, unserved: str, page: bytes
) -> None:
    began = time.monotonic()
    job = predict(http, page, model=unserved, expires_in="1").json()
    assert (job["state"], job["expires_at"] > job["created_at"]) == ("queued", True)
    expired = http.get(f"/v1/jobs/{job['id']}", headers=WAIT).json()
    assert 1 <= time.monotonic() - began < 5
    assert (expired["state"], expired["progress"]) == ("expired", {"done": 0, "failed": 0, "total": 1})
    assert [result["state"] for result in expired["results"]] == ["cancelled"]
    assert [each["id"] for each in http.get("/v1/jobs?state=expired").json()["items"]] == [job["id"]]


def test_a_job_that_ends_in_time_does_not_expire(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", content=page).json()["items"]
    job = http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}], "expires_in": 30}, headers=WAIT).json()
    assert (job["state"], job["expires_at"] > job["finished_at"]) == ("succeeded", True)


def test_the_trace_of_a_request_is_kept_with_its_job(
    service: Service, http: httpx.Client, unserved: str, page: bytes
) -> None:
    given = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    answer = http.post("/v1/predict", files={"image": page}, data={"model": unserved}, headers=given)
    [(kept,)] = service.ask("SELECT traceparent FROM wharf.jobs WHERE id = %s", answer.json()["id"])
    assert kept == answer.headers["traceparent"]
    assert str(kept).split("-")[1] == given["traceparent"].split("-")[1]


# Backlogs


def test_a_full_backlog_refuses_with_a_time_to_come_back_and_keeps_nothing(
    service: Service, http: httpx.Client, another: httpx.Client, unserved: str, page: bytes
) -> None:
    inputs = [{"file": http.post("/v1/files", content=page).json()["items"][0]["id"]}]
    assert submit(http, inputs * (TENANT_LIMIT - 1), unserved).status_code == 202
    rows = service.rows()
    for _ in range(2):
        headers = {"Idempotency-Key": "k"}
        refused = http.post("/v1/predict", files=[("image", page)] * 2, data={"model": unserved}, headers=headers)
        assert_problem(refused, 429, "tenant_backlog_full")
        assert int(refused.headers["Retry-After"]) > 0
    assert_problem(submit(http, inputs * 2, unserved), 429, "tenant_backlog_full")
    assert (service.rows(), service.staged()) == (rows, [])
    # Another pool has its own room, and so has another tenant, up to what the pool takes of all.
    assert predict(http, page, model="digits", headers=WAIT).status_code == 200
    theirs = [{"file": another.post("/v1/files", content=page).json()["items"][0]["id"]}]
    refused = submit(another, theirs * (POOL_LIMIT - TENANT_LIMIT + 2), unserved)
    assert_problem(refused, 503, "pool_backlog_full")
    assert int(refused.headers["Retry-After"]) > 0
    assert submit(another, theirs * (POOL_LIMIT - TENANT_LIMIT), unserved).status_code == 202
    # The key was not used up by the refusals, and a replay is no submission.
    first = predict(http, page, model=unserved, headers={"Idempotency-Key": "k"})
    assert first.status_code == 202
    again = predict(http, page, model=unserved, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    counted = http.get("/metrics").text
    assert 'wharf_jobs_refused_total{reason="tenant_backlog_full"}' in counted
    assert 'wharf_jobs_refused_total{reason="pool_backlog_full"}' in counted


def test_what_is_cancelled_makes_room(http: httpx.Client, unserved: str, page: bytes) -> None:
    inputs = [{"file": http.post("/v1/files", content=page).json()["items"][0]["id"]}]
    job = submit(http, inputs * TENANT_LIMIT, unserved).json()
    assert submit(http, inputs, unserved).status_code == 429
    http.post(f"/v1/jobs/{job['id']}/cancel")
    until(lambda: submit(http, inputs, unserved).status_code == 202, "there is room again", seconds=3)


def test_a_job_larger_than_a_backlog_is_told_so_and_not_to_come_back(
    service: Service, http: httpx.Client, unserved: str, page: bytes
) -> None:
    inputs = [{"file": http.post("/v1/files", content=page).json()["items"][0]["id"]}]
    rows = service.rows()
    refused = submit(http, inputs * (TENANT_LIMIT + 1), unserved)
    assert_problem(refused, 413, "request_too_large", "inputs")
    assert str(TENANT_LIMIT) in refused.json()["detail"]
    assert "Retry-After" not in refused.headers
    assert service.rows() == rows


def test_a_hundred_submissions_at_once_do_not_pass_a_limit(
    service: Service, http: httpx.Client, unserved: str, page: bytes
) -> None:
    inputs = [{"file": http.post("/v1/files", content=page).json()["items"][0]["id"]}]
    assert submit(http, inputs * (TENANT_LIMIT - 40), unserved).status_code == 202
    with ThreadPoolExecutor(100) as threads:
        answers = list(threads.map(lambda _: predict(http, page, model=unserved), range(100)))
    statuses = [answer.status_code for answer in answers]
    accepted = statuses.count(202)
    assert statuses.count(429) == 100 - accepted
    assert 20 < accepted <= 40  # what commits while others count is counted twice for a moment
    assert service.staged() == []
    left = inputs * (40 - accepted)
    until(lambda: not left or submit(http, left, unserved).status_code == 202, "the last places are filled", seconds=5)
    assert submit(http, inputs, unserved).status_code == 429
    [(waiting,)] = service.ask("SELECT count(*) FROM wharf.tasks WHERE pool = %s AND state = 'queued'", unserved)
    assert waiting == TENANT_LIMIT


# Paused, drained, resumed


@pytest.mark.usefixtures("running")
def test_a_paused_pool_accepts_and_begins_nothing_until_it_is_resumed(
    admin: httpx.Client, http: httpx.Client, page: bytes
) -> None:
    assert admin.post("/v1/pools/digits/pause").json()["state"] == "paused"
    job = predict(http, page, model="digits", headers={"Prefer": "wait=1"}).json()
    assert job["state"] == "queued"
    assert any("wharf pools resume digits" in each for each in http.get("/health/detailed").json()["warnings"])
    began = time.monotonic()
    assert admin.post("/v1/pools/digits/resume").json()["state"] == "active"
    assert http.get(f"/v1/jobs/{job['id']}", headers=WAIT).json()["state"] == "succeeded"
    assert time.monotonic() - began < 4  # a lost notice would cost 5 s


@pytest.mark.usefixtures("running")
def test_a_draining_pool_works_off_what_waits_and_accepts_nothing(
    service: Service, admin: httpx.Client, http: httpx.Client, page: bytes
) -> None:
    admin.post("/v1/pools/digits/pause")
    job = predict(http, page, model="digits").json()
    assert admin.post("/v1/pools/digits/drain").json()["state"] == "draining"
    rows = service.rows()
    refused = predict(http, page + b"more", model="digits")
    assert_problem(refused, 503, "pool_draining", "model")
    assert int(refused.headers["Retry-After"]) > 0
    assert (service.rows(), service.staged()) == (rows, [])
    assert http.get(f"/v1/jobs/{job['id']}", headers=WAIT).json()["state"] == "succeeded"
    admin.post("/v1/pools/digits/resume")
    assert predict(http, page, model="digits").status_code == 202


def test_pools_tell_what_waits_and_who_works(http: httpx.Client, unserved: str, page: bytes) -> None:
    predict(http, page, model=unserved)
    found = {pool["name"]: pool for pool in http.get("/v1/pools").json()["items"]}
    assert set(found[unserved]) == set(Pool.model_fields)
    assert (found[unserved]["state"], found[unserved]["waiting"], found[unserved]["workers"]) == ("active", 1, [])
    [worker] = found["digits"]["workers"]
    assert (worker["name"], worker["model_version"], worker["release"]) == ("hazard", 1, version("wharfinger"))


def test_python_stops_pools_retires_models_and_sets_deadlines(service: Service, unserved: str, page: bytes) -> None:
    with Client(service.url, service.key) as client:
        assert client.pools.pause(unserved).state is PoolState.PAUSED
        assert client.pools.drain(unserved).state is PoolState.DRAINING
        assert client.pools.resume(unserved).state is PoolState.ACTIVE
        job = client.predict(page, model=unserved, expires_in=1)
        assert (job.state, job.ready_workers) == (JobState.EXPIRED, None)
        assert {pool.name for pool in client.pools.list()} >= {unserved, "digits"}
        assert [version.state for version in client.models.retire(unserved, 1).versions] == ["retired"]


# Retired


def test_a_retired_model_is_refused_for_new_jobs_and_keeps_those_that_wait(
    admin: httpx.Client, http: httpx.Client, unserved: str, page: bytes
) -> None:
    job = predict(http, page, model=unserved).json()
    assert_problem(admin.post(f"/v1/models/{unserved}/retire?version=2"), 404, "not_found")
    assert_problem(admin.post(f"/v1/models/{unserved}/retire?version=0"), 422, "invalid_request", "version")
    for _ in range(2):
        [version] = admin.post(f"/v1/models/{unserved}/retire").json()["versions"]
        assert version["state"] == "retired"
    assert_problem(predict(http, page, model=unserved), 422, "model_not_found", "model")
    assert http.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"


def test_a_worker_does_not_bring_a_retired_model_back(
    strict: Strict, admin: httpx.Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("retired") / f"r-{uuid4().hex}.onnx"
    file.write_bytes(starter_model.MODEL.read_bytes())
    worker = strict.installation.worker(file.stem, **{**HAZARD, "WHARF_MODEL": str(file), "WHARF_SLOTS": "1"})
    start_worker(worker)
    worker.stop()
    admin.post(f"/v1/models/{file.stem}/retire")
    worker.start()
    assert worker.ended() == 1
    assert f"Version 1 of {file.stem} is retired" in worker.output()
    [version] = admin.get(f"/v1/models/{file.stem}").json()["versions"]
    assert version["state"] == "retired"


# The cluster


def test_without_a_cluster_the_operator_sees_who_reports(
    service: Service, admin: httpx.Client, unserved: str, page: bytes
) -> None:
    with service.client(service.new_key()) as owner:
        job = predict(owner, page, model=unserved).json()
        seen = Cluster.model_validate(admin.get("/v1/cluster").json())
        owner.post(f"/v1/jobs/{job['id']}/cancel")
    assert (seen.source, seen.namespace) == ("heartbeats", None)
    assert "service account's token" in str(seen.notice)
    pools = {pool.name: pool for pool in seen.pools}
    assert (pools[unserved].waiting, pools[unserved].pods) == (1, [])
    assert [(pod.name, pod.seen_at is not None) for pod in pools["digits"].pods] == [("hazard", True)]


def test_another_tenants_admin_does_not_see_the_cluster(service: Service) -> None:
    with service.client(service.new_key("admin")) as stranger:
        assert_problem(stranger.get("/v1/cluster"), 403, "forbidden")


# Health


def test_health_needs_no_key_and_its_details_do(service: Service, http: httpx.Client) -> None:
    with httpx.Client(base_url=service.url, trust_env=False) as nobody:
        answer = nobody.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert set(answer.json()) == set(Health.model_fields)
        assert answer.json()["checks"] == nobody.get("/readyz").json()["checks"]
        assert_problem(nobody.get("/health/detailed"), 401, "unauthenticated")
    answer = http.get("/health/detailed")
    details = answer.json()
    assert answer.status_code == 200
    assert set(details) == set(HealthDetails.model_fields)
    assert details["status"] in ("ok", "degraded")
    assert details["database"]["version"][0].isdigit()
    assert 0 < details["database"]["latency_ms"] < 5000
    assert details["volume"]["free_bytes"] > 0
    assert details["relays"] == []  # workers take their tasks from the database themselves


def test_health_tells_no_tenant_of_anothers_name_or_jobs(
    service: Service, http: httpx.Client, unserved: str, page: bytes
) -> None:
    tenant = f"t-{uuid4().hex}"
    with service.client(service.new_key(tenant=tenant)) as owner:
        job = predict(owner, page, model=unserved).json()
        text = http.get("/health/detailed").text + http.get("/v1/pools").text
        assert unserved in text
        assert tenant not in text
        assert job["id"] not in text
        owner.post(f"/v1/jobs/{job['id']}/cancel")


def test_a_relay_that_reaches_no_queue_or_is_silent_is_a_warning(service: Service, http: httpx.Client) -> None:
    try:
        service.ask("INSERT INTO wharf.relays (name, fault) VALUES ('r1', 'connection refused') RETURNING name")
        details = http.get("/health/detailed").json()
        assert details["status"] == "degraded"
        assert "The relay r1 reaches no queue: connection refused" in details["warnings"]
        assert [(each["name"], each["living"]) for each in details["relays"]] == [("r1", True)]
        service.ask("UPDATE wharf.relays SET seen_at = now() - interval '31 seconds' RETURNING name")
        assert any("No relay lives" in each for each in http.get("/health/detailed").json()["warnings"])
    finally:
        service.ask("DELETE FROM wharf.relays RETURNING name")


def tenant_of(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.new_key()) as client:
        yield client
        while jobs := client.get("/v1/jobs?state=queued").json()["items"]:
            for job in jobs:
                client.post(f"/v1/jobs/{job['id']}/cancel")


def predict(http: httpx.Client, content: bytes, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    return http.post("/v1/predict", files={"image": content}, data=fields, headers=headers)


def submit(http: httpx.Client, inputs: list[dict[str, Any]], model: str) -> httpx.Response:
    return http.post("/v1/jobs", json={"model": model, "inputs": inputs})


def hanging() -> bytes:
    drawn = io.BytesIO()
    Image.new("RGB", (40, 40), HANGING).save(drawn, "PNG")
    return drawn.getvalue()
