"""Cancel at every stage, on both transports: a cancelled job stays so, its inputs follow, what ran in time is readable,
and whoever comes next finds the workers free."""

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from custody.wire import Priority
from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.service import Installation, Part, until
from tests.faults.fleet import WORKER, Fleet, Tenant
from tests.support.engines import HANGING
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

SETTINGS = {"WHARF_TASK_SECONDS": "3"}
WINDOW = 60


class Cancelling:
    """A fleet of one worker with two slots. `amqp`: what its RabbitMQ is reached by; None without one."""

    def __init__(self, fleet: Fleet, amqp: dict[str, str] | None) -> None:
        self.fleet = fleet
        self.amqp = amqp
        self.worker = fleet.worker("w1", WHARF_SLOTS="2", **SETTINGS, **(amqp or {}))

    def tenant(self) -> Tenant:
        return self.fleet.tenant()

    def doomed(self, name: str, step: str) -> Part:
        part = self.fleet.installation.worker(name, **{**WORKER, **SETTINGS, **(self.amqp or {})})
        return self.fleet.doomed(part, "worker_killed_at", step)

    def stop_worker(self) -> None:
        self.worker.send(signal.SIGTERM)
        assert self.worker.ended() == 0
        self.fleet.dismiss(self.worker)

    def start_worker(self) -> None:
        self.fleet.bring_back(self.worker)

    def done(self, job: str) -> int:
        return self._count(job, "state = 'succeeded'")

    def running(self, job: str) -> int:
        return self._count(job, "state = 'running'")

    def said(self, since: int) -> str:
        return self.worker.log.read_text()[since:]

    def _count(self, job: str, condition: str) -> int:
        [(count,)] = self.fleet.service.ask(f"SELECT count(*) FROM wharf.tasks WHERE job_id = %s AND {condition}", job)
        return int(str(count))


@pytest.fixture(scope="module", params=["embedded", "amqp"])
def cancelling(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cancelling]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="wharf-cancel-", dir=memory if memory.is_dir() else None))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        database = stack.enter_context(new_database(postgres))
        node = None
        if request.param == "amqp":
            require_rabbitmq()
            node = stack.enter_context(RabbitMQ(tmp_path_factory.mktemp("rabbitmq")))
        installation = Installation(folder, lambda role: postgres.url(role, database))
        stack.callback(installation.stop)
        fleet = Fleet(installation, [], node)
        stack.callback(fleet.close)
        if node:
            fleet.relay("relay", node.url(), WHARF_WINDOW=str(WINDOW))
        yield Cancelling(fleet, {"WHARF_AMQP_URL": node.url()} if node else None)


@pytest.fixture
def tenant(cancelling: Cancelling) -> Iterator[Tenant]:
    """Afterwards the worker is free, and nothing is stuck, stored twice or left in a queue."""
    with cancelling.fleet.unharmed():
        tenant = cancelling.tenant()
        yield tenant
        assert [result["state"] for result in tenant.results(tenant.submit(1, 2))] == ["succeeded"] * 2


def cancel(tenant: Tenant, job: str) -> dict[str, Any]:
    answer = tenant.http.post(f"/v1/jobs/{job}/cancel")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def assert_cancelled_for_good(tenant: Tenant, job: str) -> list[dict[str, Any]]:
    """Gives its results: those that were done in time, and no others, have detections."""
    found = tenant.job(job)
    assert found["state"] == "cancelled"
    results, cursor = [], None
    while True:
        asked = {"limit": "1000", **({"cursor": cursor} if cursor else {})}
        answer = tenant.http.get(f"/v1/jobs/{job}/results", params=asked).json()
        results += answer["items"]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    states = [result["state"] for result in results]
    assert set(states) <= {"succeeded", "cancelled"}
    assert (states.count("succeeded"), len(states)) == (found["progress"]["done"], found["progress"]["total"])
    assert all((result["detections"] == []) == (result["state"] == "succeeded") for result in results)
    return results


def test_a_job_that_is_queued(cancelling: Cancelling, tenant: Tenant) -> None:
    with cancelling.fleet.service.client() as operator:
        operator.post("/v1/pools/digits/pause")
        job = tenant.submit(1, 2, 3)
        assert tenant.job(job)["state"] == "queued"
        assert cancel(tenant, job)["state"] == "cancelled"
        operator.post("/v1/pools/digits/resume")
    tenant.results(tenant.submit(1))
    assert {(each["state"], each["attempts"]) for each in assert_cancelled_for_good(tenant, job)} == {("cancelled", 0)}


def test_a_job_that_waits_for_a_worker_in_the_queue(cancelling: Cancelling, tenant: Tenant) -> None:
    cancelling.stop_worker()
    jobs = [tenant.submit(*[1] * 20, priority=priority) for priority in Priority]
    if cancelling.amqp:
        until(lambda: sum(cancelling.fleet.waiting().values()) == 40, "all are released")
    for job in jobs:
        cancel(tenant, job)
    after = [tenant.submit(1, priority=priority) for priority in Priority]
    cancelling.start_worker()
    for job in after:
        assert [each["state"] for each in tenant.results(job)] == ["succeeded"]
    for job in jobs:
        assert {each["attempts"] for each in assert_cancelled_for_good(tenant, job)} == {0}


def test_a_job_that_a_worker_holds_and_looks_at(cancelling: Cancelling, tenant: Tenant) -> None:
    """Two of its pictures hang in the slots and two are held ready. The slots are free again after their time."""
    said = cancelling.worker.log.stat().st_size
    job = tenant.submit(*[HANGING] * 6)
    until(lambda: cancelling.running(job) == 4, "they are held")
    assert cancel(tenant, job)["state"] == "cancelled"
    until(lambda: cancelling.said(said).count('"slot_killed"') == 2, "the slots have been killed")
    until(lambda: cancelling.said(said).count('"void"') == 2, "their ends are void")
    results = assert_cancelled_for_good(tenant, job)
    assert {each["state"] for each in results} == {"cancelled"}
    tenant.results(tenant.submit(1))
    assert cancelling.said(said).count('"slot_killed"') == 2, "what was held and not begun was let go"


def test_a_picture_that_is_looked_at_and_ends_well_ends_void(cancelling: Cancelling, tenant: Tenant) -> None:
    said = cancelling.worker.log.stat().st_size
    job = tenant.submit(255, 254)
    until(lambda: cancelling.running(job) == 2, "they run")
    before = cancelling.done(job)
    cancel(tenant, job)
    until(lambda: cancelling.said(said).count('"task_ended"') >= 2, "the pictures have been looked at")
    assert '"void"' in cancelling.said(said) or before
    assert sum(each["state"] == "succeeded" for each in assert_cancelled_for_good(tenant, job)) <= 2


def test_a_batch_of_5000_that_is_well_under_way(cancelling: Cancelling, tenant: Tenant) -> None:
    job = tenant.submit(*[2] * 5000, priority=Priority.BATCH)
    until(lambda: cancelling.done(job) > 500, "it is well under way", seconds=120)
    cancelled = cancel(tenant, job)
    assert 500 < cancelled["progress"]["done"] < 5000
    other = tenant.submit(1, priority=Priority.BATCH)
    assert [each["state"] for each in tenant.results(other)] == ["succeeded"]
    results = assert_cancelled_for_good(tenant, job)
    assert sum(each["state"] == "succeeded" for each in results) == cancelled["progress"]["done"]
    again = tenant.http.post(f"/v1/jobs/{job}/rerun").json()
    assert (again["rerun_of"], again["progress"]["total"]) == (job, 5000)
    until(lambda: cancelling.done(again["id"]) > 10, "the rerun runs")
    cancel(tenant, again["id"])
    assert_cancelled_for_good(tenant, again["id"])


def test_a_job_whose_worker_is_killed_at_that_moment(cancelling: Cancelling, tenant: Tenant) -> None:
    jobs = [tenant.submit(*[5] * 60) for _ in range(4)]
    until(lambda: sum(map(cancelling.done, jobs)) > 20, "they are under way")
    with ThreadPoolExecutor(8) as pool:
        cancelled = [pool.submit(cancel, tenant, job) for job in jobs[:2]]
        cancelling.worker.send(signal.SIGKILL)
        cancelling.worker.ended()
        cancelled += [pool.submit(cancel, tenant, job) for job in jobs[2:3]]
    cancelling.fleet.dismiss(cancelling.worker)
    cancelling.start_worker()
    assert [each["state"] for each in tenant.results(jobs[3])] == ["succeeded"] * 60
    for job, answer in zip(jobs, cancelled, strict=False):
        # The first may have been done before.
        assert tenant.job(job)["state"] == answer.result()["state"]
        if answer.result()["state"] == "cancelled":
            assert_cancelled_for_good(tenant, job)
    assert cancelled[-1].result()["state"] == "cancelled"


@pytest.mark.parametrize("step", ["the picture has been looked at", "the result is written, nobody told of it"])
def test_a_job_whose_worker_has_died_at_a_step(cancelling: Cancelling, tenant: Tenant, step: str) -> None:
    """Whether the cancel or the end of the job came first, the answer stays true."""
    cancelling.stop_worker()
    doomed = cancelling.doomed(f"doomed-{random.getrandbits(32):x}", step)
    doomed.start()
    try:
        job = tenant.submit(1)
        assert doomed.ended() == -signal.SIGKILL, doomed.output()
        answer = cancel(tenant, job)
    finally:
        doomed.stop()
        cancelling.start_worker()
    assert answer["state"] in ("cancelled", "succeeded")
    tenant.results(tenant.submit(1))
    time.sleep(1)
    found = tenant.job(job)
    assert (found["state"], found["progress"], found["finished_at"]) == (
        answer["state"],
        answer["progress"],
        answer["finished_at"],
    )
    if "picture" in step:
        assert (found["state"], found["results"][0]["state"]) == ("cancelled", "cancelled")
    else:
        assert found["results"][0]["state"] == "succeeded"


INPUTS = 20


def test_a_cancel_and_the_end_at_once_are_decided_once_and_for_good(cancelling: Cancelling, tenant: Tenant) -> None:
    answers, pause = {}, 0.03
    for _ in range(60):
        job = tenant.submit(*[1] * INPUTS)
        time.sleep(pause)
        answers[job] = cancel(tenant, job)
        # Towards the moment at which either may come first, whatever this machine needs.
        pause = max(0, pause + (0.01 if answers[job]["state"] == "cancelled" else -0.01))
    tenant.results(tenant.submit(1))
    time.sleep(1)
    for job, answer in answers.items():
        found = tenant.job(job)
        assert (found["state"], found["finished_at"]) == (answer["state"], answer["finished_at"])
        if found["state"] == "cancelled":
            assert_cancelled_for_good(tenant, job)
        else:
            assert (found["state"], found["progress"]["done"]) == ("succeeded", INPUTS)
    assert len({answer["state"] for answer in answers.values()}) == 2


def test_many_cancels_and_reruns_at_once(cancelling: Cancelling, tenant: Tenant) -> None:
    job = tenant.submit(*[20] * 100)
    until(lambda: cancelling.done(job) > 3, "it is under way")
    with ThreadPoolExecutor(12) as pool:
        cancels = [pool.submit(cancel, tenant, job) for _ in range(6)]
        reruns = [pool.submit(tenant.http.post, f"/v1/jobs/{job}/rerun") for _ in range(4)]
    assert len({answer.result()["finished_at"] for answer in cancels}) == 1
    assert_cancelled_for_good(tenant, job)
    for answer in reruns:
        assert answer.result().status_code == 202
        assert [each["state"] for each in tenant.results(answer.result().json()["id"])] == ["succeeded"] * 100


def test_a_job_is_cancelled_though_no_worker_or_relay_lives(cancelling: Cancelling, tenant: Tenant) -> None:
    job = tenant.submit(*[20] * 100)
    until(lambda: cancelling.done(job) > 3, "it is under way")
    cancelling.worker.send(signal.SIGSTOP)
    try:
        assert cancel(tenant, job)["state"] == "cancelled"
        before = assert_cancelled_for_good(tenant, job)
    finally:
        cancelling.worker.send(signal.SIGCONT)
    assert [each["state"] for each in tenant.results(tenant.submit(1))] == ["succeeded"]
    assert assert_cancelled_for_good(tenant, job) == before
