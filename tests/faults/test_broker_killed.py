"""The broker killed with -9 before every statement of a submission, a rerun and a purge: each is done or not, and the
same request, sent again to another broker, does it once."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
import pytest

from broker.maintenance.migrate.migration import first_key
from tests.conftest import ROOT
from tests.support.domain import POOL, Domain

FAR = 1_000_000
"""More statements than any broker sends: it is not killed."""

FEWEST = 5
"""Statements of a request that changes anything."""


@pytest.fixture
def domain(installation, api_database, worker_database) -> Domain:
    return Domain(installation, api_database, worker_database)


@pytest.fixture
async def tenant(domain) -> tuple[UUID, str]:
    """Its id and a key of it."""
    key = await first_key(domain.installation.url(), "default")
    domain.add_worker("w1")
    return domain.rows("SELECT id FROM wharf.tenants WHERE name = 'default'")[0]["id"], key


class Brokers:
    """Those that are killed, one after the other, and one that lives."""

    def __init__(self, installation, key: str) -> None:
        self._key = key
        self._environment = {
            **os.environ,
            "WHARF_DATABASE_URL": installation.url("wharf_api"),
            "WHARF_VOLUME": str(installation.volume),
            "WHARF_DEFAULT_MODEL": POOL,
        }

    def __enter__(self) -> "Brokers":
        self._doomed = self._start("doomed", ["-m", "tests.support.broker_killed_before"])
        port = _free_port()
        self._living = self._start("living", ["-m", "wharfinger", "broker"], WHARF_PORT=str(port))
        self.living = self._client(port)
        _wait_until_it_answers(self.living)
        return self

    def __exit__(self, *_: object) -> None:
        self.living.close()
        self._doomed.stdin.close()
        self._living.terminate()
        for process in (self._living, self._doomed):
            process.wait(timeout=60)
            process.stdout.close()

    @contextmanager
    def killed_before(self, number: int) -> Iterator[httpx.Client]:
        """A broker that is killed before the n-th statement of what is asked of it; in the end it is gone."""
        port = _free_port()
        self._doomed.stdin.write(f"{number} {port}\n")
        self._doomed.stdin.flush()
        process = int(self._doomed.stdout.readline())
        with self._client(port) as client:
            _wait_until_it_answers(client)
            os.kill(process, signal.SIGUSR1)
            yield client
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
        assert int(self._doomed.stdout.readline()) in (0, -signal.SIGKILL)

    def _start(self, name: str, arguments: list[str], **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT, env={**self._environment, "WHARF_INSTANCE": name, **more},
            stdin=subprocess.PIPE if name == "doomed" else None, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _client(self, port: int) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=30,
            trust_env=False,
        )


@pytest.fixture
def brokers(installation, tenant) -> Iterator[Brokers]:
    with Brokers(installation, tenant[1]) as brokers:
        yield brokers


@pytest.mark.timeout(600)
async def test_a_submission_is_there_wholly_or_not_and_sent_again_is_there_once(domain, tenant, brokers):
    file = (await domain.keep(tenant[0], b"a picture")).files[0]

    def submit(client: httpx.Client, number: int) -> httpx.Response:
        wish = {"inputs": [{"file": str(file.id)}] * 3, "metadata": {"number": number}}
        return client.post("/v1/jobs", json=wish, headers={"Idempotency-Key": f"submit-{number}"})

    def look(number: int) -> int:
        jobs = domain.rows(
            "SELECT id, total FROM wharf.jobs WHERE metadata = jsonb_build_object('number', %s)", [number]
        )
        for job in jobs:
            assert domain.task_states(job["id"]) == ["queued"] * 3
        return len(jobs)

    await until_it_is_not_killed(brokers, submit, look, answers=202)


@pytest.mark.timeout(600)
async def test_a_rerun_is_there_wholly_or_not_and_sent_again_is_there_once(domain, tenant, brokers):
    job = await domain.submit(tenant[0], inputs=2)
    for claim in await domain.claim(2):
        await domain.fail(claim)
    assert await domain.finish(job)
    seen: set[UUID] = set()

    def rerun(client: httpx.Client, number: int) -> httpx.Response:
        return client.post(f"/v1/jobs/{job}/rerun?only=failed", headers={"Idempotency-Key": f"rerun-{number}"})

    def look(number: int) -> int:
        new = {row["id"] for row in domain.rows("SELECT id FROM wharf.jobs WHERE rerun_of = %s", [job])} - seen
        for each in new:
            assert domain.task_states(each) == ["queued"] * 2
        return len(new)

    def forget(number: int) -> None:
        seen.update(row["id"] for row in domain.rows("SELECT id FROM wharf.jobs WHERE rerun_of = %s", [job]))

    await until_it_is_not_killed(brokers, rerun, look, answers=202, after=forget)


@pytest.mark.timeout(600)
async def test_a_purge_takes_everything_or_nothing_and_sent_again_has_the_one_receipt(domain, tenant, brokers):
    files: dict[int, UUID] = {}

    async def furnish(number: int) -> None:
        file = (await domain.keep(tenant[0], b"a picture %d" % number)).files[0]
        files[number] = file.id
        await domain.submit_on(tenant[0], [file.id])
        job = await domain.submit_on(tenant[0], [file.id])
        for claim in await domain.claim(2):
            if claim.job_id == job:
                await domain.end(claim)

    def purge(client: httpx.Client, number: int) -> httpx.Response:
        return client.delete(f"/v1/files/{files[number]}?purge=true")

    def look(number: int) -> int:
        receipts = domain.rows(
            "SELECT results, tasks_cancelled FROM wharf.purges WHERE %s = ANY (file_ids)", [files[number]]
        )
        left = domain.rows("SELECT id FROM wharf.files WHERE id = %s", [files[number]])
        [tasks] = domain.rows(
            "SELECT count(*) FILTER (WHERE purged_at IS NULL)::int AS whole, count(r.task_id)::int AS results,"
            " count(*) FILTER (WHERE state IN ('queued', 'running'))::int AS open"
            " FROM wharf.tasks t LEFT JOIN wharf.results r ON r.task_id = t.id WHERE file_id = %s",
            [files[number]],
        )
        if receipts:
            assert (receipts, left) == ([{"results": 1, "tasks_cancelled": 1}], [])
            assert tasks == {"whole": 0, "results": 0, "open": 0}
        else:
            assert len(left) == 1
            assert tasks == {"whole": 2, "results": 1, "open": 1}
        return len(receipts)

    await until_it_is_not_killed(brokers, purge, look, answers=200, before=furnish)


async def until_it_is_not_killed(
    brokers: Brokers,
    ask: Callable[[httpx.Client, int], httpx.Response],
    look: Callable[[int], int],
    *,
    answers: int,
    before: Callable | None = None,
    after: Callable[[int], None] = lambda _: None,
) -> None:
    """`look` says how often it was done."""
    done = set()
    for number in range(1, FAR):
        if before:
            await before(number)
        answer = None
        with brokers.killed_before(number) as client, suppress(httpx.TransportError):
            answer = await asyncio.to_thread(ask, client, number)
        done.add(look(number))
        again = await asyncio.to_thread(ask, brokers.living, number)
        assert again.status_code == answers, again.text
        assert look(number) == 1, number
        after(number)
        if answer is not None:
            assert answer.status_code == answers
            break
    assert number > FEWEST
    assert done == {0, 1}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _wait_until_it_answers(client: httpx.Client) -> None:
    for _ in range(3000):
        with suppress(httpx.TransportError):
            client.get("/livez")
            return
        time.sleep(0.02)
    raise TimeoutError("the broker does not answer")
