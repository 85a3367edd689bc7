"""/v1/predict and /v1/jobs: submitted, waited for, listed, read, cancelled."""

import io
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
from PIL import Image

from custody.wire import InputResult, Job
from tests.e2e import boxes
from tests.e2e.problems import assert_problem
from tests.e2e.service import Service, Strict, until
from tests.support.engines import HANGING

UNKNOWN_ID = "01a1ffff-0000-7000-8000-000000000000"
WAIT = {"Prefer": "wait=30"}


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key()) as client:
        yield client


@pytest.fixture
def file(http: httpx.Client, page: bytes) -> dict[str, Any]:
    [kept] = http.post("/v1/files", files={"file": ("page.png", page)}).json()["items"]
    return dict(kept)


def test_whoever_does_not_wait_is_told_202_however_quick_the_worker_was(
    http: httpx.Client, file: dict[str, Any]
) -> None:
    wish, key = {"inputs": [{"file": file["id"]}]}, {"Idempotency-Key": "told once"}
    first = http.post("/v1/jobs", json=wish, headers={**WAIT, **key})
    assert (first.status_code, first.json()["state"]) == (200, "succeeded")
    again = http.post("/v1/jobs", json=wish, headers=key)
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (202, first.json()["id"], "succeeded")


def test_a_job_on_files_by_id_and_by_sha256_has_a_result_for_each_input_in_order(
    http: httpx.Client, file: dict[str, Any]
) -> None:
    [blank] = http.post("/v1/files", files={"file": ("blank.png", blank_picture())}).json()["items"]
    inputs = [{"file": file["id"]}, {"sha256": blank["sha256"]}, {"sha256": file["sha256"]}, {"file": file["id"]}]
    wish = {"model": "digits", "inputs": inputs, "params": {"conf": 0.5}, "priority": "batch", "metadata": {"a": [1]}}
    answer = http.post("/v1/jobs", json=wish, headers=WAIT)
    assert answer.status_code == 200
    job = answer.json()
    assert set(job) == set(Job.model_fields)
    assert (job["state"], job["model"], job["priority"], job["metadata"]) == (
        "succeeded",
        "digits",
        "batch",
        {"a": [1]},
    )
    assert job["parameters"] == {"conf": 0.5, "iou": 0.7, "max_detections": 300}
    assert datetime.fromisoformat(job["created_at"]) <= datetime.fromisoformat(job["finished_at"])
    results = job["results"]
    assert [result["input"] for result in results] == [0, 1, 2, 3]
    assert [result["filename"] for result in results] == ["page.png", "blank.png", "page.png", "page.png"]
    assert [len(result["detections"]) for result in results] == [10, 0, 10, 10]
    assert http.get(f"/v1/jobs/{job['id']}").json() == job


def test_a_result_names_all_that_it_came_from(http: httpx.Client, file: dict[str, Any]) -> None:
    job = http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}]}, headers=WAIT).json()
    [result] = job["results"]
    assert set(result) == set(InputResult.model_fields)
    [version] = http.get("/v1/models/digits").json()["versions"]
    assert result["model"] == {"name": "digits", "version": 1, "digest": version["digest"]}
    assert (result["sha256"], result["file_id"]) == (file["sha256"], file["id"])
    assert (result["state"], result["attempts"], result["cached"], result["error"]) == ("succeeded", 1, False, None)
    assert all(milliseconds > 0 for milliseconds in result["timings"].values())
    for detection in result["detections"]:
        assert set(detection) == {"class_id", "label", "confidence", "box"}
        box = detection["box"]
        assert 0 <= box["x1"] < box["x2"] <= 640
        assert 0 <= box["y1"] < box["y2"] <= 480


def test_parameters_choose_among_the_boxes(http: httpx.Client, page: bytes) -> None:
    def detections(**fields: str) -> list[dict[str, Any]]:
        answer = http.post("/v1/predict", files={"image": page}, data=fields, headers=WAIT)
        return list(answer.json()["results"][0]["detections"])

    everything = detections(conf="0.25")
    least = sorted(each["confidence"] for each in everything)[3]
    assert len(detections(conf=str(least))) == 7
    three = detections(max_detections="3")
    assert three == sorted(everything, key=lambda each: -each["confidence"])[:3]


def test_a_request_that_does_not_wait_is_accepted_and_ends_later(http: httpx.Client, page: bytes) -> None:
    answer = http.post("/v1/predict", files=[("image", ("a.png", page))] * 8)
    assert answer.status_code == 202
    assert answer.json()["state"] in ("queued", "running")
    assert "Preference-Applied" not in answer.headers
    ended = http.get(answer.headers["Location"], headers=WAIT).json()
    assert (ended["state"], ended["progress"]["done"]) == ("succeeded", 8)


def test_a_wait_ends_at_its_time_with_the_job_as_it_stands(strict: Strict) -> None:
    with strict.service.client(strict.service.new_key()) as http:
        began = time.monotonic()
        answer = http.post("/v1/predict", files={"image": hanging_picture()}, headers={"Prefer": "wait=1"})
        took = time.monotonic() - began
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
        assert 0.9 < took < 3
        assert answer.headers["Preference-Applied"] == "wait=1"
        http.post(f"{answer.headers['Location']}/cancel")


def test_the_list_is_filtered_by_state_model_and_metadata(http: httpx.Client, file: dict[str, Any]) -> None:
    def submit(metadata: dict[str, Any]) -> str:
        wish = {"inputs": [{"file": file["id"]}], "metadata": metadata}
        return str(http.post("/v1/jobs", json=wish, headers=WAIT).json()["id"])

    def listed(**asked: str) -> list[str]:
        return [job["id"] for job in http.get("/v1/jobs", params=asked).json()["items"]]

    red, blue = submit({"line": "red", "n": 1}), submit({"line": "blue", "n": 1})
    assert listed() == [blue, red]
    assert listed(metadata='{"line": "red"}') == [red]
    assert listed(metadata='{"n": 1}') == [blue, red]
    assert listed(metadata='{"n": 2}') == []
    assert listed(model="digits") == [blue, red]
    assert listed(model="another") == []
    assert listed(state="succeeded") == [blue, red]
    assert listed(state="failed") == listed(state="queued") == listed(state="running") == []
    assert all(job["results"] is None for job in http.get("/v1/jobs").json()["items"])


def test_jobs_are_paged_newest_first_each_once(http: httpx.Client, file: dict[str, Any]) -> None:
    wish = {"inputs": [{"file": file["id"]}]}
    ids = [http.post("/v1/jobs", json=wish).json()["id"] for _ in range(5)]
    first = http.get("/v1/jobs", params={"limit": 3}).json()
    second = http.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["items"] + second["items"]] == ids[::-1]
    assert second["next_cursor"] is None


def test_results_are_paged_as_json_and_as_lines(http: httpx.Client, file: dict[str, Any]) -> None:
    job = http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}] * 101}, headers=WAIT).json()
    assert (job["state"], job["results"]) == ("succeeded", None)  # too many to come along
    address = f"/v1/jobs/{job['id']}/results"
    paged, cursor = [], None
    while cursor is not None or not paged:
        answer = http.get(address, params={"limit": 40, **({"cursor": cursor} if cursor else {})}).json()
        paged += answer["items"]
        cursor = answer["next_cursor"]
    assert [result["input"] for result in paged] == list(range(101))
    lines, following = [], f"{address}?format=jsonl&limit=60"
    while following:
        page_of_lines = http.get(following)
        assert page_of_lines.headers["Content-Type"].startswith("application/jsonl")
        lines += [json.loads(line) for line in page_of_lines.text.splitlines()]
        following = page_of_lines.links.get("next", {}).get("url", "")
    assert lines == paged


def test_a_cancelled_job_ends_and_stays_so_however_often_it_is_cancelled(strict: Strict) -> None:
    with strict.service.client(strict.service.new_key()) as http:
        images = [("image", hanging_picture()), ("image", hanging_picture(41)), ("image", hanging_picture(42))]
        job = http.post("/v1/predict", files=images).json()
        until(lambda: http.get(f"/v1/jobs/{job['id']}").json()["state"] == "running", "the job has begun")
        answer = http.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        cancelled = answer.json()
        assert [result["state"] for result in cancelled["results"]] == ["cancelled"] * 3
        assert cancelled["finished_at"] is not None
        assert http.post(f"/v1/jobs/{job['id']}/cancel").json() == cancelled
        assert [listed["id"] for listed in http.get("/v1/jobs?state=cancelled").json()["items"]] == [job["id"]]


def test_a_job_that_has_ended_is_not_cancelled_any_more(http: httpx.Client, page: bytes) -> None:
    job = http.post("/v1/predict", files={"image": page}, headers=WAIT).json()
    assert http.post(f"/v1/jobs/{job['id']}/cancel").json() == job


def test_cancelling_wakes_those_who_wait(strict: Strict) -> None:
    with strict.service.client(strict.service.new_key()) as http:
        job = http.post("/v1/predict", files={"image": hanging_picture()}).json()
        answers: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: answers.append(http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=25"}))
        )
        began = time.monotonic()
        waiting.start()
        http.post(f"/v1/jobs/{job['id']}/cancel")
        waiting.join()
        assert answers[0].json()["state"] == "cancelled"
        assert time.monotonic() - began < 4  # a lost notice would cost 5 s


def test_a_job_outlives_the_deletion_of_its_file(strict: Strict, page: bytes) -> None:
    with strict.service.client(strict.service.new_key()) as http:
        blocking = http.post("/v1/predict", files=[("image", hanging_picture(each)) for each in (43, 44)]).json()
        job = http.post("/v1/predict", files={"image": page}).json()
        [file] = [listed for listed in http.get("/v1/files").json()["items"] if listed["width"] == 640]
        assert http.delete(f"/v1/files/{file['id']}").status_code == 204
        http.post(f"/v1/jobs/{blocking['id']}/cancel")
        ended = http.get(f"/v1/jobs/{job['id']}", headers=WAIT).json()
        boxes.assert_same(boxes.seen(ended["results"][0]), boxes.digits())


def test_inputs_that_the_tenant_does_not_hold_are_named(http: httpx.Client, file: dict[str, Any]) -> None:
    for wrong, field in (({"file": UNKNOWN_ID}, "file"), ({"sha256": "0" * 64}, "sha256")):
        answer = http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}, wrong]})
        assert_problem(answer, 404, "not_found", f"inputs.1.{field}")
    assert http.get("/v1/jobs").json()["items"] == []


def test_an_unknown_job_is_404_on_every_route(http: httpx.Client) -> None:
    for address in (f"/v1/jobs/{UNKNOWN_ID}", "/v1/jobs/17", "/v1/jobs/%00"):
        assert_problem(http.get(address), 404, "not_found")
        assert_problem(http.get(f"{address}/results"), 404, "not_found")
        assert_problem(http.post(f"{address}/cancel"), 404, "not_found")
        assert_problem(http.get(address, headers={"Prefer": "wait=5"}), 404, "not_found")


def hanging_picture(size: int = 40) -> bytes:
    return encoded(Image.new("RGB", (size, 40), HANGING))


def blank_picture() -> bytes:
    return encoded(Image.new("RGB", (64, 64), "white"))


def encoded(image: Image.Image) -> bytes:
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    return drawn.getvalue()
