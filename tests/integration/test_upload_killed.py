"""The broker killed with -9 at every step of an upload: what was not answered may be missing, and nothing is half."""

import asyncio
import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import httpx
import psycopg
import pytest
from PIL import Image
from psycopg.rows import dict_row

from broker.maintenance.migrate.migration import first_key
from custody.volume import CHUNK, blob_path
from tests.support.broker_killed_at import COMMITTED, STEPS
from tests.support.domain import staged_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def picture() -> bytes:
    """Noise, so that it is written in several chunks."""
    data = io.BytesIO()
    Image.frombytes("RGB", (1000, 800), random.randbytes(1000 * 800 * 3)).save(data, "PNG")
    assert len(data.getvalue()) > 2 * CHUNK
    return data.getvalue()


@pytest.mark.parametrize("step", STEPS)
def test_a_broker_killed_during_an_upload_leaves_a_true_database_and_a_clean_volume(installation, picture, step):
    key = asyncio.run(first_key(installation.url(), "default"))
    with broker(installation, key, ["-m", "tests.support.broker_killed_at", step]) as (process, client):
        with pytest.raises(httpx.TransportError):
            upload(client, picture)
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert_every_promise_is_kept(installation)
    committed = [str(row["id"]) for row in rows(installation, "SELECT id FROM wharf.files")]
    assert len(committed) == (step == COMMITTED)
    receipts = rows(installation, "SELECT action, files FROM wharf.audit")
    assert [str(file) for receipt in receipts for file in receipt["files"]] == committed

    with broker(installation, key, ["-m", "wharfinger", "broker"]) as (_, client):
        assert staged_files(installation.volume) == []
        again = upload(client, picture)
        assert again.status_code == (200 if step == COMMITTED else 201), again.text
        for file in [*committed, *(file["id"] for file in again.json()["items"])]:
            assert client.get(f"/v1/files/{file}/content").content == picture
    assert_every_promise_is_kept(installation)
    assert rows(installation, "SELECT state FROM wharf.blobs") == [{"state": "present"}]
    assert staged_files(installation.volume) == []


def test_a_broker_killed_while_it_drops_what_it_has_already_keeps_what_it_has(installation, picture):
    key = asyncio.run(first_key(installation.url(), "default"))
    with broker(installation, key, ["-m", "wharfinger", "broker"]) as (_, client):
        [file] = upload(client, picture).json()["items"]
    killed = ["-m", "tests.support.broker_killed_at", "the rename has happened"]
    with broker(installation, key, killed) as (process, client):
        with pytest.raises(httpx.TransportError):
            upload(client, picture)
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert_every_promise_is_kept(installation)
    with broker(installation, key, ["-m", "wharfinger", "broker"]) as (_, client):
        assert staged_files(installation.volume) == []
        assert [one["id"] for one in client.get("/v1/files").json()["items"]] == [file["id"]]
        assert client.get(f"/v1/files/{file['id']}/content").content == picture


def assert_every_promise_is_kept(installation) -> None:
    """No `present` blob without its bytes, no file without a `present` blob."""
    for blob in rows(installation, "SELECT sha256, size FROM wharf.blobs WHERE state = 'present'"):
        content = (installation.volume / blob_path(blob["sha256"])).read_bytes()
        assert (len(content), sha256(content).digest()) == (blob["size"], blob["sha256"])
    assert (
        rows(
            installation, "SELECT f.id FROM wharf.files f JOIN wharf.blobs b USING (sha256) WHERE b.state <> 'present'"
        )
        == []
    )


@contextmanager
def broker(installation, key: str, arguments: list[str]):
    """A broker process that answers, and a client of it; always under the same name, as a restarted one is."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "WHARF_DATABASE_URL": installation.url("wharf_api"),
        "WHARF_VOLUME": str(installation.volume),
        "WHARF_INSTANCE": "broker",
        "WHARF_PORT": str(port),
    }
    headers = {"Authorization": f"Bearer {key}"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30, trust_env=False) as client:
            wait_until_it_answers(process, client)
            yield process, client
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_it_answers(process: subprocess.Popen, client: httpx.Client) -> None:
    for _ in range(1500):
        assert process.poll() is None, "the broker did not start"
        with suppress(httpx.TransportError):
            client.get("/livez")
            return
        time.sleep(0.02)
    raise TimeoutError("the broker does not answer")


def upload(client: httpx.Client, picture: bytes) -> httpx.Response:
    return client.post("/v1/files", files={"file": ("noise.png", picture)})


def rows(installation, statement: str) -> list[dict]:
    with psycopg.connect(installation.url(), row_factory=dict_row) as connection:
        return connection.execute(statement).fetchall()
