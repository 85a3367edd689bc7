"""Receipts over HTTP: every route leaves the one that the table says, and a refused request none of an effect."""

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast
from uuid import uuid4

import httpx
import psycopg
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

import starter_model
from broker.app import build_app
from broker.metrics import BrokerMetrics
from broker.service import Service as Broker
from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.problems import assert_problem
from tests.e2e.service import WHARF, Installation, Part, Service, clean_environment
from wharfinger import Client

Receipts = list[dict[str, object]]


@dataclass
class Audited:
    """A service without workers, whose broker keeps receipts of all reads, and what a request may name."""

    service: Service
    installation: Installation
    broker: Part
    http: httpx.Client
    key_id: str = ""
    file: dict[str, str] = field(default_factory=dict)
    job: str = ""

    def receipts(self, request_id: str) -> Receipts:
        found = self.http.get("/v1/audit", params={"request_id": request_id}).json()["items"]
        return [receipt for receipt in found if receipt["action"] != "audit.listed"]

    def new_file(self) -> dict[str, str]:
        return cast("dict[str, str]", self.http.post("/v1/files", content=picture()).json()["items"][0])

    def new_job(self) -> str:
        submitted = self.http.post("/v1/jobs", json={"inputs": [{"file": self.file["id"]}]})
        assert submitted.status_code == 202, submitted.text
        return str(submitted.json()["id"])

    def new_job_with_results(self) -> str:
        job = self.new_job()
        with psycopg.connect(self.service.database) as connection:
            connection.execute(
                "UPDATE wharf.tasks SET state = 'succeeded', attempt = 1, worker = 'w', ended_at = now()"
                " WHERE job_id = %s",
                [job],
            )
            connection.execute(
                """
                INSERT INTO wharf.results (task_id, tenant_id, attempt, model, model_version, model_digest, detections,
                    timings)
                SELECT id, tenant_id, 1, 'digits', 1, sha256('m'), '[]',
                    '{"queue": 1, "read": 1, "decode": 1, "infer": 1}'
                FROM wharf.tasks WHERE job_id = %s
                """,
                [job],
            )
        return job

    def new_key(self) -> str:
        return str(self.http.post("/v1/keys", json={"name": "k", "role": "reader"}).json()["id"])


def picture() -> bytes:
    """The starter model's page, with other bytes each time."""
    return starter_model.PAGE.read_bytes() + uuid4().bytes


@pytest.fixture(scope="module")
def audited(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    with new_database(postgres) as database:
        installation = Installation(tmp_path_factory.mktemp("audited"), lambda role: postgres.url(role, database))
        try:
            service = installation.migrate()
            broker = installation.broker(WHARF_AUDIT_READS="all", WHARF_DEFAULT_MODEL="digits")
            with psycopg.connect(service.database) as connection:
                for model in ("digits", "retired"):
                    connection.execute(
                        "INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width,"
                        " input_height) VALUES (%s, 1, sha256('m'), 'models/none', 'detect', '[]', 1, 1)",
                        [model],
                    )
            with service.client() as http:
                audited = Audited(service, installation, broker, http)
                audited.key_id = http.get("/v1/keys").json()["items"][0]["id"]
                audited.file = audited.new_file()
                audited.job = audited.new_job_with_results()
                yield audited
        finally:
            installation.stop()


@dataclass(frozen=True)
class Case:
    """How a route is asked so that it succeeds, and so that it refuses; what the receipt of the success says.
    `objects` gives, of the answer, what must be named in `files`, `jobs`, `keys` or `names`."""

    ask: Callable[[Audited, httpx.Client], httpx.Response]
    action: str | None
    objects: Callable[[Audited, httpx.Response], tuple[str, str]] | None = None
    refuse: Callable[[httpx.Client], httpx.Response] | None = None


def _created(audited: Audited, answer: httpx.Response) -> tuple[str, str]:
    return "files", answer.json()["items"][0]["id"]


def _old_file(audited: Audited, answer: httpx.Response) -> tuple[str, str]:
    return "files", audited.file["id"]


def _its_job(audited: Audited, answer: httpx.Response) -> tuple[str, str]:
    return "jobs", answer.json()["id"]


def _old_job(audited: Audited, answer: httpx.Response) -> tuple[str, str]:
    return "jobs", audited.job


def _named(name: str) -> Callable[[Audited, httpx.Response], tuple[str, str]]:
    return lambda audited, answer: ("names", name)


def _in_address(field: str, segment: int) -> Callable[[Audited, httpx.Response], tuple[str, str]]:
    return lambda audited, answer: (field, answer.request.url.path.split("/")[segment])


NONE = str(uuid4())
KNOWN = {
    "POST /v1/files": Case(
        lambda a, http: http.post("/v1/files", content=picture()),
        "file.uploaded",
        _created,
        lambda http: http.post("/v1/files", content=b"no picture"),
    ),
    "GET /v1/files": Case(
        lambda a, http: http.get("/v1/files", params={"limit": 1000}),
        "file.listed",
        _old_file,
        lambda http: http.get("/v1/files?limit=0"),
    ),
    "HEAD /v1/files/sha256:{sha256}": Case(
        lambda a, http: http.head(f"/v1/files/sha256:{a.file['sha256']}"),
        "file.seen",
        None,
        lambda http: http.head("/v1/files/sha256:none"),
    ),
    "POST /v1/files/sha256:{sha256}": Case(
        lambda a, http: http.post(f"/v1/files/sha256:{a.file['sha256']}"),
        "file.added",
        lambda a, answer: ("files", answer.json()["id"]),
        lambda http: http.post(f"/v1/files/sha256:{'0' * 64}"),
    ),
    "GET /v1/files/{file_id}": Case(
        lambda a, http: http.get(f"/v1/files/{a.file['id']}"),
        "file.seen",
        _old_file,
        lambda http: http.get(f"/v1/files/{NONE}"),
    ),
    "GET /v1/files/{file_id}/content": Case(
        lambda a, http: http.get(f"/v1/files/{a.file['id']}/content"),
        "file.read",
        _old_file,
        lambda http: http.get(f"/v1/files/{NONE}/content"),
    ),
    "PATCH /v1/files/{file_id}": Case(
        lambda a, http: http.patch(f"/v1/files/{a.file['id']}", json={"pinned": True}),
        "file.changed",
        _old_file,
        lambda http: http.patch(f"/v1/files/{NONE}", json={"pinned": True}),
    ),
    "DELETE /v1/files/sha256:{sha256}": Case(
        lambda a, http: http.delete(f"/v1/files/sha256:{a.new_file()['sha256']}", params={"purge": "true"}),
        "file.purged",
        lambda a, answer: ("files", answer.json()["file_ids"][0]),
        lambda http: http.delete(f"/v1/files/sha256:{'0' * 64}", params={"purge": "true"}),
    ),
    "DELETE /v1/files/{file_id}": Case(
        lambda a, http: http.delete(f"/v1/files/{a.new_file()['id']}"),
        "file.deleted",
        _in_address("files", 3),
        lambda http: http.delete(f"/v1/files/{NONE}"),
    ),
    "POST /v1/predict": Case(
        lambda a, http: http.post("/v1/predict", files={"image": picture()}),
        "job.predicted",
        _its_job,
        lambda http: http.post("/v1/predict", files={"image": picture()}, data={"model": "none"}),
    ),
    "POST /v1/jobs": Case(
        lambda a, http: http.post("/v1/jobs", json={"inputs": [{"file": a.file["id"]}]}),
        "job.submitted",
        _its_job,
        lambda http: http.post("/v1/jobs", json={"inputs": [{"file": NONE}]}),
    ),
    "GET /v1/jobs": Case(
        lambda a, http: http.get("/v1/jobs", params={"limit": 1000}),
        "job.listed",
        _old_job,
        lambda http: http.get("/v1/jobs?state=none"),
    ),
    "GET /v1/jobs/{job_id}": Case(
        lambda a, http: http.get(f"/v1/jobs/{a.job}"),
        "results.read",
        _old_job,
        lambda http: http.get(f"/v1/jobs/{NONE}"),
    ),
    "GET /v1/jobs/{job_id}/results": Case(
        lambda a, http: http.get(f"/v1/jobs/{a.job}/results"),
        "results.read",
        _old_job,
        lambda http: http.get(f"/v1/jobs/{NONE}/results"),
    ),
    "POST /v1/jobs/{job_id}/cancel": Case(
        lambda a, http: http.post(f"/v1/jobs/{a.new_job()}/cancel"),
        "job.cancelled",
        _its_job,
        lambda http: http.post(f"/v1/jobs/{NONE}/cancel"),
    ),
    "POST /v1/jobs/{job_id}/rerun": Case(
        lambda a, http: http.post(f"/v1/jobs/{a.job}/rerun"),
        "job.rerun",
        _its_job,
        lambda http: http.post(f"/v1/jobs/{NONE}/rerun"),
    ),
    "POST /v1/jobs/retry": Case(
        lambda a, http: http.post("/v1/jobs/retry", json={"all_tenants": True}),
        "job.retried",
        None,
        lambda http: http.post("/v1/jobs/retry", json={"state": "none"}),
    ),
    "GET /v1/models": Case(lambda a, http: http.get("/v1/models"), "model.listed"),
    "GET /v1/models/{name}": Case(
        lambda a, http: http.get("/v1/models/digits"),
        "model.seen",
        _named("digits"),
        lambda http: http.get("/v1/models/none"),
    ),
    "POST /v1/models/{name}/retire": Case(
        lambda a, http: http.post("/v1/models/retired/retire"),
        "model.retired",
        _named("retired"),
        lambda http: http.post("/v1/models/none/retire"),
    ),
    "GET /v1/pools": Case(lambda a, http: http.get("/v1/pools"), "pool.listed"),
    "POST /v1/pools/{name}/pause": Case(
        lambda a, http: http.post("/v1/pools/retired/pause"),
        "pool.paused",
        _named("retired"),
        lambda http: http.post("/v1/pools/none/pause"),
    ),
    "POST /v1/pools/{name}/drain": Case(
        lambda a, http: http.post("/v1/pools/retired/drain"),
        "pool.drained",
        _named("retired"),
        lambda http: http.post("/v1/pools/none/drain"),
    ),
    "POST /v1/pools/{name}/resume": Case(
        lambda a, http: http.post("/v1/pools/retired/resume"),
        "pool.resumed",
        _named("retired"),
        lambda http: http.post("/v1/pools/none/resume"),
    ),
    "GET /v1/cluster": Case(lambda a, http: http.get("/v1/cluster"), "cluster.seen"),
    "POST /v1/keys": Case(
        lambda a, http: http.post("/v1/keys", json={"name": "k", "role": "reader"}),
        "key.created",
        lambda a, answer: ("keys", answer.json()["id"]),
        lambda http: http.post("/v1/keys", json={"name": "k", "role": "emperor"}),
    ),
    "GET /v1/keys": Case(lambda a, http: http.get("/v1/keys"), "key.listed", lambda a, answer: ("keys", a.key_id)),
    "DELETE /v1/keys/{key_id}": Case(
        lambda a, http: http.delete(f"/v1/keys/{a.new_key()}"),
        "key.revoked",
        _in_address("keys", 3),
        lambda http: http.delete(f"/v1/keys/{NONE}"),
    ),
    # What the audit itself answers, what is no tenant's, and what needs no key.
    "GET /v1/tenant": Case(lambda a, http: http.get("/v1/tenant"), "tenant.seen"),
    "PATCH /v1/tenant": Case(
        lambda a, http: http.patch("/v1/tenant", json={"file_retention_days": 30}),
        "tenant.changed",
        None,
        lambda http: http.patch("/v1/tenant", json={"file_retention_days": 0}),
    ),
    "GET /v1/audit": Case(lambda a, http: http.get("/v1/audit"), "audit.listed"),
    "GET /livez": Case(lambda a, http: http.get("/livez"), None),
    "GET /readyz": Case(lambda a, http: http.get("/readyz"), None),
    "GET /health": Case(lambda a, http: http.get("/health"), None),
    "GET /health/detailed": Case(lambda a, http: http.get("/health/detailed"), None),
    "GET /metrics": Case(lambda a, http: http.get("/metrics"), None),
    "GET /docs": Case(lambda a, http: http.get("/docs"), None),
}
"""A route that is new belongs here, with the receipt that it leaves."""


def routes() -> list[str]:
    """Of the app, whether its OpenAPI document shows them or not."""
    app = build_app(cast("Broker", SimpleNamespace(metrics=BrokerMetrics())))
    found = [f"{method} {route.path}" for route in _below(app.routes) for method in sorted(route.methods)]
    documented = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    assert documented <= set(found)
    return found


def _below(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (router := getattr(route, "original_router", None)) is not None:
            yield from _below(router.routes)


@pytest.mark.parametrize("route", routes())
def test_every_route_leaves_the_receipt_that_the_table_says(audited: Audited, route: str) -> None:
    case = KNOWN[route]
    request_id = f"done-{uuid4()}"
    with audited.service.client() as http:
        # What the case needs is made by another client: its requests have other ids.
        http.headers["X-Request-ID"] = request_id
        answer = case.ask(audited, http)
    assert answer.is_success, answer.text
    if case.action is None:
        assert audited.receipts(request_id) == []
        return
    found = audited.http.get("/v1/audit", params={"request_id": request_id}).json()["items"]
    receipts = [receipt for receipt in found if receipt["action"] == case.action]
    assert [receipt["key_id"] for receipt in receipts] == [audited.key_id], found
    assert receipts[0]["outcome"] == "done"
    if case.objects is not None:
        field, name = case.objects(audited, answer)
        named = receipts[0][field]
        assert name in [each["id"] if isinstance(each, dict) else each for each in named]
        if field != "names":
            by_object = audited.http.get("/v1/audit", params={"object": name}).json()["items"]
            assert receipts[0] in by_object
    if route in ("HEAD /v1/files/sha256:{sha256}", "GET /v1/files/{file_id}/content", "POST /v1/files/sha256:{sha256}"):
        assert [file["sha256"] for file in receipts[0]["files"]] == [audited.file["sha256"]]


def test_a_purge_that_is_sent_again_leaves_a_receipt_that_says_so(audited: Audited) -> None:
    file = audited.new_file()
    for _ in range(2):
        answer = audited.http.delete(f"/v1/files/{file['id']}", params={"purge": "true"})
        assert answer.is_success
    found = audited.http.get("/v1/audit", params={"object": file["id"], "action": "file.purged"}).json()["items"]
    assert [receipt["outcome"] for receipt in found] == ["replayed", "done"]
    assert {receipt["details"]["id"] for receipt in found} == {answer.json()["id"]}


@pytest.mark.parametrize("route", [route for route, case in KNOWN.items() if case.refuse])
def test_a_refused_request_leaves_no_receipt(audited: Audited, route: str) -> None:
    refuse = KNOWN[route].refuse
    assert refuse is not None
    request_id = f"refused-{uuid4()}"
    with audited.service.client() as http:
        http.headers["X-Request-ID"] = request_id
        assert 400 <= refuse(http).status_code < 500
    assert audited.receipts(request_id) == []
    assert audited.service.ask("SELECT id FROM wharf.audit WHERE request_id = %s", request_id) == []


def test_who_may_not_is_in_the_log_and_leaves_no_receipt(audited: Audited) -> None:
    reader = audited.http.post("/v1/keys", json={"name": "r", "role": "reader"}).json()
    for secret, status in ((reader["secret"], 403), ("wharf_none", 401)):
        request_id = f"denied-{uuid4()}"
        with audited.service.client(secret) as http:
            assert http.post("/v1/files", headers={"X-Request-ID": request_id}).status_code == status
            assert http.get("/v1/audit").status_code == status
        assert audited.receipts(request_id) == []
        [line] = [
            json.loads(line)
            for line in audited.broker.output().splitlines()
            if request_id in line and "request_finished" in line
        ]
        assert line["status"] == status
        assert line.get("key_id") == (reader["id"] if status == 403 else None)


def test_a_request_sent_again_leaves_a_receipt_that_says_so(audited: Audited) -> None:
    content = picture()
    posts: list[Callable[[httpx.Client], httpx.Response]] = [
        lambda http: http.post("/v1/files", content=content),
        lambda http: http.post(f"/v1/files/sha256:{audited.file['sha256']}"),
        lambda http: http.post("/v1/predict", files={"image": content}),
        lambda http: http.post("/v1/jobs", json={"inputs": [{"file": audited.file["id"]}]}),
        lambda http: http.post("/v1/keys", json={"name": "k", "role": "reader"}),
        lambda http: http.post(f"/v1/jobs/{audited.job}/rerun"),
    ]
    for post in posts:
        request_id = f"again-{uuid4()}"
        with audited.service.client() as http:
            http.headers.update({"X-Request-ID": request_id, "Idempotency-Key": request_id})
            assert post(http).is_success
            assert post(http).is_success
        again, first = audited.receipts(request_id)
        assert (first["outcome"], again["outcome"]) == ("done", "replayed")
        assert first["action"] == again["action"]
        assert named(again) == named(first)


def named(receipt: dict[str, object]) -> object:
    """The first thing that it names: what came of the request."""
    for kind in ("jobs", "keys", "files"):
        match receipt[kind]:
            case [first, *_]:
                return first
    return None


def test_only_what_is_told_counts_as_read(audited: Audited) -> None:
    address = f"/v1/files/{audited.file['id']}/content"
    for headers, status, found in (
        ({"If-None-Match": f'"{audited.file["sha256"]}"'}, 304, []),
        ({"Range": "bytes=999999999-"}, 416, []),
        ({"Range": "bytes=0-9"}, 206, [f"bytes 0-9/{audited.file['size']}"]),
    ):
        request_id = f"part-{uuid4()}"
        assert audited.http.get(address, headers={**headers, "X-Request-ID": request_id}).status_code == status
        receipts = audited.receipts(request_id)
        assert [cast("dict[str, str]", receipt["details"])["range"] for receipt in receipts] == found
    for job, action in ((audited.new_job(), "job.seen"), (audited.job, "results.read")):
        request_id = f"job-{uuid4()}"
        audited.http.get(f"/v1/jobs/{job}", headers={"X-Request-ID": request_id})
        assert [receipt["action"] for receipt in audited.receipts(request_id)] == [action]


def test_a_job_that_is_cancelled_twice_has_one_receipt_of_it(audited: Audited) -> None:
    job = audited.new_job()
    for _ in range(2):
        assert audited.http.post(f"/v1/jobs/{job}/cancel").status_code == 200
    found = audited.http.get("/v1/audit", params={"object": job, "action": "job.cancelled"}).json()["items"]
    assert len(found) == 1


def test_nothing_is_done_and_nothing_told_where_no_receipt_can_be_written(audited: Audited) -> None:
    job = audited.new_job()
    before = (audited.service.rows(), audited.service.staged())
    with psycopg.connect(audited.service.database, autocommit=True) as connection:
        connection.execute("REVOKE INSERT ON wharf.audit_objects FROM wharf_api")
        try:
            for answer in (
                audited.http.post("/v1/files", content=picture()),
                audited.http.delete(f"/v1/files/{audited.file['id']}"),
                audited.http.get(f"/v1/files/{audited.file['id']}/content"),
                audited.http.get(f"/v1/jobs/{audited.job}/results"),
                audited.http.get(f"/v1/jobs/{audited.job}"),
                audited.http.post(f"/v1/jobs/{job}/cancel"),
                audited.http.post("/v1/pools/retired/pause"),
            ):
                assert_problem(answer, 503, "audit_unavailable")
                assert answer.headers["Retry-After"] == "5"
        finally:
            connection.execute("GRANT INSERT ON wharf.audit_objects TO wharf_api")
    assert (audited.service.rows(), audited.service.staged()) == before
    assert audited.http.get(f"/v1/jobs/{job}").json()["state"] == "queued"
    assert audited.http.get(f"/v1/files/{audited.file['id']}/content").status_code == 200


def test_tenants_do_not_see_each_others_receipts_but_the_key_that_the_operator_made_them(audited: Audited) -> None:
    tenant = f"t-{uuid4().hex}"
    asked = {"name": "first", "role": "admin", "tenant": tenant}
    made = audited.http.post("/v1/keys", json=asked).json()
    with audited.service.client(made["secret"]) as stranger:
        [created] = stranger.get("/v1/audit").json()["items"]
        assert (created["action"], created["key_id"], created["keys"]) == ("key.created", audited.key_id, [made["id"]])
        assert stranger.get("/v1/audit", params={"object": audited.file["id"]}).json()["items"] == []
        assert stranger.get("/v1/audit", params={"key": audited.key_id}).json()["items"] == [created]
    assert len(audited.http.get("/v1/audit", params={"object": made["id"]}).json()["items"]) == 1


def test_receipts_come_in_pages_newest_first(audited: Audited) -> None:
    file = audited.new_file()["id"]
    for _ in range(4):
        audited.http.get(f"/v1/files/{file}/content")
    every = audited.http.get("/v1/audit", params={"object": file}).json()["items"]
    assert [receipt["action"] for receipt in every] == ["file.read"] * 4 + ["file.uploaded"]
    paged: Receipts = []
    cursor = None
    while cursor or not paged:
        page = audited.http.get(
            "/v1/audit", params={"object": file, "limit": 2, **({"cursor": cursor} if cursor else {})}
        )
        paged += page.json()["items"]
        cursor = page.json()["next_cursor"]
    assert paged == every


@pytest.mark.parametrize(
    "garbage",
    [
        "object=17", "key=%00", "action=nothing", "action=a.b%00", f"action=a.{'b' * 40}", "request_id=",
        "request_id=a%20b", f"request_id={'a' * 129}", "since=yesterday", "since=2026-01-01T00:00:00",
        "until=99999-01-01", "until=nan", "until=0.5", "since=17",
        "limit=0", "limit=1001", "limit=x", "cursor=x", "cursor=%ff", "cursor=MTc",
    ],
)  # fmt: skip
def test_filters_that_are_garbage_are_refused(audited: Audited, garbage: str) -> None:
    assert_problem(audited.http.get(f"/v1/audit?{garbage}"), 422, "invalid_request", garbage.partition("=")[0])


def test_the_edges_of_time_are_no_error(audited: Audited) -> None:
    edges = {"since": "0001-01-01T00:00:00Z", "until": "9999-12-31T23:59:59Z", "limit": 1}
    assert len(audited.http.get("/v1/audit", params=edges).json()["items"]) == 1
    assert audited.http.get("/v1/audit?since=9999-12-31T23:59:59Z").json()["items"] == []


def test_the_sdk_and_the_command_line_show_receipts(audited: Audited) -> None:
    before = datetime.now(UTC)
    file = audited.new_file()["id"]
    for number in range(3):
        audited.http.get(f"/v1/files/{file}/content", headers={"X-Request-ID": f"read-{number}"})
    with Client(audited.service.url, audited.service.key) as client:
        found = list(client.audit.list(object=file, since=before - timedelta(seconds=60), page_size=2))
        assert [receipt.action for receipt in found] == ["file.read"] * 3 + ["file.uploaded"]
        assert list(client.audit.list(object=file, until=before - timedelta(seconds=60))) == []
        assert [receipt.request_id for receipt in client.audit.list(object=file, action="file.read")] == [
            "read-2", "read-1", "read-0",
        ]  # fmt: skip
        assert list(client.audit.list(object=file, key=uuid4())) == []
    listed = wharf(audited, "--file", file, "--key", audited.key_id, "--since", "2020-01-01", "--json")
    assert json.loads(listed)["items"] == [receipt.model_dump(mode="json") for receipt in found]
    shown = wharf(audited, "--file", file, "--action", "file.read", "--limit", "2")
    assert [line.split()[2:] for line in shown.splitlines() if "read-" in line] == [
        ["file.read", file, audited.key_id, f"read-{number}"] for number in (2, 1)
    ]
    job = wharf(audited, "--job", audited.job, "--action", "job.submitted")
    assert f"{audited.job} +2" in job  # its file and its model


def wharf(audited: Audited, *arguments: str) -> str:
    environment = clean_environment({"WHARF_SERVER": audited.service.url, "WHARF_API_KEY": audited.service.key})
    done = subprocess.run(
        [*WHARF, "audit", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout
