"""All processes through a transaction pooler, each told of the server behind it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from standalone.postgres import Postgres
from tests.e2e import boxes
from tests.e2e.conftest import HAZARD, new_database
from tests.e2e.service import Installation, start_worker, until
from tests.support.pgbouncer import pgbouncer

MANY = 40


def test_jobs_run_and_bytes_go_through_a_pooler(postgres: Postgres, tmp_path: Path, page: bytes) -> None:
    with new_database(postgres) as database, pgbouncer(postgres.url("postgres", database)) as through:

        def url(role: str) -> str:
            direct = postgres.url(role, database)
            return direct if role == "postgres" else through(direct)

        def told(role: str) -> dict[str, str]:
            return {"WHARF_DIRECT_DATABASE_URL": postgres.url(role, database)}

        installation = Installation(tmp_path, url)
        try:
            service = installation.migrate()
            broker = installation.broker(**told("wharf_api"))
            worker = installation.worker("worker", **HAZARD, **told("wharf_worker"))
            start_worker(worker)
            cleanup = installation.cleanup("cleanup", 0.2, WHARF_CLEANUP_GRACE_SECONDS="0.1", **told("wharf_cleanup"))
            cleanup.start()

            def predict(number: int) -> None:
                with service.client() as http:
                    files = {"image": page + bytes(number)}
                    job = http.post("/v1/predict", files=files, headers={"Prefer": "wait=30"}).json()
                    boxes.assert_same(boxes.seen(job["results"][0]), boxes.digits())
                    assert http.delete(f"/v1/files/{job['results'][0]['file_id']}").status_code == 204

            with ThreadPoolExecutor(8) as clients:
                list(clients.map(predict, range(MANY)))
            until(lambda: not service.ask("SELECT sha256 FROM wharf.blobs"), "all bytes are gone")
            for part in (broker, worker, cleanup):
                assert "Traceback" not in part.output(), part.output()
                assert "prepared statement" not in part.output()
        finally:
            installation.stop()
