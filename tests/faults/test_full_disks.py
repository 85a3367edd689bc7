"""Small disks that run full under the volume, under PostgreSQL, and under all of a `wharf up`: what is refused is told
so, nothing is half done, what was promised stays, and all goes on by itself once there is room.

Where nothing may be mounted, the volume is put on a budget of bytes, and PostgreSQL is made to refuse what it is to
keep; a PostgreSQL that gives up without room for its log needs a real disk."""

import io
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
from PIL import Image

import starter_model
from broker.readiness import GOOD_SECONDS
from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.ledger import clients
from tests.e2e.service import Installation, Part, Service, Up, start_worker, until
from tests.e2e.wire import answer, connection, head
from tests.faults.fleet import POOL, WORKER
from tests.support.budget import Budget
from tests.support.disk import Disk

MB = 1_000_000
KINDS = (pytest.param(Disk, id="tmpfs"), pytest.param(Budget, id="budget"))
PAGE = starter_model.PAGE.read_bytes()
AnyDisk = TypeVar("AnyDisk", Disk, Budget)


@dataclass(frozen=True)
class Small:
    """A service whose volume is a disk of its own; `http` asks as a tenant."""

    disk: Disk | Budget
    service: Service
    installation: Installation
    worker: Part
    key: str
    http: httpx.Client

    def keep(self, megabytes: int) -> httpx.Response:
        return self.http.post("/v1/files", content=picture(megabytes))

    @contextmanager
    def full(self, spare: int = 0) -> Iterator[None]:
        """While the body runs, so many bytes of room are left, and the broker has seen it."""
        with self.disk.full(spare):
            until(lambda: abs(self.volume()["free_bytes"] - spare) < MB, "the broker has looked at the volume")
            yield

    def volume(self) -> dict[str, Any]:
        return dict(self.http.get("/health/detailed").json()["volume"])

    def takes_uploads(self) -> bool:
        return self.keep(1).status_code == 201


@pytest.fixture(scope="module", params=KINDS)
def small(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Small]:
    folder = tmp_path_factory.mktemp("small")
    with ExitStack() as stack:
        disk = stack.enter_context(made(request.param, folder / "volume"))
        database = stack.enter_context(new_database(postgres))
        installation = Installation(folder, lambda role: postgres.url(role, database), disk.environment)
        stack.callback(installation.stop)
        service = installation.migrate()
        installation.broker(WHARF_DEFAULT_MODEL=POOL, WHARF_RESULT_CACHE="false")
        worker = installation.worker("worker", **WORKER)
        start_worker(worker)
        key = service.new_key()
        yield Small(disk, service, installation, worker, key, stack.enter_context(service.client(key)))


@pytest.fixture(autouse=True)
def begins_with_room(request: pytest.FixtureRequest) -> None:
    if "small" in request.fixturenames:
        small = request.getfixturevalue("small")
        until(lambda: small.volume()["free_bytes"] > 100 * MB and small.takes_uploads(), "uploads are taken")


def test_an_upload_that_does_not_fit_is_refused_before_its_first_byte(small: Small) -> None:
    with small.full(30 * MB):
        with connection(small.service.url) as opened:
            opened.sendall(head("POST", "/v1/files", small.key, f"Content-Length: {20 * MB}"))
            assert_no_room(answer(opened))
        with connection(small.service.url) as opened:
            kind = "Content-Type: multipart/form-data; boundary=bb"
            opened.sendall(head("POST", "/v1/predict", small.key, kind, f"Content-Length: {20 * MB}"))
            assert_no_room(answer(opened))
        assert small.service.staged() == []
        assert small.keep(10).status_code == 201


def test_of_many_declared_uploads_at_once_no_more_begin_than_fit(small: Small) -> None:
    with small.full(40 * MB), ExitStack() as stack:
        opened = [stack.enter_context(connection(small.service.url)) for _ in range(12)]
        for each in opened:
            each.sendall(head("POST", "/v1/files", small.key, f"Content-Length: {6 * MB}"))
        begun = []
        for each in opened:
            each.settimeout(1)
            try:
                assert_no_room(answer(each))
            except TimeoutError:
                begun.append(each)
        assert len(begun) == 3  # each leaves others as much as its tenant has under way
        assert small.service.new_key()  # who may not upload may ask
        for each in begun:
            each.settimeout(20)
            each.sendall(picture(6)[: 6 * MB])
        assert {answer(each).status_code for each in begun} <= {201, 422}
    assert small.service.staged() == []


def test_without_a_length_an_upload_ends_where_the_mark_is_passed(small: Small) -> None:
    content = picture(40)
    with small.full(20 * MB):
        refused = small.http.post("/v1/files", content=(content[at : at + MB] for at in range(0, len(content), MB)))
        assert_no_room(refused)
        assert small.service.staged() == []
        until(small.takes_uploads, "the room of what was refused is had again")


def test_a_disk_that_runs_full_in_the_middle_of_an_upload_ends_it_and_leaves_nothing(small: Small) -> None:
    content = picture(8)
    with connection(small.service.url) as opened:
        opened.sendall(head("POST", "/v1/files", small.key, f"Content-Length: {len(content)}") + content[: 3 * MB])
        until(small.service.staged, "the upload is under way")
        with small.disk.full():
            opened.sendall(content[3 * MB :])
            assert_no_room(answer(opened))
            assert small.service.staged() == []
    until(lambda: small.http.post("/v1/files", content=content).status_code == 201, "it is taken when there is room")
    assert small.service.staged() == []


def test_on_a_full_disk_everything_but_uploads_goes_on(small: Small) -> None:
    held = small.keep(1).json()["items"][0]
    last_page = small.disk.path / "last page"
    with small.full():
        last_page.write_bytes(b"full")
        assert_no_room(small.keep(1))
        assert small.http.get(f"/v1/files/{held['id']}/content").status_code == 200
        work = {"inputs": [{"sha256": held["sha256"]}]}
        job = small.http.post("/v1/jobs", json=work, headers={"Prefer": "wait=30"})
        assert job.json().get("state") == "succeeded", job.text
        time.sleep(GOOD_SECONDS)
        assert small.http.get("/readyz").status_code == 200
        health = small.http.get("/health/detailed").json()
        assert (health["status"], health["volume"]["takes_uploads"]) == ("degraded", False)
        assert "nearly full" in " ".join(health["warnings"])
        metrics = small.http.get("/metrics").text
        assert "wharf_volume_pressed 1.0" in metrics
        assert 'wharf_uploads_refused_total{reason="storage_full"}' in metrics
        assert small.http.delete(f"/v1/files/{held['id']}").status_code == 204
    last_page.unlink()
    assert small.service.staged() == []


def test_on_a_full_disk_the_cleanup_makes_room_at_once_and_without_grace(small: Small) -> None:
    cleanup = small.installation.cleanup("cleanup", 3600, WHARF_CLEANUP_GRACE_SECONDS="3600")
    try:
        start_worker(cleanup)
        until(lambda: small.service.ask("SELECT id FROM wharf.cleanup_runs WHERE stopped = 'done'"), "it has cleaned")
        kept, let_go = (small.keep(10).json()["items"][0] for _ in range(2))
        assert small.http.delete(f"/v1/files/{let_go['id']}").status_code == 204
        with small.disk.full():
            until(small.takes_uploads, "there is room again, though nobody made the disk larger")
            assert small.http.get(f"/v1/files/{kept['id']}/content").status_code == 200
    finally:
        cleanup.stop()
    freed = small.service.ask("SELECT without_grace, stopped, freed_bytes FROM wharf.cleanup_runs WHERE under_pressure")
    assert (True, "done") in {(grace, stopped) for grace, stopped, _ in freed}
    assert sum(int(str(size)) for _, _, size in freed) >= 10 * MB
    assert "volume_nearly_full" in cleanup.output()
    assert "Traceback" not in cleanup.output()


def test_a_database_that_has_no_room_for_a_result_gets_it_once_there_is_some(small: Small) -> None:
    slow = io.BytesIO()
    Image.new("L", (32, 32), 250).save(slow, "PNG")  # the milliseconds that `QuickEngine` takes
    held = small.http.post("/v1/files", content=slow.getvalue()).json()["items"][0]
    job = small.http.post("/v1/jobs", json={"inputs": [{"sha256": held["sha256"]}] * 4}).json()["id"]
    said = small.worker.output().count("end_waits_for_database")
    with without_room(small.service):
        until(lambda: small.worker.output().count("end_waits_for_database") > said, "a result is refused")
        refused = small.http.post("/v1/files", content=picture(1))
        assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable"), refused.text
        assert "no room left on its disk" in refused.json()["detail"]
        assert int(refused.headers["Retry-After"]) > 0
        assert small.service.staged() == []
        assert small.http.get(f"/v1/jobs/{job}").json()["finished_at"] is None
    ended = small.http.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=30"}).json()
    assert (ended["state"], ended["progress"]["done"]) == ("succeeded", 4), ended
    stored = (
        "SELECT t.attempt, r.attempt FROM wharf.tasks t JOIN wharf.results r ON r.task_id = t.id WHERE t.job_id = %s"
    )
    assert small.service.ask(stored, job) == [(1, 1)] * 4  # nothing was looked at twice
    assert small.takes_uploads()
    assert "Traceback" not in small.worker.output()


def test_a_full_disk_under_postgres_loses_no_promise(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.data.mkdir()
    with made(Disk, up.data / "postgres") as disk:
        try:
            service = up.start()
            with clients(service, PAGE) as ledger:
                until(lambda: ledger.promises >= 12, "promises are given")
                with disk.full():
                    until(lambda: ledger.refusals or ledger.broken, "the database can write nothing more")
                    until(lambda: not survives_a_full_log(service), "it gives up without room for its log")
                before = ledger.promises
                until(lambda: ledger.promises >= before + 12, "promises are given again", 60)
            assert ledger.refusals <= {(503, "database_unavailable")}
            ledger.check(service)
        finally:
            up.part.stop()


@pytest.fixture(scope="module")
def one_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, Disk | Budget]]:
    """A `wharf up` with all that it keeps on a disk of its own; on a budget where nothing may be mounted."""
    up = Up(tmp_path_factory.mktemp("one"))
    up.data.mkdir()
    with ExitStack() as stack:
        disk: Disk | Budget = stack.enter_context(Disk(up.data))
        if not disk.allowed:
            disk = stack.enter_context(Budget(up.data))
        # On a disk of a usual size, the ballast is far smaller than what the high mark keeps free.
        marks = {"WHARF_HIGH_WATER": "0.6", "WHARF_LOW_WATER": "0.5"}
        up.part.environment = {**up.part.environment, **disk.environment, **marks}
        try:
            up.start()
            yield up, disk
        finally:
            up.part.stop()


def test_a_wharf_up_whose_only_disk_runs_full_recovers_once_files_are_let_go(
    one_disk: tuple[Up, Disk | Budget],
) -> None:
    up, disk = one_disk
    service = up.service()
    with service.client() as http:
        until(lambda: (up.data / "ballast").exists(), "it keeps some room")
        files = [http.post("/v1/files", content=picture(12)).json()["items"][0]["id"] for _ in range(8)]
        with disk.full():
            until(lambda: "were given back" in up.part.output(), "the room is given back")
            until(lambda: status(http, "POST", "/v1/files", PAGE + b"1") == 507, "uploads are refused")
            for file in files:
                until(lambda file=file: status(http, "DELETE", f"/v1/files/{file}") in (204, 404), "it is let go")
            until(lambda: status(http, "POST", "/v1/files", PAGE + b"2") == 201, "uploads are taken again")
            done = http.post("/v1/predict", files={"image": PAGE}, headers={"Prefer": "wait=30"})
            assert done.json()["state"] == "succeeded", done.text
        until(lambda: (up.data / "ballast").exists(), "it keeps some room again")
    assert service.ask("SELECT id FROM wharf.cleanup_runs WHERE under_pressure AND freed_bytes > 0")


def test_a_wharf_up_that_stopped_before_its_disk_ran_full_starts_again(one_disk: tuple[Up, Disk | Budget]) -> None:
    up, disk = one_disk
    until(lambda: (up.data / "ballast").exists(), "it keeps some room")
    up.part.stop()
    with disk.full():
        (up.data / "last page").write_bytes(b"full")
        assert up.start().rows()["files"] >= 0
    (up.data / "last page").unlink()


def test_a_start_on_a_full_disk_says_so(tmp_path: Path) -> None:
    up = Up(tmp_path)
    with made(Disk, up.data) as disk, disk.full():
        up.part.start()
        try:
            assert up.part.ended(20) == 1
        finally:
            up.part.stop()
    said = up.part.output()
    assert "Free some space" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_migration_on_a_full_volume_says_so_and_completes_later(
    kind: type[Disk | Budget], postgres: Postgres, tmp_path: Path
) -> None:
    with made(kind, tmp_path / "volume") as disk, new_database(postgres) as database:
        installation = Installation(tmp_path, lambda role: postgres.url(role, database), disk.environment)
        try:
            with disk.full():
                (disk.path / "last page").write_bytes(b"full")
                with pytest.raises(AssertionError, match=r"No space left on device"):
                    installation.migrate()
            assert "Traceback" not in (tmp_path / "migrate.log").read_text()
            assert list(disk.path.glob("volume-id*")) == []
            assert installation.migrate().key
        finally:
            installation.stop()


@contextmanager
def made(kind: type[AnyDisk], path: Path) -> Iterator[AnyDisk]:
    path.mkdir(parents=True)
    with kind(path) as disk:
        if not disk.allowed:
            pytest.skip("nothing may be mounted here: it takes root, and not everywhere is it enough")
        yield disk


def picture(megabytes: int) -> bytes:
    """One that nobody has sent before, of so many bytes and a few."""
    rows = -(-megabytes * MB // 3000)
    file = io.BytesIO()
    Image.frombytes("RGB", (1000, rows), random.randbytes(1000 * rows * 3)).save(file, "BMP")
    return file.getvalue()


def assert_no_room(refused: httpx.Response) -> None:
    assert (refused.status_code, refused.json()["code"]) == (507, "storage_full"), refused.text
    assert int(refused.headers["Retry-After"]) > 0


@contextmanager
def without_room(service: Service) -> Iterator[None]:
    """While the body runs, PostgreSQL refuses what it is to keep, with the error that a full disk brings."""
    with psycopg.connect(service.database, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            "  RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device'; END $$;"
            "DO $$ DECLARE place regclass; BEGIN"
            "  FOR place IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'wharf'::regnamespace LOOP"
            "    EXECUTE 'CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON '||place||' EXECUTE FUNCTION no_room()';"
            "  END LOOP; END $$"
        )
        try:
            yield
        finally:
            connection.execute("DROP FUNCTION public.no_room CASCADE")


def survives_a_full_log(service: Service) -> bool:
    """Asks PostgreSQL to begin another file of its log."""
    try:
        service.ask("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000))")
        service.ask("SELECT pg_switch_wal()")
    except psycopg.errors.DiskFull:
        return True
    except psycopg.OperationalError:
        return False
    return True


def status(http: httpx.Client, method: str, path: str, content: bytes | None = None) -> int:
    return http.request(method, path, content=content).status_code
