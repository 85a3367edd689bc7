"""Two brokers behind a balancer, restarted one after the other as a cluster does it: no client notices."""

import io
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from PIL import Image

from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.ledger import Ledger, clients
from tests.e2e.service import Installation, Part, Service, free_port, start_worker, until
from tests.faults.fleet import WORKER
from tests.support.balancer import Address, Balancer

LEAVE_SECONDS = 2.0
PAUSE_SECONDS = 0.3


@pytest.fixture
def installation(postgres: Postgres) -> Iterator[Installation]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="wharf-rolling-", dir=memory if memory.is_dir() else None))
    with new_database(postgres) as database:
        installation = Installation(folder, lambda role: postgres.url(role, database))
        yield installation
        installation.stop()
    shutil.rmtree(folder)


def test_brokers_that_are_restarted_one_after_the_other_lose_no_request(installation: Installation) -> None:
    service = installation.migrate()
    settings = {"WHARF_LEAVE_SECONDS": str(LEAVE_SECONDS), "WHARF_DEFAULT_MODEL": "digits"}
    places = [("127.0.0.1", free_port()) for _ in range(2)]
    brokers = [
        installation.broker(f"broker-{number}", WHARF_INSTANCE=f"broker-{number}", WHARF_PORT=str(port), **settings)
        for number, (_, port) in enumerate(places)
    ]
    worker = installation.worker("worker", **WORKER)
    start_worker(worker)
    page = _dark_page()
    with Balancer(places) as balancer:
        until(lambda: len(balancer.ready) == len(places), "both are ready")
        service = replace(service, url=f"http://127.0.0.1:{balancer.port}")
        with clients(service, page, PAUSE_SECONDS) as ledger, _uploader(service, ledger, page) as slow:
            until(lambda: ledger.promises > 20, "the load is under way")
            for broker, place in zip(brokers, places, strict=True):
                before = ledger.promises
                _restart(broker, place, balancer)
                assert ledger.promises > before
            until(lambda: min(balancer.taken.values()) > 2, "both are used again")
        assert (ledger.refusals, ledger.broken, slow) == (set(), 0, [])
        ledger.check(service)
        assert "Traceback" not in "".join(broker.output() for broker in brokers)


def _dark_page() -> bytes:
    """Which the worker is done with at once."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    return picture.getvalue()


def _restart(broker: Part, place: Address, balancer: Balancer) -> None:
    """As a rolling update does it: away, and back, before the next one's turn."""
    assert broker.process is not None
    began = time.monotonic()
    broker.process.terminate()
    with httpx.Client(base_url="http://{}:{}".format(*place), trust_env=False) as http:
        until(lambda: http.get("/readyz").status_code == 503, "it says that it leaves", seconds=LEAVE_SECONDS)
        answer = http.get("/readyz")
        assert answer.json()["checks"]["broker"] != "ok"
        assert answer.headers["Connection"] == "close"
        assert http.get("/livez").status_code == 200
    assert broker.ended(30) == 0
    assert time.monotonic() - began >= LEAVE_SECONDS
    assert place not in balancer.ready
    broker.start()
    until(lambda: place in balancer.ready, f"{broker.name} is back", seconds=60)


@contextmanager
def _uploader(service: Service, ledger: Ledger, page: bytes) -> Iterator[list[str]]:
    """Sends files so slowly that each outlasts a broker's leaving; gives what went wrong."""
    over = threading.Event()
    faults: list[str] = []

    def send() -> None:
        with service.client(ledger.key) as http:
            while not over.is_set():
                content = [page, *[b"%f" % time.time()] * 10]
                try:
                    answer = http.post("/v1/files", content=_slowly(content))
                except httpx.TransportError as error:
                    faults.append(repr(error))
                    return
                if answer.is_success:
                    ledger.files[answer.json()["items"][0]["id"]] = sha256(b"".join(content)).hexdigest()
                else:
                    faults.append(answer.text)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield faults
    finally:
        over.set()
        thread.join()


def _slowly(content: list[bytes]) -> Iterator[bytes]:
    for chunk in content:
        yield chunk
        time.sleep(2 * LEAVE_SECONDS / len(content))
