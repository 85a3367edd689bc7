"""Database and volume put back to different moments: what was lost is told, nothing is removed until it is accepted,
and what users bring again works."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from PIL import Image

from custody.volume import blob_path
from tests.e2e.problems import assert_problem
from tests.e2e.service import Service, Up, clean_environment, until

SETTINGS = {
    "WHARF_CLEANUP_EVERY_SECONDS": "0.5",
    "WHARF_CLEANUP_GRACE_SECONDS": "0",
    "WHARF_STAGING_HOURS": "0.0003",  # the age of orphans: a second
    "WHARF_SWEEP_HOURS": "0",
    "WHARF_MAX_ORPHAN_FRACTION": "1",
}


class Machine:
    """`wharf up` on a folder whose database and volume are saved and put back while it is down."""

    def __init__(self, folder: Path) -> None:
        self.up = Up(folder, SETTINGS)
        self.saved = folder / "saved"
        self._open = ExitStack()
        self.service: Service
        self.http: httpx.Client

    def start(self) -> None:
        self.service = self.up.start()
        self.http = self._open.enter_context(self.service.client())

    def stop(self) -> None:
        self._open.close()
        self.up.part.stop()

    def save(self, name: str) -> None:
        subprocess.run(["cp", "-a", self.up.data / name, self.saved], check=True)

    def put_back(self, name: str) -> None:
        now = self.up.data / name
        now.rename(now.with_name(f"{name}.newer"))
        subprocess.run(["cp", "-a", self.saved, now], check=True)

    def cleaned(self, runs: int = 1) -> None:
        """Cleanups that begin from now on, done."""
        done = "SELECT count(*) FROM wharf.cleanup_runs WHERE stopped = 'done'"
        [(before,)] = self.service.ask(done)
        until(lambda: self.service.ask(done)[0][0] > before + runs, "the cleanup has run", 60)

    def upload(self, content: bytes) -> str:
        answer = self.http.post("/v1/files", files={"file": ("a.png", content)})
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["items"][0]["id"])

    def lies(self, content: bytes) -> bool:
        return (self.service.volume / blob_path(sha256(content).digest())).exists()

    def content(self, file: str) -> httpx.Response:
        return self.http.get(f"/v1/files/{file}/content")

    def verify(self, *arguments: str, status: int = 0) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "wharfinger", "verify", "--json", "--data", str(self.up.data), *arguments],
            env=clean_environment({"XDG_STATE_HOME": str(self.up.state)}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def machine() -> Iterator[Machine]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="wharf-restore-", dir=memory if memory.is_dir() else None))
    machine = Machine(folder)
    try:
        yield machine
    finally:
        machine.stop()
        shutil.rmtree(folder)


def picture() -> bytes:
    target = io.BytesIO()
    Image.frombytes("RGB", (16, 16), os.urandom(768)).save(target, "PNG")
    return target.getvalue()


@pytest.mark.timeout(400)
def test_an_older_database_with_a_newer_volume(machine: Machine) -> None:
    deleted, kept, brought_again, lost = (picture() for _ in range(4))
    machine.start()
    deleted_file, kept_file = machine.upload(deleted), machine.upload(kept)
    machine.cleaned()
    machine.stop()
    machine.save("postgres")
    machine.start()
    machine.upload(brought_again)
    lost_file = machine.upload(lost)
    machine.http.delete(f"/v1/files/{deleted_file}")
    until(lambda: not machine.lies(deleted), "the cleanup has taken its bytes", 60)
    machine.cleaned()
    machine.stop()
    machine.put_back("postgres")

    machine.start()
    machine.cleaned(runs=3)
    assert machine.lies(brought_again)
    assert machine.lies(lost)
    assert_problem(machine.http.get(f"/v1/files/{lost_file}"), 404, "not_found")
    assert_problem(machine.content(deleted_file), 503, "volume_unavailable")

    found = machine.verify("--quick", status=1)
    assert (found["missing"], found["corrupt"], found["strangers"]) == (1, 0, 2)
    assert found["files_lost"] == {"default": 1}
    assert "mark" in found["restore_suspected"]
    assert_problem(machine.content(deleted_file), 410, "file_corrupt")
    assert machine.content(kept_file).content == kept
    brought_file = machine.upload(brought_again)
    machine.cleaned(runs=2)
    assert machine.lies(lost)

    accepted = machine.verify("--accept")
    assert (accepted["accepted"], accepted["strangers"], accepted["quarantined"]) == (True, 1, 1)
    until(lambda: not machine.lies(lost), "the sweep has taken what no row names", 60)
    machine.cleaned(runs=2)
    assert machine.content(kept_file).content == kept
    assert machine.content(brought_file).content == brought_again
    machine.upload(deleted)
    assert machine.content(deleted_file).content == deleted
    after = machine.verify()
    assert (after["restore_suspected"], after["strangers"], after["quarantined"]) == (None, 0, 0)
    assert not machine.verify("--accept")["accepted"]


@pytest.mark.timeout(400)
def test_a_newer_database_with_an_older_volume(machine: Machine) -> None:
    kept, lost = picture(), picture()
    machine.start()
    kept_file = machine.upload(kept)
    machine.cleaned()
    machine.stop()
    machine.save("volume")
    machine.start()
    lost_file = machine.upload(lost)
    job = machine.http.post("/v1/jobs", json={"inputs": [{"file": lost_file}]}, headers={"Prefer": "wait=30"}).json()
    assert job["state"] == "succeeded"
    machine.cleaned()
    machine.stop()
    machine.put_back("volume")

    machine.start()
    machine.cleaned()
    found = machine.verify("--quick", status=1)
    assert (found["missing"], found["strangers"], found["files_lost"]) == (1, 0, {"default": 1})
    assert "mark" in found["restore_suspected"]
    assert machine.content(kept_file).content == kept
    assert_problem(machine.content(lost_file), 410, "file_corrupt")
    refused = machine.http.post("/v1/jobs", json={"inputs": [{"file": lost_file}]})
    assert_problem(refused, 410, "file_corrupt", field="inputs.0.file")
    assert machine.http.get(f"/v1/jobs/{job['id']}").json()["results"] == job["results"]

    # Found in another backup, and put back by hand.
    (machine.up.data / "volume" / blob_path(sha256(lost).digest())).write_bytes(lost)
    assert machine.verify()["restored"] == 1
    assert machine.content(lost_file).content == lost
    assert machine.verify("--accept")["accepted"]
    assert machine.verify()["restore_suspected"] is None
    assert machine.service.ask("SELECT sweep_off_since FROM wharf.installation") == [(None,)]
