"""A picture that its owner takes back: all that was made of it is gone, whatever is running and whatever dies."""

import io
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from PIL import Image

from standalone.postgres import Postgres
from tests.e2e import boxes
from tests.e2e.conftest import new_database
from tests.e2e.problems import assert_problem
from tests.e2e.service import Installation, Part, Service, start_worker, until
from tests.faults.fleet import POOL, WORKER

UNKNOWN_ID = "01a1ffff-0000-7000-8000-000000000000"
WAIT = {"Prefer": "wait=30"}
SLOW = 255
"""A grey: the milliseconds that the `QuickEngine` takes."""


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key()) as client:
        yield client


def purge(http: httpx.Client, name: str) -> httpx.Response:
    return http.delete(f"/v1/files/{name}", params={"purge": "true"})


def own(page: bytes) -> bytes:
    """The page in bytes that nobody else has."""
    return page + uuid4().bytes


def mentions(service: Service, text: str) -> list[str]:
    """The tables of which some row has this text in it."""
    tables = service.ask(
        "SELECT relname FROM pg_class WHERE relnamespace = 'wharf'::regnamespace AND relkind = 'r' ORDER BY relname"
    )
    like = f"%{text}%"
    return [
        str(table)
        for (table,) in tables
        if service.ask(f"SELECT 1 FROM wharf.{table} t WHERE t::text LIKE %s LIMIT 1", like)
    ]


def test_nothing_is_left_of_a_purged_picture_but_that_it_was_there(
    up: Service, http: httpx.Client, page: bytes
) -> None:
    picture, secret = own(page), uuid4().hex
    keyed = {"Idempotency-Key": uuid4().hex}
    uploaded = http.post("/v1/files", files={"file": (f"{secret}.png", picture)}, headers=keyed)
    [file] = uploaded.json()["items"]
    job = http.post(
        "/v1/predict", files={"image": (f"{secret}-again.png", picture)}, data={"metadata": '{"a": 1}'}, headers=WAIT
    ).json()
    assert boxes.seen(job["results"][0])
    assert mentions(up, secret) == ["files", "tasks"]
    receipt = purge(http, file["id"])
    assert receipt.status_code == 200
    told = receipt.json()
    assert sorted(told["file_ids"]) == sorted([file["id"], job["results"][0]["file_id"]])
    assert (told["sha256"], told["files"], told["results"], told["tasks_cancelled"]) == (file["sha256"], 2, 1, 0)
    assert told["purged_at"] < told["bytes_gone_by"]
    after = http.get(f"/v1/jobs/{job['id']}").json()
    [result] = after["results"]
    assert (after["state"], after["progress"], result["state"]) == ("succeeded", job["progress"], "succeeded")
    assert result["purged_at"] == told["purged_at"]
    assert (result["detections"], result["filename"], result["model"], result["timings"]) == (None,) * 4
    assert mentions(up, secret) == []
    assert (
        up.ask("SELECT task_id FROM wharf.results JOIN wharf.tasks t ON t.id = task_id WHERE job_id = %s", job["id"])
        == []
    )
    assert_problem(http.get(f"/v1/files/{file['id']}"), 404, "not_found")
    assert_problem(http.get(f"/v1/files/{file['id']}/content"), 404, "not_found")
    assert http.head(f"/v1/files/sha256:{file['sha256']}").status_code == 404
    assert_problem(http.post(f"/v1/files/sha256:{file['sha256']}"), 404, "not_found")
    again = http.post("/v1/files", files={"file": (f"{secret}.png", picture)}, headers=keyed)
    assert_problem(again, 410, "gone")
    assert http.get("/v1/files").json()["items"] == []


def test_a_purge_whose_answer_was_lost_gives_the_same_receipt_again(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", content=own(page)).json()["items"]
    first = purge(http, file["id"])
    assert purge(http, file["id"]).json() == first.json()
    assert purge(http, f"sha256:{file['sha256']}").json() == first.json()


def test_a_pinned_or_deleted_file_is_purged_too(http: httpx.Client, page: bytes) -> None:
    for let_go in (False, True):
        [file] = http.post("/v1/files", content=own(page)).json()["items"]
        http.patch(f"/v1/files/{file['id']}", json={"pinned": True})
        if let_go:
            assert http.delete(f"/v1/files/{file['id']}").status_code == 204
        assert purge(http, file["id"]).json()["file_ids"] == [file["id"]]


def test_another_tenants_same_bytes_stay_and_still_infer_and_the_receipt_does_not_tell(
    up: Service, http: httpx.Client, page: bytes
) -> None:
    shared, alone = own(page), own(page)
    with up.client(up.new_key()) as other:
        [theirs] = other.post("/v1/files", content=shared).json()["items"]
        receipts = []
        for picture in (shared, alone):
            [mine] = http.post("/v1/files", content=picture).json()["items"]
            receipts.append(purge(http, mine["id"]).json())
        for receipt in receipts:
            assert {name: receipt[name] for name in ("files", "results", "tasks_cancelled")} == {
                "files": 1, "results": 0, "tasks_cancelled": 0,
            }  # fmt: skip
        assert set(receipts[0]) == set(receipts[1])
        assert other.get(f"/v1/files/{theirs['id']}/content").content == shared
        job = other.post("/v1/jobs", json={"inputs": [{"file": theirs["id"]}]}, headers=WAIT).json()
        assert job["state"] == "succeeded"
        boxes.assert_same(boxes.seen(job["results"][0]), boxes.digits())
        # A stranger can purge neither by the id nor by the bytes, and learns the same of both as of what never was.
        with up.client(up.new_key()) as stranger:
            for name in (theirs["id"], f"sha256:{theirs['sha256']}", UNKNOWN_ID, f"sha256:{'0' * 64}"):
                assert_problem(purge(stranger, name), 404, "not_found")
        assert other.get(f"/v1/files/{theirs['id']}").status_code == 200


def test_who_may_purge_pin_and_set_the_retention(up: Service, page: bytes) -> None:
    tenant = f"t-{uuid4().hex}"
    with (
        up.client(up.new_key("reader", tenant)) as reader,
        up.client(up.new_key("writer", tenant)) as writer,
        up.client(up.new_key("admin", tenant)) as admin,
    ):
        [file] = writer.post("/v1/files", content=own(page)).json()["items"]
        address = f"/v1/files/{file['id']}"
        assert_problem(purge(reader, file["id"]), 403, "forbidden")
        assert_problem(purge(reader, f"sha256:{file['sha256']}"), 403, "forbidden")
        assert_problem(reader.patch(address, json={"pinned": True}), 403, "forbidden")
        for who in (reader, writer):
            assert_problem(who.get("/v1/tenant"), 403, "forbidden")
            assert_problem(who.patch("/v1/tenant", json={"file_retention_days": 1}), 403, "forbidden")
        assert reader.get(address).json() == file
        assert admin.get("/v1/tenant").json() == {
            "name": tenant, "file_retention_days": None, "job_retention_days": None,
        }  # fmt: skip


@pytest.mark.parametrize("value", ["yes please", "2", "", "\0", "NaN"])
def test_purge_is_true_or_false(http: httpx.Client, page: bytes, value: str) -> None:
    [file] = http.post("/v1/files", content=own(page)).json()["items"]
    for name in (file["id"], f"sha256:{file['sha256']}"):
        answer = http.delete(f"/v1/files/{name}", params={"purge": value})
        assert_problem(answer, 422, "invalid_request", "purge")
    assert http.get(f"/v1/files/{file['id']}").status_code == 200


def test_bytes_are_purged_and_never_just_deleted_by_their_sha256(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", content=own(page)).json()["items"]
    address = f"/v1/files/sha256:{file['sha256']}"
    assert_problem(http.delete(address), 422, "invalid_request", "purge")
    assert_problem(http.delete(address, params={"purge": "false"}), 422, "invalid_request", "purge")
    assert_problem(purge(http, "sha256:XYZ"), 422, "invalid_request", "sha256")
    assert_problem(purge(http, "not-an-id"), 404, "not_found")
    assert http.get(f"/v1/files/{file['id']}").status_code == 200


@contextmanager
def fleet(postgres: Postgres, folder: Path, amqp_url: str | None) -> Iterator[tuple[Service, Installation, Part, Part]]:
    """A service of its own, with a broker and one worker on the transport that is asked for."""
    with new_database(postgres) as database:
        installation = Installation(folder, lambda role: postgres.url(role, database))
        try:
            service = installation.migrate()
            broker = installation.broker(WHARF_DEFAULT_MODEL=POOL)
            settings = dict(WORKER)
            if amqp_url is not None:
                start_worker(installation.relay("r1", amqp_url, WHARF_RECONCILE_SECONDS="0.5"))
                settings["WHARF_AMQP_URL"] = amqp_url
            worker = installation.worker("w1", **settings)
            start_worker(worker)
            yield service, installation, broker, worker
        finally:
            installation.stop()


@pytest.fixture(params=["embedded", "amqp"])
def transport(request: pytest.FixtureRequest) -> str | None:
    """The URL of RabbitMQ, where tasks go through it."""
    return None if request.param == "embedded" else str(request.getfixturevalue("amqp_url"))


def test_a_job_that_runs_is_cancelled_and_its_late_worker_stores_nothing(
    postgres: Postgres, tmp_path: Path, transport: str | None
) -> None:
    with fleet(postgres, tmp_path, transport) as (service, _, _, worker), service.client(service.new_key()) as http:
        [file] = http.post("/v1/files", content=grey(SLOW)).json()["items"]
        job = http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}] * 20}).json()
        until(lambda: service.ask("SELECT 1 FROM wharf.tasks WHERE state = 'running'"), "an input runs")
        worker.send(signal.SIGSTOP)
        try:
            receipt = purge(http, file["id"]).json()
            held = service.ask("SELECT count(*) FROM wharf.tasks WHERE state = 'cancelled' AND attempt > 0")
        finally:
            worker.send(signal.SIGCONT)
        assert held[0][0] > 0
        ended = http.get(f"/v1/jobs/{job['id']}", headers=WAIT).json()
        states = [result["state"] for result in ended["results"]]
        assert states.count("cancelled") == receipt["tasks_cancelled"] > 0
        assert states.count("succeeded") == receipt["results"] == ended["progress"]["done"]
        assert (ended["state"], ended["progress"]["failed"]) == ("failed", 0)
        assert all(result["purged_at"] and result["detections"] is None for result in ended["results"])
        # The worker is well: it infers the next picture, once it has let go of what it held.
        assert http.post("/v1/predict", files={"image": grey(1)}, headers=WAIT).json()["state"] == "succeeded"
        left = "SELECT t.id FROM wharf.tasks t LEFT JOIN wharf.results r ON r.task_id = t.id WHERE t.job_id = %s AND "
        assert (
            service.ask(left + "(r.task_id IS NOT NULL OR t.state NOT IN ('cancelled', 'succeeded'))", job["id"]) == []
        )
        assert "Traceback" not in worker.output()


def test_a_broker_that_is_killed_within_a_purge_has_purged_nothing(postgres: Postgres, tmp_path: Path) -> None:
    with (
        fleet(postgres, tmp_path, None) as (service, installation, broker, _),
        service.client(service.new_key()) as http,
        ThreadPoolExecutor(1) as threads,
    ):
        picture = grey(1)
        [file] = http.post("/v1/files", files={"file": ("secret.png", picture)}).json()["items"]
        job = http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}]}, headers=WAIT).json()
        before = everything(service)
        with psycopg.connect(service.database) as connection:
            connection.execute("SELECT 1 FROM wharf.results FOR UPDATE")
            purging: Future[httpx.Response] = threads.submit(purge, http, file["id"])
            until(lambda: waiting(service), "the purge has cancelled and waits for the result's row")
            broker.send(signal.SIGKILL)
            broker.ended()
            with pytest.raises(httpx.TransportError):
                purging.result(30)
        until(
            lambda: (
                not service.ask(
                    "SELECT 1 FROM pg_stat_activity"
                    " WHERE application_name = 'wharf broker' AND datname = current_database()"
                )
            ),
            "it is over",
        )
        assert everything(service) == before
        installation.broker(WHARF_DEFAULT_MODEL=POOL)
        assert http.get(f"/v1/jobs/{job['id']}").json()["results"] == job["results"]
        assert purge(http, file["id"]).json()["results"] == 1
        assert mentions(service, "secret") == []


def test_the_next_cleanup_takes_the_bytes_that_nobody_else_has_from_the_volume(
    postgres: Postgres, tmp_path: Path
) -> None:
    with (
        fleet(postgres, tmp_path, None) as (service, installation, _, _),
        service.client(service.new_key()) as http,
        service.client(service.new_key()) as other,
    ):
        alone, shared, deleted = grey(10), grey(20), grey(30)
        mine = {
            picture: http.post("/v1/files", content=picture).json()["items"][0]["id"]
            for picture in (alone, shared, deleted)
        }
        [theirs] = other.post("/v1/files", content=shared).json()["items"]
        assert all(on_volume(service, picture) for picture in mine)
        # What is only deleted has its grace.
        http.delete(f"/v1/files/{mine[deleted]}")
        for picture in (alone, shared):
            assert purge(http, mine[picture]).status_code == 200
        cleanup = installation._part("cleanup", ("cleanup",), "wharf_cleanup", {})
        cleanup.start()
        assert cleanup.ended() == 0, cleanup.output()
        assert on_volume(service, alone) == []
        assert len(on_volume(service, shared)) == len(on_volume(service, deleted)) == 1
        assert other.get(f"/v1/files/{theirs['id']}/content").content == shared


def on_volume(service: Service, content: bytes) -> list[Path]:
    """Whatever has these bytes in it, wherever it lies and whatever it is called."""
    return [path for path in service.volume.rglob("*") if path.is_file() and content in path.read_bytes()]


def everything(service: Service) -> dict[str, list[tuple[object, ...]]]:
    tables = ("files", "tasks", "results", "jobs", "suspects", "purges", "blobs")
    return {table: service.ask(f"SELECT t::text FROM wharf.{table} t ORDER BY 1") for table in tables}


def waiting(service: Service) -> bool:
    return bool(service.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%purge%%'"))


def grey(level: int) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (level,) * 3).save(picture, "PNG")
    return picture.getvalue()
