"""Processes beside each other: on a PostgreSQL of the user's, under one name, with two models, and stopping."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

import starter_model
from standalone.postgres import Postgres
from tests.e2e.service import WHARF, Installation, Strict, Up, clean_environment, until


@pytest.fixture
def own_database(postgres: Postgres) -> Iterator[str]:
    """The owner's URL of an empty database on a server that is there already."""
    name = "somebodys_own"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres.url("postgres", name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_up_runs_on_a_postgres_of_the_users_with_a_login_for_each_process(own_database: str, tmp_path: Path) -> None:
    up = Up(tmp_path, {"WHARF_DATABASE_URL": own_database})
    up.part.start()
    try:
        up.part.until(lambda: "Wharfinger is ready" in up.part.output())
        assert not (up.data / "postgres").exists()
        environment = clean_environment(up.part.environment)
        predict = [*WHARF, "predict", str(starter_model.PAGE), "--json"]
        assert subprocess.run(predict, env=environment, check=True, capture_output=True).stdout.count(b'"label"') == 10
        with psycopg.connect(own_database) as connection:
            users = connection.execute(
                """
                SELECT DISTINCT usename FROM pg_stat_activity
                WHERE datname = current_database() AND application_name LIKE 'wharf %%' AND pid <> %s
                """,
                [connection.info.backend_pid],
            ).fetchall()
        assert {user.rpartition("_")[0] for (user,) in users} == {"wharf_api", "wharf_worker", "wharf_cleanup"}
    finally:
        up.part.stop()


def test_a_second_broker_of_the_same_name_is_refused_and_disturbs_no_upload(strict: Strict, tmp_path: Path) -> None:
    staged = strict.service.volume / "staging" / "namesake.1"
    first = Installation(tmp_path, strict.installation._database)
    first.volume = strict.service.volume
    second = first._part("second", ("broker",), "wharf_api", {"WHARF_PORT": "1", "WHARF_INSTANCE": "namesake"})
    try:
        first.broker(WHARF_INSTANCE="namesake")
        staged.write_bytes(b"half a picture")
        second.start()
        assert second.ended(30) == 1
        assert "WHARF_INSTANCE" in second.output()
        assert "Traceback" not in second.output()
        assert staged.exists()
    finally:
        staged.unlink(missing_ok=True)
        first.stop()


def test_a_login_with_the_roles_of_two_processes_is_refused(strict: Strict, tmp_path: Path) -> None:
    with psycopg.connect(strict.service.database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS wharf_everything")
        connection.execute("CREATE ROLE wharf_everything LOGIN IN ROLE wharf_api, wharf_worker")
    installation = Installation(tmp_path, lambda _: strict.installation._database("wharf_everything"))
    installation.volume = strict.service.volume
    broker = installation._part("broker", ("broker",), "any", {"WHARF_INSTANCE": "greedy"})
    try:
        broker.start()
        assert broker.ended(30) == 1
        assert "wharf_api, wharf_worker" in broker.output()
    finally:
        installation.stop()


def test_a_broker_that_stops_lets_those_go_who_wait_for_a_job(strict: Strict, tmp_path: Path) -> None:
    installation = Installation(tmp_path, strict.installation._database)
    installation.volume = strict.service.volume
    with psycopg.connect(strict.service.database, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)
            VALUES ('nobodys', 1, sha256('nobodys'), 'models/none', 'detect', '[]', 1, 1) ON CONFLICT DO NOTHING
            """
        )
    answers: list[httpx.Response] = []

    def wait(url: str) -> None:
        files = {"image": starter_model.PAGE.read_bytes()}
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {strict.service.key}"}) as client:
            answers.append(
                client.post(
                    "/v1/predict", files=files, data={"model": "nobodys"}, headers={"Prefer": "wait=60"}, timeout=60
                )
            )

    try:
        broker = installation.broker(WHARF_INSTANCE="stopping")
        waiting = threading.Thread(target=wait, args=(f"http://127.0.0.1:{installation.port}",))
        waiting.start()
        broker.until(lambda: "job_submitted" in broker.output())
        assert broker.process is not None
        broker.process.terminate()
        waiting.join(15)
        assert [answer.status_code for answer in answers] == [202]
        assert answers[0].json()["state"] == "queued"
        assert broker.ended(10) == 0
        with strict.service.client() as client:
            client.post(f"/v1/jobs/{answers[0].json()['id']}/cancel")
    finally:
        installation.stop()
        with psycopg.connect(strict.service.database, autocommit=True) as connection:
            connection.execute("UPDATE wharf.models SET state = 'retired' WHERE name = 'nobodys'")


def test_a_second_signal_cuts_a_brokers_leaving_short(strict: Strict, tmp_path: Path) -> None:
    installation = Installation(tmp_path, strict.installation._database)
    installation.volume = strict.service.volume
    try:
        broker = installation.broker(WHARF_INSTANCE="impatient", WHARF_LEAVE_SECONDS="600")
        assert broker.process is not None
        broker.process.terminate()
        url = f"http://127.0.0.1:{installation.port}"
        until(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 503, "it leaves")
        broker.process.terminate()
        assert broker.ended(30) == 0
    finally:
        installation.stop()


def test_the_model_that_up_was_started_with_is_the_default_beside_others(tmp_path: Path) -> None:
    renamed = tmp_path / "Other Digits.onnx"
    renamed.write_bytes(starter_model.MODEL.read_bytes())
    up = Up(tmp_path)
    plain = up.part.arguments
    for arguments, model in ((plain, "digits"), ((*plain, "--model", str(renamed)), "other-digits")):
        up.part.arguments = arguments
        service = up.start()
        try:
            with service.client() as client:
                answer = client.post(
                    "/v1/predict", files={"image": starter_model.PAGE.read_bytes()}, headers={"Prefer": "wait=30"}
                )
            assert answer.json()["model"] == model
        finally:
            up.part.stop()
