"""`wharf cleanup` as it is run: by `wharf up`, on a schedule beside brokers, and by hand."""

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.service import WHARF, Installation, Service, Up, clean_environment, start_worker, until

AT_ONCE = {"WHARF_CLEANUP_GRACE_SECONDS": "0"}
ROUNDS = 30


@pytest.fixture
def installation(postgres: Postgres, tmp_path: Path) -> Iterator[Installation]:
    with new_database(postgres) as database:
        installation = Installation(tmp_path, lambda role: postgres.url(role, database))
        try:
            yield installation
        finally:
            installation.stop()


def test_up_cleans_up_by_itself_and_shows_what_it_did(tmp_path, page):
    up = Up(tmp_path, {"WHARF_CLEANUP_EVERY_SECONDS": "0.5", **AT_ONCE})
    service = up.start()
    try:
        with client(service) as ask:
            file = upload(ask, page)
            until(lambda: len(history(up)) > 1, "two cleanups have run")
            assert bytes_in(service) == [page]
            assert ask.delete(f"/v1/files/{file}").status_code == 204
            until(lambda: bytes_in(service) == [], "the deleted file's bytes are gone")
        until(lambda: any(run["removed_blobs"] for run in history(up)), "the history tells of it")
        [told] = [run for run in history(up) if run["removed_blobs"]]
        assert (told["stopped"], told["expired_files"], told["freed_bytes"]) == ("done", 1, len(page))
        shown = cleanup(up, "--history", "--limit", "500").stdout
        assert "Freed" in shown
        assert shown.count("done") >= 2
    finally:
        up.part.stop()


def test_a_cleanup_on_a_schedule_has_probes_and_metrics_and_ends_when_it_is_asked(installation, page):
    service = installation.migrate()
    installation.broker()
    part = installation.cleanup("cleanup", 0.5, **AT_ONCE)
    start_worker(part)
    with client(service) as ask:
        assert ask.delete(f"/v1/files/{upload(ask, page)}").status_code == 204
    until(lambda: bytes_in(service) == [], "the deleted file's bytes are gone")
    health = f"http://127.0.0.1:{part.environment['WHARF_HEALTH_PORT']}"

    def told() -> str:
        return httpx.get(f"{health}/metrics", trust_env=False).text

    until(lambda: f"wharf_cleanup_freed_bytes_total {float(len(page))}" in told(), "the metrics tell of it")
    assert 'wharf_cleanup_removed_total{kind="bytes"} 1.0' in told()
    assert "wharf_cleanup_missing 0.0" in told()
    assert "wharf_cleanup_sweep_off 0.0" in told()
    with client(service) as ask:
        ask.get("/readyz")
        assert "wharf_last_cleanup_sweep_off 0.0" in ask.get("/metrics").text
        assert 'wharf_last_cleanup{figure="errors"} 0.0' in ask.get("/metrics").text
    part.stop()
    ends = {row[0] for row in service.ask("SELECT DISTINCT stopped FROM wharf.cleanup_runs")}
    assert {"done"} <= ends <= {"done", "asked"}


def test_uploads_of_the_same_bytes_beside_cleanups_lose_nothing(installation, page):
    service = installation.migrate()
    installation.broker()
    part = installation.cleanup("cleanup", 0.1, **AT_ONCE)
    start_worker(part)
    wrong: list[str] = []

    def upload_read_and_delete() -> None:
        with client(service) as ask:
            for _ in range(ROUNDS):
                file = upload(ask, page)
                read = ask.get(f"/v1/files/{file}/content")
                if read.status_code != 200 or read.content != page:
                    wrong.append(f"{read.status_code} {read.text[:200]}")
                ask.delete(f"/v1/files/{file}")

    uploaders = [threading.Thread(target=upload_read_and_delete) for _ in range(3)]
    for uploader in uploaders:
        uploader.start()
    for uploader in uploaders:
        uploader.join()
    assert wrong == []
    until(lambda: bytes_in(service) == [], "the last file's bytes are gone")
    assert service.ask("SELECT removed_blobs FROM wharf.cleanup_runs WHERE errors > 0") == []


def upload(ask: httpx.Client, content: bytes) -> str:
    answer = ask.post("/v1/files", files={"file": ("page.png", content)})
    assert answer.status_code in (200, 201), answer.text
    return answer.json()["items"][0]["id"]


def client(service: Service) -> httpx.Client:
    headers = {"Authorization": f"Bearer {service.key}"}
    return httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60)


def bytes_in(service: Service) -> list[bytes]:
    return [path.read_bytes() for path in (service.volume / "blobs").rglob("*") if path.is_file()]


def history(up: Up) -> list[dict]:
    return json.loads(cleanup(up, "--history", "--json", "--limit", "500").stdout)["items"]


def cleanup(up: Up, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*WHARF, "cleanup", "--data", str(up.data), *options]
    return subprocess.run(
        command, env=clean_environment({}), capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
