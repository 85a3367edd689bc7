"""/v1/jobs/{id}/rerun and /v1/jobs/retry: what failed once more, as new jobs."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from broker import paging
from custody.wire import Retried, RetryBatch
from tests.e2e.problems import assert_problem
from tests.e2e.service import Service, Strict, until
from tests.support.engines import HANGING, RAISING
from wharfinger import Client

UNKNOWN_ID = "01a1ffff-0000-7000-8000-000000000000"
WAIT = {"Prefer": "wait=30"}


@pytest.fixture
def service(strict: Strict) -> Service:
    return strict.service


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """An admin of a tenant of their own."""
    with service.client(service.new_key("admin")) as client:
        yield client


@pytest.fixture
def another(service: Service) -> Iterator[httpx.Client]:
    with service.client(service.new_key("admin")) as client:
        yield client


def test_a_rerun_runs_and_names_what_it_repeats(http: httpx.Client, page: bytes) -> None:
    fields = {"conf": "0.5", "metadata": '{"a": 1}', "priority": "batch"}
    files = [("image", ("a.png", page)), ("image", ("b.png", picture(RAISING)))]
    job = http.post("/v1/predict", files=files, data=fields, headers=WAIT).json()
    assert (job["state"], job["rerun_of"]) == ("failed", None)
    answer = http.post(f"/v1/jobs/{job['id']}/rerun", headers=WAIT)
    assert answer.status_code == 200
    again = answer.json()
    assert (again["rerun_of"], again["state"]) == (job["id"], "failed")
    for taken_over in ("model", "parameters", "priority", "metadata"):
        assert again[taken_over] == job[taken_over]
    assert [result["filename"] for result in again["results"]] == ["a.png", "b.png"]
    assert again["results"][0]["detections"] == job["results"][0]["detections"]
    assert http.get(f"/v1/jobs/{job['id']}").json() == job
    answer = http.post(f"/v1/jobs/{job['id']}/rerun?only=failed")
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/v1/jobs/{answer.json()['id']}")
    failed = http.get(answer.headers["Location"], headers=WAIT).json()
    assert [(result["input"], result["filename"]) for result in failed["results"]] == [(0, "b.png")]


def test_a_rerun_sent_twice_under_one_key_is_one_job(http: httpx.Client, page: bytes) -> None:
    job = http.post("/v1/predict", files={"image": page}, headers=WAIT).json()
    address, key = f"/v1/jobs/{job['id']}/rerun", {"Idempotency-Key": "again"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post(address, headers=key), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    for other in (f"{address}?only=failed", f"/v1/jobs/{answers[0].json()['id']}/rerun"):
        assert_problem(http.post(other, headers=key), 409, "idempotency_conflict", "Idempotency-Key")
    assert http.post(address, headers=WAIT).json()["id"] != answers[0].json()["id"]
    assert len(http.get("/v1/jobs").json()["items"]) == 3


def test_what_cannot_be_rerun_is_refused_and_leaves_nothing(
    service: Service, http: httpx.Client, another: httpx.Client, page: bytes
) -> None:
    good = http.post("/v1/predict", files={"image": page}, headers=WAIT).json()
    hanging = http.post("/v1/predict", files={"image": picture(HANGING)}).json()
    before = service.rows()
    key = {"Idempotency-Key": "refused"}
    rerun = f"/v1/jobs/{good['id']}/rerun"
    assert_problem(http.post(f"{rerun}?only=failed", headers=key), 409, "nothing_to_rerun", "only")
    assert_problem(http.post(f"/v1/jobs/{hanging['id']}/rerun?only=failed", headers=key), 409, "job_not_ended", "only")
    for wrong in ("succeeded", "", "failed%00", "1"):
        assert_problem(http.post(f"{rerun}?only={wrong}", headers=key), 422, "invalid_request", "only")
    for unknown in (UNKNOWN_ID, "17", "%00", "%2e%2e"):
        assert http.post(f"/v1/jobs/{unknown}/rerun", headers=key).status_code == 404
    assert_problem(another.post(rerun), 404, "not_found")
    with service.client("nobody's") as nobody:
        assert_problem(nobody.post(rerun), 401, "unauthenticated")
    assert_problem(http.post(rerun, headers={"Idempotency-Key": "k" * 256}), 422, "invalid_request", "Idempotency-Key")
    file = good["results"][0]["file_id"]
    assert http.delete(f"/v1/files/{file}").status_code == 204
    answer = http.post(rerun, headers=key)
    assert_problem(answer, 410, "input_gone", "inputs.0")
    assert good["results"][0]["sha256"] in answer.json()["detail"]
    assert service.rows() == before
    # No refusal has used the key up, and bytes that are held again can be run on again.
    http.post("/v1/files", content=page)
    assert http.post(rerun, headers=key).status_code == 202
    http.post(f"/v1/jobs/{hanging['id']}/cancel")


def test_a_reader_reruns_nothing_and_a_writer_retries_nothing(service: Service, page: bytes) -> None:
    tenant = f"t-{uuid4().hex}"
    keys = {role: service.new_key(role, tenant) for role in ("reader", "writer", "admin")}
    with service.client(keys["writer"]) as writer, service.client(keys["reader"]) as reader:
        job = writer.post("/v1/predict", files={"image": picture(RAISING)}, headers=WAIT).json()
        assert_problem(reader.post(f"/v1/jobs/{job['id']}/rerun"), 403, "forbidden")
        for who in (reader, writer):
            assert_problem(who.post("/v1/jobs/retry", json={}), 403, "forbidden")
        assert writer.post(f"/v1/jobs/{job['id']}/rerun").status_code == 202
    with service.client(keys["admin"]) as admin:
        assert admin.post("/v1/jobs/retry", json={"dry_run": True}).status_code == 200
        assert_problem(admin.post("/v1/jobs/retry", json={"all_tenants": True}), 403, "forbidden")


@pytest.fixture
def paused(service: Service) -> Iterator[None]:
    """Nothing begins in the test, and afterwards the model runs again."""
    with service.client() as operator:
        assert operator.post("/v1/pools/digits/pause").status_code == 200
        yield
        assert operator.post("/v1/pools/digits/resume").status_code == 200


def test_a_rerun_waits_for_room_as_a_job_does(http: httpx.Client, page: bytes, paused: None) -> None:
    file = http.post("/v1/files", content=page).json()["items"][0]["id"]
    job = http.post("/v1/jobs", json={"inputs": [{"file": file}] * 160}).json()
    answer = http.post(f"/v1/jobs/{job['id']}/rerun")
    assert_problem(answer, 429, "tenant_backlog_full")
    assert answer.headers["Retry-After"]
    http.post(f"/v1/jobs/{job['id']}/cancel")
    until(lambda: http.post(f"/v1/jobs/{job['id']}/rerun").status_code == 202, "there is room again")
    for each in http.get("/v1/jobs").json()["items"]:
        http.post(f"/v1/jobs/{each['id']}/cancel")


def test_a_retry_reruns_the_failed_inputs_of_all_that_match_once(http: httpx.Client, page: bytes) -> None:
    jobs = [failed_job(http, page, n) for n in range(5)]
    tagged = failed_job(http, page, 5, metadata='{"camera": "7"}')
    dry = walk(http, dry_run=True)
    assert [(each["job"], each["failed"], each["rerun"], each["error"]) for each in dry] == [
        (job, 1, None, None) for job in [*jobs, tagged]
    ]
    assert set(dry[0]) == set(Retried.model_fields)
    assert len(http.get("/v1/jobs").json()["items"]) == 6
    made = walk(http, limit=2, created_before=created(http, tagged))
    assert [each["job"] for each in made] == jobs
    [found] = walk(http, metadata={"camera": "7"}, error_code="inference_failed", state="failed")
    assert found["job"] == tagged
    for each in [found, *made]:
        again = http.get(f"/v1/jobs/{each['rerun']}", headers=WAIT).json()
        # It has failed again: the walk that made it did not meet it.
        assert (again["rerun_of"], again["state"], again["progress"]["total"]) == (each["job"], "failed", 1)
    assert [each["job"] for each in walk(http, dry_run=True)] == sorted(each["rerun"] for each in [found, *made])


def test_a_retry_whose_answer_was_lost_tells_the_same_and_makes_nothing_twice(http: httpx.Client, page: bytes) -> None:
    jobs = [failed_job(http, page, n) for n in range(3)]
    wish, key = {"limit": 2}, {"Idempotency-Key": "lost"}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/jobs/retry", json=wish, headers=key), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.text for answer in answers}) == 1
    batch = RetryBatch.model_validate(answers[0].json())
    assert [str(each.job) for each in batch.jobs] == jobs[:2]
    assert_problem(http.post("/v1/jobs/retry", json={"limit": 3}, headers=key), 409, "idempotency_conflict")
    last = http.post("/v1/jobs/retry", json={"limit": 2, "cursor": batch.next_cursor}).json()
    assert ([each["job"] for each in last["jobs"]], last["next_cursor"]) == (jobs[2:], None)
    assert len(http.get("/v1/jobs").json()["items"]) == 6


def test_a_job_that_cannot_be_rerun_is_told_and_the_others_are_rerun(http: httpx.Client, page: bytes) -> None:
    jobs = [failed_job(http, page, n) for n in range(3)]
    gone = http.get(f"/v1/jobs/{jobs[1]}").json()["results"][1]["file_id"]
    http.delete(f"/v1/files/{gone}")
    first, second, third = walk(http)
    assert (first["error"], third["error"]) == (None, None)
    assert (second["rerun"], second["error"]["code"]) == (None, "input_gone")
    assert [each["job"] for each in walk(http, created_before=created(http, first["rerun"]))] == [jobs[1]]


def test_a_retry_for_which_there_is_no_room_ends_its_batch_and_goes_on_later(
    http: httpx.Client, page: bytes, request: pytest.FixtureRequest
) -> None:
    first, second = [failed_job(http, page, n) for n in range(2)]
    request.getfixturevalue("paused")
    file = http.post("/v1/files", content=page).json()["items"][0]["id"]
    wish = {"inputs": [{"file": file}] * 299}
    filling: list[httpx.Response] = []
    # What has just ended counts as waiting for a moment.
    until(lambda: filling.append(http.post("/v1/jobs", json=wish)) or filling[-1].status_code == 202, "it is full")
    answer = http.post("/v1/jobs/retry", json={})
    assert answer.status_code == 200, answer.text
    [made] = answer.json()["jobs"]
    assert (made["job"], made["error"]) == (first, None)
    more = {"cursor": answer.json()["next_cursor"]}
    answer = http.post("/v1/jobs/retry", json=more, headers={"Idempotency-Key": "later"})
    assert_problem(answer, 429, "tenant_backlog_full")
    assert answer.headers["Retry-After"]
    http.post(f"/v1/jobs/{filling[-1].json()['id']}/cancel")

    def goes_on() -> bool:
        answer = http.post("/v1/jobs/retry", json=more, headers={"Idempotency-Key": "later"})
        return answer.status_code == 200 and [each["job"] for each in answer.json()["jobs"]] == [second]

    until(goes_on, "there is room again")
    assert walk(http) == []


def test_an_operator_retries_the_jobs_of_all_tenants_which_stay_theirs(
    service: Service, http: httpx.Client, another: httpx.Client, page: bytes
) -> None:
    mine, theirs = failed_job(http, page, 1, metadata='{"o": 1}'), failed_job(another, page, 2, metadata='{"o": 1}')
    with service.client() as operator:
        assert walk(operator, metadata={"o": 1}) == []
        found = walk(operator, metadata={"o": 1}, all_tenants=True, dry_run=True)
        assert [each["job"] for each in found] == [mine, theirs]
        assert found[0]["tenant"] != found[1]["tenant"]
        made = walk(operator, metadata={"o": 1}, all_tenants=True, limit=1)
        for each in made:
            assert_problem(operator.get(f"/v1/jobs/{each['rerun']}"), 404, "not_found")
    for client, job, each in zip((http, another), (mine, theirs), made, strict=True):
        again = client.get(f"/v1/jobs/{each['rerun']}", headers=WAIT).json()
        assert (again["rerun_of"], again["progress"]["total"]) == (job, 1)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"state": "succeeded"}, "state"),
        ({"state": "running"}, "state"),
        ({"model": 7}, "model"),
        ({"model": "a\0"}, "model"),
        ({"error_code": ["worker_lost"]}, "error_code"),
        ({"error_code": "\0"}, "error_code"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "\0"}}, "metadata"),
        ({"metadata": {"a": "x" * 9000}}, "metadata"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"created_after": "2026-01-31T18:00:00"}, "created_after"),
        ({"created_before": "2026-13-31T18:00:00Z"}, "created_before"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": 10**30}, "limit"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"dry_run": 1}, "dry_run"),
        ({"all_tenants": "true"}, "all_tenants"),
        ({"cursor": "garbage"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "\u00fc\u00fc\u00fc\u00fc"}, "cursor"),
        ({"cursor": paging.encode(UNKNOWN_ID)}, "cursor"),
        ({"cursor": paging.encode(f"2026-01-31T18:00:00 {UNKNOWN_ID}")}, "cursor"),
        ({"cursor": paging.encode("2026-01-31T18:00:00+00:00 x")}, "cursor"),
        ({"more": 1}, "more"),
        ([], None),
    ],
)
def test_a_filter_that_is_none_is_refused_with_its_field(http: httpx.Client, wish: Any, field: str | None) -> None:
    assert_problem(http.post("/v1/jobs/retry", json=wish), 422, "invalid_request", field)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_time_at_the_end_of_the_calendar_is_a_time(http: httpx.Client, moment: str) -> None:
    for wish in ({"created_after": moment}, {"created_before": moment}):
        assert http.post("/v1/jobs/retry", json=wish).status_code == 200
    cursor = paging.encode(f"{moment} {UNKNOWN_ID}")
    assert http.post("/v1/jobs/retry", json={"cursor": cursor}).status_code == 200


def test_the_sdk_reruns_and_retries(service: Service, page: bytes) -> None:
    with Client(service.url, service.new_key("admin")) as client:
        job = client.predict(page, picture(RAISING))
        again = client.jobs.rerun(job.id, only_failed=True, wait=30)
        assert (again.rerun_of, again.progress.total, again.progress.failed) == (job.id, 1, 1)
        [retried] = client.jobs.retry(error_code="inference_failed", model="digits", created_after=job.created_at)
        assert (retried.job, retried.failed) == (again.id, 1)
        assert retried.rerun is not None
        assert client.jobs.wait(retried.rerun).rerun_of == again.id


def failed_job(http: httpx.Client, page: bytes, number: int, metadata: str = "{}") -> str:
    """Of two inputs the second has failed."""
    files = [("image", page), ("image", picture(RAISING, 60 + number))]
    job = http.post("/v1/predict", files=files, data={"metadata": metadata}, headers=WAIT).json()
    assert (job["state"], job["progress"]["failed"]) == ("failed", 1)
    return str(job["id"])


def walk(http: httpx.Client, **wish: Any) -> list[dict[str, Any]]:
    """All batches of a retry."""
    found, cursor = [], None
    while True:
        answer = http.post("/v1/jobs/retry", json={**wish, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        found += answer.json()["jobs"]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found


def created(http: httpx.Client, job: str) -> str:
    return str(http.get(f"/v1/jobs/{job}").json()["created_at"])


def picture(colour: tuple[int, int, int], size: int = 40) -> bytes:
    drawn = io.BytesIO()
    Image.new("RGB", (size, 40), colour).save(drawn, "PNG")
    return drawn.getvalue()
