"""Two tenants on one service: neither learns anything of the other."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

import starter_model
from tests.e2e.problems import code_of
from tests.e2e.service import Service

UNKNOWN_ID = "01a1ffff-0000-7000-8000-000000000000"
UNKNOWN_SHA256 = "0" * 64
TIMED = 40


@dataclass(frozen=True)
class Owner:
    """What a tenant has: bytes that nobody else sent, a file of them, a job on them, a key."""

    content: bytes
    file: dict[str, Any]
    job: dict[str, Any]
    key: dict[str, Any]


@pytest.fixture(scope="module")
def owner(up: Service) -> Owner:
    content = page_of("the owner")
    with up.client(up.new_key("admin", "owner")) as http:
        [file] = http.post("/v1/files", content=content).json()["items"]
        wish = {"inputs": [{"file": file["id"]}], "metadata": {"secret": "s3"}}
        job = http.post("/v1/jobs", json=wish, headers={"Prefer": "wait=30"}).json()
        key = http.post("/v1/keys", json={"name": "the owner's", "role": "reader"}).json()
    assert job["state"] == "succeeded"
    return Owner(content, file, job, key)


@pytest.fixture
def stranger(up: Service) -> Iterator[httpx.Client]:
    """An admin of a tenant that holds nothing."""
    with up.client(up.new_key("admin")) as client:
        yield client


ROUTES = {
    "read a file": ("GET", "/v1/files/{file}", None),
    "read its bytes": ("GET", "/v1/files/{file}/content", None),
    "delete it": ("DELETE", "/v1/files/{file}", None),
    "add its bytes": ("POST", "/v1/files/sha256:{sha256}", None),
    "run a job on it": ("POST", "/v1/jobs", {"inputs": [{"file": "{file}"}]}),
    "run a job on its bytes": ("POST", "/v1/jobs", {"inputs": [{"sha256": "{sha256}"}]}),
    "read a job": ("GET", "/v1/jobs/{job}", None),
    "read its results": ("GET", "/v1/jobs/{job}/results", None),
    "read them as lines": ("GET", "/v1/jobs/{job}/results?format=jsonl", None),
    "cancel it": ("POST", "/v1/jobs/{job}/cancel", None),
    "revoke a key": ("DELETE", "/v1/keys/{key}", None),
}


@pytest.mark.parametrize("route", ROUTES)
def test_what_another_tenant_has_answers_like_what_nobody_has(
    owner: Owner, up: Service, stranger: httpx.Client, route: str
) -> None:
    foreign = {"file": owner.file["id"], "sha256": owner.file["sha256"], "job": owner.job["id"], "key": owner.key["id"]}
    unknown = {"file": UNKNOWN_ID, "sha256": UNKNOWN_SHA256, "job": UNKNOWN_ID, "key": UNKNOWN_ID}
    before = up.traces()
    first, second = (ask(stranger, route, named) for named in (foreign, unknown))
    assert code_of(first) == code_of(second) == "not_found"
    assert told(first, foreign) == told(second, unknown)
    assert set(first.headers) == set(second.headers)
    assert up.traces() == before


def test_waiting_for_a_foreign_job_is_not_longer_than_for_an_unknown_one(owner: Owner, stranger: httpx.Client) -> None:
    for job in (owner.job["id"], UNKNOWN_ID):
        began = time.monotonic()
        assert stranger.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=20"}).status_code == 404
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("route", ["read a file", "read its bytes", "add its bytes", "read a job", "run a job on it"])
def test_the_clock_does_not_tell_foreign_from_unknown(owner: Owner, stranger: httpx.Client, route: str) -> None:
    foreign = {"file": owner.file["id"], "sha256": owner.file["sha256"], "job": owner.job["id"]}
    unknown = {"file": UNKNOWN_ID, "sha256": UNKNOWN_SHA256, "job": UNKNOWN_ID}
    took: dict[str, list[float]] = {"foreign": [], "unknown": []}
    for _ in range(TIMED):
        for which, named in (("foreign", foreign), ("unknown", unknown)):
            began = time.perf_counter()
            ask(stranger, route, named)
            took[which].append(time.perf_counter() - began)
    slow, fast = sorted((statistics.median(took["foreign"]), statistics.median(took["unknown"])), reverse=True)
    assert slow < 3 * fast


def test_bytes_that_another_tenant_holds_look_new(owner: Owner, up: Service, stranger: httpx.Client) -> None:
    address = f"/v1/files/sha256:{owner.file['sha256']}"
    assert stranger.head(address).status_code == 404
    blobs = up.rows()["blobs"]
    sent = stranger.post("/v1/files", content=owner.content)
    assert sent.status_code == 201  # 200 would tell that somebody holds them
    assert up.rows()["blobs"] == blobs  # and yet they are there once
    assert stranger.head(address).status_code == 200
    [mine] = sent.json()["items"]
    assert mine["id"] != owner.file["id"]
    assert mine["filename"] is None
    assert stranger.delete(f"/v1/files/{mine['id']}").status_code == 204
    with up.client(owner.key["secret"]) as reader:
        assert reader.get(f"/v1/files/{owner.file['id']}/content").content == owner.content


def test_lists_have_only_what_is_the_tenants_own(owner: Owner, stranger: httpx.Client) -> None:
    assert stranger.get("/v1/files").json()["items"] == []
    for query in ("", "?state=succeeded", "?model=digits", '?metadata={"secret": "s3"}'):
        assert stranger.get(f"/v1/jobs{query}").json()["items"] == []
    assert [key["name"] for key in stranger.get("/v1/keys").json()["items"]] == ["a admin"]


def test_a_cursor_of_another_tenant_opens_nothing(owner: Owner, up: Service, stranger: httpx.Client) -> None:
    with up.client(owner.key["secret"]) as reader:
        cursor = reader.get("/v1/files", params={"limit": 1}).json()["next_cursor"]
        following = reader.get("/v1/jobs", params={"limit": 1}).json()["next_cursor"]
    assert stranger.get("/v1/files", params={"cursor": cursor}).json()["items"] == []
    assert stranger.get("/v1/jobs", params={"cursor": following}).json()["items"] == []


def page_of(name: str) -> bytes:
    """The starter's page with bytes behind it that make it this one's own."""
    return starter_model.PAGE.read_bytes() + name.encode()


def ask(http: httpx.Client, route: str, named: dict[str, str]) -> httpx.Response:
    method, address, body = ROUTES[route]
    filled = {
        "inputs": [{kind: text.format(**named) for kind, text in each.items()} for each in body["inputs"]]
    } if body else None  # fmt: skip
    return http.request(method, address.format(**named), json=filled)


def told(answer: httpx.Response, named: dict[str, str]) -> str:
    """The answer without what differs in any case: the request's own id and the ids that were asked for."""
    problem = answer.json()
    del problem["request_id"]
    text = str(problem)
    for kind, value in named.items():
        text = text.replace(value, kind)
    return text
