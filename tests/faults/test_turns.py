"""Who waits for whom, on both transports: an interactive request for the pictures under way, a tenant for its turn."""

import time
from collections.abc import Iterator

import pytest

from custody.wire import Priority
from tests.e2e.service import until
from tests.faults.conftest import NewFleet
from tests.faults.fleet import Fleet
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

SLOTS = 2
WINDOW = 40
MANY = 2000
PICTURE_MS = 300


@pytest.fixture(scope="module", params=["embedded", "amqp"])
def fleet(
    request: pytest.FixtureRequest, new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """One slot in each of two workers."""
    if request.param == "embedded":
        fleet = new_fleet(None)
        for number in range(SLOTS):
            fleet.worker(f"w{number}")
        yield fleet
        return
    require_rabbitmq()
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as node:
        fleet = new_fleet(node)
        fleet.relay("relay", node.url(), WHARF_WINDOW=str(WINDOW))
        for number in range(SLOTS):
            fleet.worker(f"w{number}", WHARF_AMQP_URL=node.url())
        yield fleet


def test_an_interactive_request_waits_for_the_picture_in_each_slot_at_most(fleet: Fleet) -> None:
    crowd, person = fleet.tenant(), fleet.tenant()
    person.submit(1)
    with fleet.unharmed():
        batch = crowd.submit(*[PICTURE_MS] * MANY, priority=Priority.BATCH)
        until(lambda: crowd.job(batch)["state"] == "running", "it is under way")
        jobs = []
        for _ in range(15):
            jobs.append(person.submit(1))
            person.job(jobs[-1], wait_seconds=30)
            time.sleep(PICTURE_MS / 1000 / 3)
        still = crowd.job(batch)["state"]
        crowd.http.post(f"/v1/jobs/{batch}/cancel")
        waits = sorted(
            float(str(waited))
            for (waited,) in fleet.service.ask(
                """
                SELECT extract(epoch FROM t.ended_at - t.created_at) * 1000 - (r.timings->>'read')::float8
                    - (r.timings->>'decode')::float8 - (r.timings->>'infer')::float8
                FROM wharf.tasks t JOIN wharf.results r ON r.task_id = t.id WHERE t.job_id = ANY (%s)
                """,
                jobs,
            )
        )
    assert still == "running"
    assert len(waits) == len(jobs)
    # One picture, and what a busy machine takes for the rest; a second picture would be another PICTURE_MS for most.
    assert waits[len(waits) // 2] < PICTURE_MS * 1.3, waits
    assert waits[-2] < PICTURE_MS * 2, waits


def test_two_tenants_make_progress_side_by_side(fleet: Fleet) -> None:
    first, second = fleet.tenant(), fleet.tenant()
    with fleet.unharmed():
        first_job = first.submit(*[5] * MANY, priority=Priority.BATCH)
        until(lambda: done(fleet, first_job) > 20, "the first is under way")
        second_job = second.submit(*[5] * MANY, priority=Priority.BATCH)
        began = done(fleet, first_job)
        until(lambda: done(fleet, second_job) >= 150, "the second has got somewhere", 60)
        ahead, behind = done(fleet, first_job) - began, done(fleet, second_job)
        for tenant, job in ((first, first_job), (second, second_job)):
            tenant.http.post(f"/v1/jobs/{job}/cancel")
    # What is in the queue already goes first.
    assert behind - 40 <= ahead <= behind + WINDOW + 40, (ahead, behind)


def done(fleet: Fleet, job: str) -> int:
    [(count,)] = fleet.service.ask("SELECT count(*) FROM wharf.tasks WHERE job_id = %s AND state = 'succeeded'", job)
    return int(str(count))
