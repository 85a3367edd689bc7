"""Known answers, on both transports: what a tenant's picture gave, it gives again, until it is taken back; and of those
who ask at once one is worked for."""

import io
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.service import Installation, Part, Service, until
from tests.faults.fleet import Fleet, counted
from tests.support.engines import HAZARD_ENGINE, RAISING, SLUGGISH
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

WAIT = {"Prefer": "wait=30"}
SIZES = count(40)


@dataclass(frozen=True)
class Known:
    """A fleet of one worker with two slots, whose engine finds digits and does what colours say."""

    fleet: Fleet
    worker: Part
    settings: dict[str, str]

    @property
    def service(self) -> Service:
        return self.fleet.service


@pytest.fixture(scope="module", params=["embedded", "amqp"])
def known(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Known]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="wharf-known-", dir=memory if memory.is_dir() else None))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        database = stack.enter_context(new_database(postgres))
        node = None
        if request.param == "amqp":
            require_rabbitmq()
            node = stack.enter_context(RabbitMQ(tmp_path_factory.mktemp("rabbitmq")))
        installation = Installation(folder, lambda role: postgres.url(role, database))
        stack.callback(installation.stop)
        fleet = Fleet(installation, [], node, cache=True)
        stack.callback(fleet.close)
        settings = {"WHARF_ENGINE": HAZARD_ENGINE, "WHARF_SLOTS": "2"}
        if node:
            fleet.relay("relay", node.url())
            settings["WHARF_AMQP_URL"] = node.url()
        yield Known(fleet, fleet.worker("w1", **settings), settings)


@pytest.fixture
def http(known: Known) -> Iterator[httpx.Client]:
    """A tenant's of its own. Afterwards nothing is stuck, stored twice or left in a queue."""
    with known.fleet.unharmed(), known.service.client(known.service.new_key()) as client:
        yield client


def predict(http: httpx.Client, picture: bytes, **fields: str) -> dict[str, Any]:
    """The job, once it has ended, with its results."""
    answer = http.post("/v1/predict", files={"image": picture}, data=fields, headers=WAIT)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def keep(http: httpx.Client, picture: bytes) -> str:
    [file] = http.post("/v1/files", content=picture).json()["items"]
    return str(file["sha256"])


def submit(http: httpx.Client, sha256: str, inputs: int = 1, **more: object) -> httpx.Response:
    return http.post("/v1/jobs", json={"inputs": [{"sha256": sha256}] * inputs, **more})


def ended(http: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    job = dict(http.get(f"/v1/jobs/{answer.json()['id']}", headers=WAIT).json())
    assert job["finished_at"], job
    return job


def inferred(*jobs: dict[str, Any]) -> int:
    return sum(not result["cached"] for job in jobs for result in job["results"])


def test_the_same_picture_again_has_the_same_boxes_at_once(known: Known, http: httpx.Client, page: bytes) -> None:
    first = predict(http, page)
    again = predict(http, page)
    for job, cached, attempts in ((first, False, 1), (again, True, 0)):
        [result] = job["results"]
        assert (job["state"], result["cached"], result["attempts"]) == ("succeeded", cached, attempts)
        assert len(result["detections"]) == 10
    same = ("detections", "model", "engine", "verified")
    assert [again["results"][0][name] for name in same] == [first["results"][0][name] for name in same]
    timings = again["results"][0]["timings"]
    assert timings["infer"] == first["results"][0]["timings"]["infer"]
    # Whoever does not wait is told 202, as always, of a job that has ended.
    answer = submit(http, first["results"][0]["sha256"], inputs=3)
    assert (answer.status_code, answer.json()["state"], inferred(answer.json())) == (202, "succeeded", 0)
    assert answer.json()["progress"] == {"done": 3, "failed": 0, "total": 3}


def test_other_parameters_and_no_cache_infer_anew(known: Known, http: httpx.Client, page: bytes) -> None:
    first = predict(http, page)
    sha256 = first["results"][0]["sha256"]
    assert inferred(predict(http, page, conf="0.9")) == 1
    assert inferred(predict(http, page, cache="false")) == 1
    assert inferred(ended(http, submit(http, sha256, inputs=2, cache=False))) == 2
    rerun = http.post(f"/v1/jobs/{first['id']}/rerun")
    assert inferred(ended(http, rerun)) == 1
    assert submit(http, sha256, cache="no").status_code == 422
    assert submit(http, sha256, cache=True).json()["state"] == "succeeded"


def test_a_purge_forgets(known: Known, http: httpx.Client, page: bytes) -> None:
    predict(http, page)
    file = predict(http, page)["results"][0]["file_id"]
    assert http.delete(f"/v1/files/{file}", params={"purge": "true"}).status_code == 200
    assert inferred(predict(http, page)) == 1


def test_another_tenant_infers_it_itself(known: Known, http: httpx.Client, page: bytes) -> None:
    predict(http, page)
    with known.service.client(known.service.new_key()) as other:
        assert inferred(predict(other, page)) == 1


def test_of_many_that_want_the_same_at_once_one_is_inferred(known: Known, http: httpx.Client) -> None:
    sha256 = keep(http, slow())
    known.worker.send(signal.SIGSTOP)
    try:
        answers = [submit(http, sha256, inputs) for inputs in (5, 1, 20)]
        assert [answer.json()["state"] for answer in answers] == ["queued"] * 3
    finally:
        known.worker.send(signal.SIGCONT)
    jobs = [ended(http, answer) for answer in answers]
    assert [job["state"] for job in jobs] == ["succeeded"] * 3
    assert inferred(*jobs) == 1
    assert counted(known.worker, "wharf_cache_total", outcome="miss") >= 1
    assert counted(known.worker, "wharf_cache_total", outcome="twin") >= 1


def test_where_one_fails_the_next_is_tried(known: Known, http: httpx.Client) -> None:
    sha256 = keep(http, painted(RAISING))
    jobs = [ended(http, answer) for answer in [submit(http, sha256, 2) for _ in range(2)]]
    results = [result for job in jobs for result in job["results"]]
    assert [(result["state"], result["attempts"]) for result in results] == [("failed", 1)] * 4


def test_where_one_is_cancelled_while_it_is_inferred_the_next_is_tried(known: Known, http: httpx.Client) -> None:
    sha256 = keep(http, slow())
    first = submit(http, sha256)
    until(lambda: state(known, first) == ["running"], "it is under way")
    second = submit(http, sha256)
    assert http.post(f"/v1/jobs/{first.json()['id']}/cancel").json()["state"] == "cancelled"
    job = ended(http, second)
    assert (job["state"], inferred(job)) == ("succeeded", 1)


def test_a_worker_that_dies_of_it_keeps_nobody_waiting(known: Known, http: httpx.Client) -> None:
    sha256 = keep(http, slow())
    first = submit(http, sha256)
    until(lambda: state(known, first) == ["running"], "it is under way")
    other = known.fleet.worker("w2", **known.settings)
    try:
        second = submit(http, sha256)
        known.worker.send(signal.SIGKILL)
        known.worker.ended()
        jobs = [ended(http, answer) for answer in (first, second)]
        assert [job["state"] for job in jobs] == ["succeeded"] * 2
        assert inferred(*jobs) == 1
    finally:
        known.worker.start()
        known.fleet.dismiss(other)


def state(known: Known, answer: httpx.Response) -> list[object]:
    tasks = known.service.ask("SELECT state FROM wharf.tasks WHERE job_id = %s", answer.json()["id"])
    return [state for (state,) in tasks]


def slow() -> bytes:
    """A picture that takes a second, and that nobody has seen."""
    return painted(SLUGGISH)


def painted(colour: tuple[int, int, int]) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (next(SIZES), 32), colour).save(picture, "PNG")
    return picture.getvalue()
