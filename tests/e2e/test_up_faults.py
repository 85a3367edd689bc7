"""`wharf up` stopped, killed in part and killed whole, under load: its promises hold, and nothing is left running."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e import boxes
from tests.e2e.ledger import Ledger, clients
from tests.e2e.service import Service, Up, alive, answers, family, kill, until
from tests.e2e.wire import connection, head

PROMISES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("faults"))
    yield up
    up.part.stop()


@pytest.fixture
def running(folder: Up) -> Up:
    """A `wharf up` that every test may kill: the next one starts it on the same folder again."""
    if folder.part.process is None or folder.part.process.poll() is not None:
        folder.start()
    return folder


@pytest.fixture
def service(running: Up) -> Service:
    return running.service()


def test_ctrl_c_leaves_nothing_behind_and_the_next_start_finds_everything(
    running: Up, service: Service, page: bytes
) -> None:
    with service.client() as http:
        sent = http.post("/v1/predict", files={"image": page}, headers={"Prefer": "wait=30"}).json()
    processes = family(running.part.pid)
    assert len(processes) >= 6  # supervisor, postgres and its own, broker, worker, slots
    os.killpg(running.part.pid, signal.SIGINT)  # as a terminal does
    assert running.part.ended() == 0
    assert not alive(processes)
    assert not answers(f"{service.url}/livez")
    assert sockets(running.data) == []
    assert not (running.data / "postgres" / "cluster" / "postmaster.pid").exists()
    assert not (running.state / "wharfinger" / "current").exists()
    assert service.staged() == []
    again = running.start()
    assert again.key == service.key
    with again.client() as http:
        assert http.get(f"/v1/jobs/{sent['id']}").json() == sent
        assert http.get(f"/v1/files/{sent['results'][0]['file_id']}/content").content == page


def test_the_supervisor_killed_takes_everything_with_it(running: Up, service: Service) -> None:
    processes = family(running.part.pid)
    running.part.send(signal.SIGKILL)
    assert running.part.ended() == -signal.SIGKILL
    until(lambda: not alive(processes), "every process has ended")
    assert_works(running.start())


@pytest.mark.parametrize("name", ["broker", "worker"])
def test_a_part_that_is_killed_under_load_is_started_again(
    running: Up, service: Service, page: bytes, name: str
) -> None:
    with clients(service, page) as ledger:
        until(lambda: ledger.promises >= PROMISES, "promises are given")
        killed = running.child(name)
        killed.kill()
        until(lambda: replaced(running, name, killed), f"another {name} runs")
        before = ledger.promises
        until(lambda: ledger.promises >= before + PROMISES, "promises are given again")
    assert ledger.refusals == set()
    ledger.check(service)


def test_postgres_killed_under_load_recovers_and_the_service_with_it(
    running: Up, service: Service, page: bytes
) -> None:
    parts = [running.child(name) for name in ("broker", "worker")]
    with clients(service, page) as ledger:
        until(lambda: ledger.promises >= PROMISES, "promises are given")
        killed = running.child("postgres")
        killed.kill()
        until(lambda: replaced(running, "postgres", killed), "another Postgres runs")
        before = ledger.promises
        until(lambda: ledger.promises >= before + PROMISES, "promises are given again")
    # Whoever was in the middle of a statement is told to try again; the others waited and noticed nothing.
    assert ledger.refusals <= {(503, "database_unavailable")}
    ledger.check(service)
    assert alive(parts) == parts  # nobody else had to be started again


def test_everything_killed_under_load_keeps_every_promise(running: Up, service: Service, page: bytes) -> None:
    ledger = killed_whole(running, service, page)
    assert service.staged() != []
    ledger.check(running.start())


def test_a_second_up_on_the_same_folder_is_refused_and_disturbs_nothing(
    running: Up, service: Service, tmp_path: Path
) -> None:
    second = Up(tmp_path)
    second.part.arguments = ("up", "--data", str(running.data), "--port", str(second.port))
    second.part.start()
    try:
        assert second.part.ended(20) == 1
        assert "in use" in second.part.output()
        assert "--data" in second.part.output()
        assert_works(service)
    finally:
        second.part.stop()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        up = Up(tmp_path)
        port = str(taken.getsockname()[1])
        up.part.arguments = ("up", "--data", str(up.data), "--port", port)
        up.part.start()
        try:
            assert up.part.ended(20) == 1
            assert f"127.0.0.1:{port}" in up.part.output()
            assert "--port" in up.part.output()
            assert "Traceback" not in up.part.output()
        finally:
            up.part.stop()


def killed_whole(up: Up, service: Service, page: bytes) -> Ledger:
    """Under load, and in the middle of an upload."""
    with clients(service, page) as ledger, connection(service.url) as opened:
        opened.sendall(head("POST", "/v1/files", ledger.key, "Content-Length: 9000000") + page + bytes(3_000_000))
        until(lambda: ledger.promises >= PROMISES and service.staged(), "promises are given and bytes under way")
        kill(family(up.part.pid))
        assert up.part.ended() == -signal.SIGKILL
    return ledger


def assert_works(service: Service) -> None:
    page = (Path(__file__).parents[2] / "starter_model" / "page.png").read_bytes()
    with service.client(service.new_key()) as http:
        answer = http.post("/v1/predict", files={"image": page}, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    boxes.assert_same(boxes.seen(answer.json()["results"][0]), boxes.digits())


def replaced(up: Up, name: str, killed: psutil.Process) -> bool:
    return [each.pid for each in up.children(name) if each.pid != killed.pid] != []


def sockets(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_socket()]
