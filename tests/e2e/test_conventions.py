"""What holds on every route: ids, idempotency keys, models, keys, probes, metrics, the OpenAPI document."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from custody.wire import Key, Model, NewKey
from tests.conftest import ROOT
from tests.e2e.problems import assert_problem
from tests.e2e.service import Service

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key()) as client:
        yield client


def test_request_ids_and_traces_are_taken_over_and_sent_back(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"X-Request-ID": "order-17.a_b", "traceparent": TRACE})
    assert answer.headers["X-Request-ID"] == "order-17.a_b"
    version, trace, span, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE.split("-")[1], "01")
    assert span != TRACE.split("-")[2]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", "a;b"])
def test_a_request_id_that_could_do_harm_is_replaced(http: httpx.Client, given: str) -> None:
    answer = http.get("/v1/models/none", headers={"X-Request-ID": given, "traceparent": "00-nonsense"})
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["X-Request-ID"])
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", answer.headers["traceparent"])


def timing(answer: httpx.Response) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"([a-z]+);dur=([\d.]+)", answer.headers["Server-Timing"])}


def test_an_answer_tells_where_its_time_went(up: Service, http: httpx.Client, page: bytes) -> None:
    upload = timing(http.post("/v1/files", files={"file": page}))
    assert list(upload) == ["authenticate", "receive", "probe", "commit", "total"]
    answer = http.post("/v1/predict", files={"image": page}, headers={"Prefer": "wait=30"})
    predict, [result] = timing(answer), answer.json()["results"]
    stages = ["authenticate", "receive", "probe", "commit", "wait", "answer"]
    assert list(predict) == [*stages, "queue", "read", "decode", "infer", "total"]
    assert sum(predict[stage] for stage in stages) <= predict["total"] + 0.6
    assert predict["infer"] == pytest.approx(result["timings"]["infer"], abs=0.1)
    assert predict["read"] + predict["decode"] + predict["infer"] <= predict["wait"]
    assert result["timings"]["commit"] > 0
    refused = http.post("/v1/files", files={"file": b"no picture"})
    assert list(timing(refused)) == ["authenticate", "receive", "probe", "total"]
    assert "Server-Timing" not in httpx.get(f"{up.url}/livez", trust_env=False).headers


def test_models_say_what_they_are_and_who_serves_them(http: httpx.Client) -> None:
    [listed] = http.get("/v1/models").json()["items"]
    one = http.get("/v1/models/digits").json()
    assert listed == one
    assert set(one) == set(Model.model_fields)
    assert (one["name"], one["ready_workers"]) == ("digits", 1)
    [version] = one["versions"]
    assert (version["version"], version["task"], version["state"]) == (1, "detect", "active")
    assert version["classes"] == list("0123456789")
    for unknown in ("none", "digits%00", "%ff", "%2e%2e"):
        assert_problem(http.get(f"/v1/models/{unknown}"), 404, "not_found")


def upload(http: httpx.Client, key: str, content: bytes) -> httpx.Response:
    return http.post("/v1/files", files={"file": ("a.png", content)}, headers={"Idempotency-Key": key})


def upload_raw(http: httpx.Client, key: str, content: bytes) -> httpx.Response:
    return http.post("/v1/files", content=content, headers={"Idempotency-Key": key})


def add_known(http: httpx.Client, key: str, content: bytes) -> httpx.Response:
    sha256 = http.post("/v1/files", content=content).json()["items"][0]["sha256"]
    return http.post(f"/v1/files/sha256:{sha256}", headers={"Idempotency-Key": key})


def predict(http: httpx.Client, key: str, content: bytes) -> httpx.Response:
    headers = {"Idempotency-Key": key, "Prefer": "wait=30"}
    return http.post("/v1/predict", files={"image": content}, headers=headers)


def submit(http: httpx.Client, key: str, content: bytes) -> httpx.Response:
    file = http.post("/v1/files", content=content).json()["items"][0]
    headers = {"Idempotency-Key": key, "Prefer": "wait=30"}
    return http.post("/v1/jobs", json={"inputs": [{"sha256": file["sha256"]}]}, headers=headers)


@pytest.mark.parametrize("post", [upload, upload_raw, add_known, predict, submit])
def test_a_request_sent_twice_has_one_effect_and_the_same_answer(
    http: httpx.Client, up: Service, page: bytes, post: Callable[[httpx.Client, str, bytes], httpx.Response]
) -> None:
    first = post(http, "a key", page)
    assert first.status_code in (200, 201), first.text
    again = post(http, "a key", page)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    other = post(http, "another key", page)
    assert other.json() != first.json()
    # Another picture under the first one's key, which another tenant may use as well.
    assert_problem(post(http, "a key", page + b"more"), 409, "idempotency_conflict", "Idempotency-Key")
    with up.client(up.new_key()) as stranger:
        assert post(stranger, "a key", page + b"more").status_code in (200, 201)


def test_a_key_belongs_to_one_route_and_one_set_of_fields(http: httpx.Client, page: bytes) -> None:
    headers = {"Idempotency-Key": "k"}
    job = http.post("/v1/predict", files={"image": page}, data={"conf": "0.5"}, headers=headers).json()
    same = http.post("/v1/predict", files={"image": page}, data={"conf": "0.5"}, headers=headers).json()
    assert same["id"] == job["id"]
    for conflicting in (
        http.post("/v1/predict", files={"image": page}, data={"conf": "0.6"}, headers=headers),
        http.post("/v1/predict", files=[("image", page), ("image", page)], data={"conf": "0.5"}, headers=headers),
        http.post("/v1/files", files={"file": page}, headers=headers),
    ):
        assert_problem(conflicting, 409, "idempotency_conflict")
    assert len(http.get("/v1/jobs").json()["items"]) == 1
    assert len(http.get("/v1/files").json()["items"]) == 1


def test_a_refused_request_does_not_use_up_its_key(http: httpx.Client, page: bytes) -> None:
    headers = {"Idempotency-Key": "k"}
    refused = http.post("/v1/predict", files={"image": page}, data={"model": "none"}, headers=headers)
    assert_problem(refused, 422, "model_not_found", "model")
    assert http.post("/v1/predict", files={"image": page}, headers=headers).status_code == 202


def test_a_replay_whose_file_was_deleted_says_so(http: httpx.Client, page: bytes) -> None:
    file = upload(http, "k", page).json()["items"][0]
    http.delete(f"/v1/files/{file['id']}")
    assert_problem(upload(http, "k", page), 410, "gone")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_1_to_255_characters(http: httpx.Client, page: bytes, key: str) -> None:
    assert_problem(upload(http, key, page), 422, "invalid_request", "Idempotency-Key")
    assert http.get("/v1/files").json()["items"] == []


def test_a_key_is_made_listed_used_and_revoked(up: Service) -> None:
    with up.client(up.new_key("admin")) as admin:
        answer = admin.post("/v1/keys", json={"name": "camera 4", "role": "reader"})
        assert answer.status_code == 201
        assert answer.headers["Cache-Control"] == "no-store"
        made = answer.json()
        assert set(made) == set(NewKey.model_fields)
        listed = admin.get("/v1/keys").json()["items"]
        assert [set(key) for key in listed] == [set(Key.model_fields)] * 2
        assert {name: made[name] for name in listed[1]} == listed[1]
        with up.client(made["secret"]) as camera:
            assert camera.get("/v1/files").status_code == 200
            assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
            assert_problem(camera.get("/v1/files"), 401, "unauthenticated")
        assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
        assert admin.get("/v1/keys").json()["items"][1]["revoked_at"] is not None
        assert_problem(admin.delete("/v1/keys/17"), 404, "not_found")


def test_only_the_operator_makes_keys_for_other_tenants(up: Service) -> None:
    before = up.rows()
    with up.client(up.new_key("admin", "plain")) as admin:
        answer = admin.post("/v1/keys", json={"name": "x", "role": "admin", "tenant": "victim"})
        assert_problem(answer, 403, "forbidden", "tenant")
        assert admin.post("/v1/keys", json={"name": "x", "role": "admin", "tenant": "plain"}).status_code == 201
    assert up.rows() == before
    assert up.ask("SELECT 1 FROM wharf.tenants WHERE name = 'victim'") == []


def test_probes_need_no_key_and_metrics_do(up: Service, http: httpx.Client, page: bytes) -> None:
    with httpx.Client(base_url=up.url, trust_env=False) as nobody:
        assert nobody.get("/livez").json() == {"status": "ok"}
        ready = nobody.get("/readyz").json()
        assert ready["status"] == "ok"
        assert set(ready["checks"]) == {"database", "volume", "transport", "worker"}
        assert_problem(nobody.get("/metrics"), 401, "unauthenticated")
    before = counted(http.get("/metrics").text)
    http.post("/v1/predict", files={"image": page}, headers={"Prefer": "wait=30"})
    after = counted(http.get("/metrics").text)
    posted = 'wharf_http_requests_total{method="POST",route="/v1/predict",status="200"}'
    assert after[posted] == before.get(posted, 0) + 1
    assert after["wharf_upload_bytes_total"] == before["wharf_upload_bytes_total"] + len(page)
    assert after['wharf_job_inputs_total{model="digits"}'] == before['wharf_job_inputs_total{model="digits"}'] + 1


def test_the_openapi_document_is_the_one_in_the_repository_and_is_whole(up: Service, http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document == json.loads((ROOT / "schema" / "openapi.json").read_text())
    assert set(references(document)) <= {
        f"#/components/{kind}/{name}" for kind, described in document["components"].items() for name in described
    }
    shown = httpx.get(f"{up.url}/docs", trust_env=False)
    assets = re.findall(r'(?:src|href)="([^"]+)"', shown.text)
    assert len(assets) >= 3
    for asset in assets:
        assert urljoin(up.url, asset).startswith(up.url)  # nothing from elsewhere: it works without a network
        assert http.get(asset).status_code == 200


@pytest.mark.parametrize("wanted", ["bytes=0-9", "bytes=9-0", "bytes=99999999-", "bytes", "lines=1-2", "bytes=a-b"])
def test_assets_come_whole_whatever_part_is_asked_for(http: httpx.Client, wanted: str) -> None:
    answer = http.get("/docs/assets/swagger-ui.css", headers={"Range": wanted})
    assert (answer.status_code, "Content-Range" in answer.headers) == (200, False)
    assert len(answer.content) > 100_000


def test_wrong_addresses_and_methods_are_problems_too(http: httpx.Client) -> None:
    assert_problem(http.get("/v1/nothing"), 404, "not_found")
    assert_problem(http.get("/v1/files/"), 404, "not_found")
    assert_problem(http.put("/v1/files"), 405, "method_not_allowed")
    assert_problem(http.get("/v1/predict"), 405, "method_not_allowed")


def counted(text: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_a_key_whose_job_has_been_removed_since_says_so(http: httpx.Client, up: Service, page: bytes) -> None:
    headers = {"Idempotency-Key": "of a job that is removed", "Prefer": "wait=30"}
    job = http.post("/v1/predict", files={"image": page}, headers=headers).json()["id"]
    up.ask("DELETE FROM wharf.results r USING wharf.tasks t WHERE t.id = r.task_id AND t.job_id = %s RETURNING 1", job)
    up.ask("DELETE FROM wharf.tasks WHERE job_id = %s RETURNING 1", job)
    assert up.ask("DELETE FROM wharf.jobs WHERE id = %s RETURNING 1", job)
    assert_problem(http.post("/v1/predict", files={"image": page}, headers=headers), 410, "gone")
