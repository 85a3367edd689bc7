"""Damage as users and operators meet it: told by the API, found by workers and `wharf verify`, healed by uploads."""

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from PIL import Image

import starter_model
from custody.volume import blob_path
from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.problems import assert_problem
from tests.e2e.service import Installation, Part, Service, answers, free_port, start_worker, until

WORKER = {"WHARF_MODEL": str(starter_model.MODEL), "WHARF_VERIFY_READS": "always", "WHARF_READ_RETRY_SECONDS": "0.2"}


@dataclass(frozen=True)
class Custody:
    """A service, and a tenant of the test's own."""

    service: Service
    installation: Installation
    http: httpx.Client

    def upload(self, content: bytes) -> dict:
        answer = self.http.post("/v1/files", files={"file": ("a.png", content)})
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["items"][0]

    def path(self, content: bytes) -> Path:
        return self.service.volume / blob_path(sha256(content).digest())

    def flip(self, content: bytes) -> None:
        """The last bit on the disk is another."""
        path = self.path(content)
        found = path.stat()
        path.chmod(0o644)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    def job(self, file: dict) -> dict:
        answer = self.http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}]}, headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def state(self, file: dict) -> str:
        return self.http.get(f"/v1/files/{file['id']}").json()["state"]

    def settle(self) -> None:
        """What earlier tests have left is found."""
        part = self.installation.verify()
        part.start()
        part.ended(60)

    def verify(self, *arguments: str, status: int = 0) -> dict:
        """One run to its end."""
        part = self.installation.verify("--json", *arguments)
        part.log.unlink(missing_ok=True)
        part.start()
        assert part.ended(60) == status, part.output()
        return printed(part)


def printed(part: Part) -> dict:
    """Standard output and log are one file; the document begins at the line that is only a brace."""
    lines = part.output().splitlines()
    begin, end = lines.index("{"), lines.index("}")
    return json.loads("\n".join(lines[begin : end + 1]))


@pytest.fixture(scope="module")
def running(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Installation]]:
    with new_database(postgres) as database:
        installation = Installation(tmp_path_factory.mktemp("verify"), lambda role: postgres.url(role, database))
        try:
            service = installation.migrate()
            installation.broker(WHARF_DEFAULT_MODEL="digits")
            start_worker(installation.worker("w1", **WORKER))
            yield service, installation
        finally:
            installation.stop()


@pytest.fixture
def custody(running: tuple[Service, Installation]) -> Iterator[Custody]:
    service, installation = running
    with service.client(service.new_key()) as http:
        yield Custody(service, installation, http)


def picture() -> bytes:
    """No other test's."""
    target = io.BytesIO()
    Image.frombytes("RGB", (16, 16), os.urandom(768)).save(target, "PNG")
    return target.getvalue()


def test_a_result_says_that_its_bytes_were_verified_and_what_computed_it(custody: Custody) -> None:
    [result] = custody.job(custody.upload(picture()))["results"]
    assert (result["state"], result["verified"]) == ("succeeded", True)
    assert result["engine"]["name"] == "openvino"
    assert result["engine"]["version"].startswith("20")
    assert len(result["model"]["digest"]) == 64


def test_a_flipped_bit_is_found_by_the_worker_told_to_the_user_and_healed_by_an_upload(custody: Custody) -> None:
    content = picture()
    file = custody.upload(content)
    assert (file["state"], custody.state(file)) == ("present", "present")
    custody.flip(content)
    [result] = custody.job(file)["results"]
    assert (result["state"], result["error"]["code"], result["attempts"]) == ("unprocessable", "file_corrupt", 1)
    assert "again" in result["error"]["detail"]

    assert custody.state(file) == "corrupt"
    known = f"/v1/files/sha256:{file['sha256']}"
    assert custody.http.head(known).status_code == 404
    assert_problem(custody.http.post(known), 404, "not_found")
    assert_problem(custody.http.get(f"/v1/files/{file['id']}/content"), 410, "file_corrupt")
    refused = custody.http.post("/v1/jobs", json={"inputs": [{"file": file["id"]}]})
    assert_problem(refused, 410, "file_corrupt", field="inputs.0.file")

    again = custody.upload(content)
    assert (custody.state(file), custody.state(again)) == ("present", "present")
    assert custody.http.get(f"/v1/files/{file['id']}/content").content == content
    [result] = custody.job(file)["results"]
    assert (result["state"], result["verified"]) == ("succeeded", True)


def test_predict_heals_what_it_sends(custody: Custody) -> None:
    content = picture()
    custody.upload(content)
    custody.flip(content)
    custody.verify(status=1)
    answer = custody.http.post("/v1/predict", files={"image": content}, headers={"Prefer": "wait=30"})
    assert answer.json()["results"][0]["state"] == "succeeded"


def test_a_file_that_is_short_is_never_half_a_200(custody: Custody) -> None:
    content = picture()
    file = custody.upload(content)
    custody.path(content).chmod(0o644)
    os.truncate(custody.path(content), 10)
    assert_problem(custody.http.get(f"/v1/files/{file['id']}/content"), 410, "file_corrupt")


def test_bytes_that_are_not_found_may_come_back_until_they_are_known_to_be_lost(custody: Custody) -> None:
    content = picture()
    file = custody.upload(content)
    custody.path(content).unlink()
    assert_problem(custody.http.get(f"/v1/files/{file['id']}/content"), 503, "volume_unavailable")
    custody.verify("--quick", status=1)
    assert custody.state(file) == "missing"
    assert_problem(custody.http.get(f"/v1/files/{file['id']}/content"), 410, "file_corrupt")


def test_the_command_tells_what_it_found_and_its_status_says_whether_there_was_damage(custody: Custody) -> None:
    custody.settle()
    clean = custody.verify()
    assert (clean["stopped"], clean["corrupt"] + clean["missing"] + clean["unreadable"]) == ("done", 0)
    content = picture()
    custody.upload(content)
    custody.flip(content)
    found = custody.verify(status=1)
    assert (found["checked"], found["corrupt"]) == (clean["checked"] + 1, 1)
    assert found["quarantined"] == clean["quarantined"] + 1
    assert sum(found["files_lost"].values()) == sum(clean["files_lost"].values()) + 1
    newest, before = custody.verify("--history")["items"][:2]
    assert (newest["id"], before["id"]) == (found["id"], clean["id"])
    assert len(list((custody.service.volume / "quarantine").glob(f"{sha256(content).hexdigest()}.*"))) == 1


def test_a_run_that_is_killed_leaves_nothing_wrong_and_the_next_one_completes_it(custody: Custody) -> None:
    several = [picture() for _ in range(30)]
    files = [custody.upload(content) for content in several]
    custody.flip(several[3])
    custody.flip(several[20])
    part = custody.installation.verify("--rate", "200")
    part.start()
    seen = "SELECT checked FROM wharf.verify_runs WHERE stopped IS NULL"
    until(lambda: custody.service.ask(seen) and custody.service.ask(seen)[0][0] > 0, "it has checked some", 60)
    part.send(signal.SIGKILL)
    assert part.ended() == -signal.SIGKILL
    custody.verify(status=1)
    states = [custody.state(file) for file in files]
    assert [number for number, state in enumerate(states) if state != "present"] == [3, 20]
    assert custody.service.ask("SELECT count(*) FROM wharf.verify_runs WHERE stopped = 'killed'")[0][0] >= 1
    for content in (several[3], several[20]):
        custody.upload(content)
    assert all(custody.state(file) == "present" for file in files)
    assert custody.service.staged() == []


def test_a_second_run_is_kept_out_and_a_signal_ends_the_first_in_good_order(custody: Custody) -> None:
    custody.upload(picture())
    slow = custody.installation.verify("--rate", "1")
    slow.start()
    running = "SELECT id FROM wharf.verify_runs WHERE stopped IS NULL"
    until(lambda: custody.service.ask(running), "it runs", 60)
    second = custody.installation.verify()
    second.start()
    assert second.ended() == 0
    assert "Another verification is running" in second.output()
    slow.send(signal.SIGTERM)
    assert slow.ended(30) in (0, 1)
    newest = "SELECT stopped FROM wharf.verify_runs ORDER BY id DESC LIMIT 1"
    assert custody.service.ask(newest) == [("asked",)]


def test_it_runs_again_and_again_and_serves_metrics(custody: Custody) -> None:
    port = free_port()
    part = custody.installation.verify("--quick", "--every", "1", WHARF_HEALTH_PORT=str(port))
    part.start()
    part.until(lambda: answers(f"http://127.0.0.1:{port}/readyz"))

    def metric(name: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    count = "SELECT count(*) FROM wharf.verify_runs WHERE stopped = 'done' AND quick"
    [(before,)] = custody.service.ask(count)
    until(lambda: custody.service.ask(count)[0][0] >= before + 2, "it has run twice more", 60)
    assert metric("wharf_verify_files_total") > 0
    [(quarantined,)] = custody.service.ask("SELECT count(*) FROM wharf.blobs WHERE state = 'quarantined'")
    until(lambda: metric("wharf_quarantined ") == quarantined, "it tells what is quarantined")
    started = time.monotonic()
    part.send(signal.SIGTERM)
    assert part.ended(30) == 0
    assert time.monotonic() - started < 20


def test_jobs_and_uploads_go_on_while_damage_is_found(custody: Custody) -> None:
    """Every picture is either worked on, or its user is told that it is damaged; and what is sent again works."""
    several = [picture() for _ in range(20)]
    files = [custody.upload(content) for content in several]
    damaged = {3, 9, 15}
    for number in damaged:
        custody.flip(several[number])
    part = custody.installation.verify("--rate", "20000")
    part.start()
    answer = custody.http.post(
        "/v1/jobs", json={"inputs": [{"file": file["id"]} for file in files]}, headers={"Prefer": "wait=60"}
    )
    assert part.ended(60) in (0, 1), part.output()
    if answer.status_code == 410:  # the run was quicker
        assert answer.json()["code"] == "file_corrupt"
    else:
        results = answer.json()["results"]
        assert {each["input"] for each in results if each["state"] != "succeeded"} == damaged
        assert {results[each]["error"]["code"] for each in damaged} <= {"file_corrupt", "file_unreadable"}
    assert {number for number, file in enumerate(files) if custody.state(file) == "corrupt"} == damaged
    for number in damaged:
        custody.upload(several[number])
    assert [custody.job(file)["state"] for file in files] == ["succeeded"] * 20
