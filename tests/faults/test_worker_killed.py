"""The worker killed with -9 before every change that it makes, from its start to the end of its jobs, where
the task rows are the queue: the next one of its name ends what it left, each task once."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from uuid import UUID

import pytest

from tests.conftest import ROOT
from tests.support.domain import Domain
from tests.support.worker_killed_before import WORKER

pytestmark = pytest.mark.postgres

FAR = 1_000_000
"""More changes than any worker makes: it is not killed."""

FEWEST = 15
"""Changes of a worker that has each end to write."""

ENDS = {
    "good": "succeeded",
    "slow": "succeeded",
    "failing": "failed",
    "crashing": "failed",
    "refused": "unprocessable",
    "corrupt": "unprocessable",
}


@pytest.fixture
def domain(installation, api_database, worker_database) -> Domain:
    return Domain(installation, api_database, worker_database)


@pytest.fixture
def work_until(installation) -> Iterator[Callable[[int], int]]:
    """A worker killed before its n-th change; gives its exit status."""
    environment = {
        **os.environ,
        "WHARF_DATABASE_URL": installation.url("wharf_worker"),
        "WHARF_VOLUME": str(installation.volume),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.worker_killed_before"],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip

        def work(number: int) -> int:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield work


@pytest.mark.timeout(600)
async def test_a_worker_killed_before_any_change_is_followed_by_one_that_ends_each_task_once(domain, work_until):
    domain.add_model("digits")
    acme = domain.add_tenant("acme")
    for number in range(1, FAR):
        jobs = await furnish(domain, acme, number)
        status = await asyncio.to_thread(work_until, number)
        assert status in (0, -signal.SIGKILL)
        assert_true_so_far(domain, jobs)
        assert await asyncio.to_thread(work_until, FAR) == 0
        assert_ended(domain, jobs, number)
        if status == 0:
            break
    assert number > FEWEST


async def furnish(domain: Domain, tenant: UUID, number: int) -> dict[str, UUID]:
    """A job of each kind of end, and what a death left behind: a job whose tasks have not followed its cancel, one that
    is open though its last task was ended, one that is overdue."""
    files = {kind: (await domain.keep(tenant, b"%s %d" % (kind.encode(), number))).files[0].id for kind in ENDS}
    cancelled, unfinished = [await domain.submit_on(tenant, [files["good"]]) for _ in range(2)]
    for claim in await domain.claim(2, worker=WORKER):
        if claim.job_id == unfinished:
            assert await domain.succeed(claim)
    async with domain.api.transaction(tenant) as transaction:
        assert await domain.jobs.cancel(transaction, cancelled)
    overdue = await domain.submit_on(tenant, [files["good"]], expires_in=3600)
    await domain.change("UPDATE wharf.jobs SET expires_at = created_at + interval '1 us' WHERE id = %s", [overdue])
    return {
        "cancelled": cancelled,
        "expired": overdue,
        "succeeded": await domain.submit_on(tenant, [files["good"], files["slow"]]),
        "failed": await domain.submit_on(tenant, list(files.values())),
        "unfinished": unfinished,
    }


def assert_true_so_far(domain: Domain, jobs: dict[str, UUID]) -> None:
    """No job is told to have ended that has not, or other than it did."""
    for name, job in jobs.items():
        [found] = domain.rows("SELECT state FROM wharf.jobs WHERE id = %s", [job])
        end = "succeeded" if name == "unfinished" else name
        assert found["state"] in ({"cancelled"} if end == "cancelled" else {"open", end}), name
        if found["state"] in ("succeeded", "failed"):
            assert not {"queued", "running"} & set(domain.task_states(job))


def assert_ended(domain: Domain, jobs: dict[str, UUID], number: int) -> None:
    for name, job in jobs.items():
        [found] = domain.rows("SELECT state FROM wharf.jobs WHERE id = %s", [job])
        assert found["state"] == ("succeeded" if name == "unfinished" else name), (name, number)
    states = {name: domain.task_states(job) for name, job in jobs.items()}
    assert states == {
        "cancelled": ["cancelled"],
        "expired": ["cancelled"],
        "succeeded": ["succeeded", "succeeded"],
        "failed": list(ENDS.values()),
        "unfinished": ["succeeded"],
    }, number
    tasks = domain.rows(
        """
        SELECT t.state, t.attempt - t.spared AS spent, count(r.task_id)::int AS results,
               bool_and(r.attempt = t.attempt) AS of_the_last_attempt
        FROM wharf.tasks t LEFT JOIN wharf.results r ON r.task_id = t.id
        WHERE t.job_id = ANY (%s) GROUP BY t.id
        """,
        [list(jobs.values())],
    )
    for task in tasks:
        assert task["results"] == (task["state"] == "succeeded"), number
        assert task["spent"] <= 3
        assert task["of_the_last_attempt"] in (None, True)
    corrupt = sha256(b"corrupt %d" % number).digest()
    blobs = domain.rows("SELECT sha256, state FROM wharf.blobs WHERE state <> 'present' AND sha256 = %s", [corrupt])
    assert [(bytes(blob["sha256"]), blob["state"]) for blob in blobs] == [(corrupt, "quarantined")]
    assert domain.rows("SELECT task_id FROM wharf.released") == []
