"""The broker killed with -9 before every statement of what changes something: it is done, with its receipt, or not, and
the same request, sent again to another broker, does it once."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from uuid import UUID

import httpx
import psycopg
import pytest

from broker.maintenance.migrate.migration import first_key
from custody.reconcile import Reconciler
from custody.tasks import Claim
from tests.conftest import ROOT, Installation
from tests.support.domain import POOL, Domain

FAR = 1_000_000
"""More statements than any broker sends: it is not killed."""

FEWEST = 5
"""Statements of a request that changes anything."""


@pytest.fixture
def installation(shared_installation) -> Installation:
    """Whose brokers serve all tests here: each has its own files and jobs."""
    return shared_installation


@pytest.fixture
def domain(installation, api_database, worker_database) -> Domain:
    return Domain(installation, api_database, worker_database)


@pytest.fixture
def tenant(domain, brokers) -> UUID:
    for table in ("results", "tasks", "jobs"):
        domain.rows(f"DELETE FROM wharf.{table}")
    return domain.rows("SELECT id FROM wharf.tenants WHERE name = 'default'")[0]["id"]


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


@pytest.fixture(scope="module")
def brokers(shared_installation) -> Iterator[Brokers]:
    key = asyncio.run(first_key(shared_installation.url(), "default"))
    with psycopg.connect(shared_installation.url(), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)"
            " VALUES (%s, 1, sha256('model'), 'models/x', 'detect', '[]', 1, 1)",
            [POOL],
        )
    with Brokers(shared_installation, key) as brokers:
        yield brokers


@pytest.mark.timeout(600)
async def test_a_submission_is_there_wholly_or_not_and_sent_again_is_there_once(domain, tenant, brokers):
    file = (await domain.keep(tenant, b"a picture")).files[0]

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
    job = await domain.submit(tenant, inputs=2)
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

    async def forget(number: int) -> None:
        seen.update(row["id"] for row in domain.rows("SELECT id FROM wharf.jobs WHERE rerun_of = %s", [job]))

    await until_it_is_not_killed(brokers, rerun, look, answers=202, after=forget)


@pytest.mark.timeout(600)
async def test_a_purge_takes_everything_or_nothing_and_sent_again_has_the_one_receipt(domain, tenant, brokers):
    files: dict[int, UUID] = {}

    async def furnish(number: int) -> None:
        file = (await domain.keep(tenant, b"a picture %d" % number)).files[0]
        files[number] = file.id
        await domain.submit_on(tenant, [file.id])
        job = await domain.submit_on(tenant, [file.id])
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("begun", [False, True], ids=["queued", "under way"])
async def test_a_cancel_holds_once_its_receipt_is_there_and_nothing_of_the_job_succeeds_afterwards(
    domain, tenant, brokers, notices, begun
):
    reconciler = Reconciler(domain.worker, domain.tasks, domain.jobs, notices, every_seconds=1)
    jobs: dict[int, UUID] = {}
    held: list[Claim] = []

    async def furnish(number: int) -> None:
        jobs[number] = await domain.submit(tenant, inputs=4)
        held[:] = await domain.claim(3) if begun else []
        if begun:
            await domain.succeed(held.pop())
            await domain.fail(held.pop())

    def cancel(client: httpx.Client, number: int) -> httpx.Response:
        return client.post(f"/v1/jobs/{jobs[number]}/cancel")

    def look(number: int) -> int:
        [job] = domain.rows("SELECT state FROM wharf.jobs WHERE id = %s", [jobs[number]])
        cancelled = job["state"] == "cancelled"
        assert job["state"] == ("cancelled" if cancelled else "open")
        assert receipts(domain, "job.cancelled", jobs[number]) == ["done"] * cancelled
        return int(cancelled)

    async def follow(number: int) -> None:
        for claim in held:
            assert not await domain.succeed(claim)
        assert not await domain.finish(jobs[number])
        await reconciler.run_once()
        ended = ["cancelled"] * 2 + ["failed", "succeeded"] if begun else ["cancelled"] * 4
        assert sorted(domain.task_states(jobs[number])) == ended
        after = await domain.get(tenant, jobs[number])
        assert (after.state, after.progress.done, after.progress.failed) == ("cancelled", int(begun), int(begun))
        assert look(number) == 1

    await until_it_is_not_killed(brokers, cancel, look, answers=200, before=furnish, after=follow)


@pytest.mark.timeout(600)
async def test_a_deleted_file_is_gone_with_its_receipt_and_its_job_keeps_the_bytes(domain, tenant, brokers):
    files: dict[int, UUID] = {}

    async def furnish(number: int) -> None:
        files[number] = (await domain.keep(tenant, b"to be deleted %d" % number)).files[0].id
        await domain.submit_on(tenant, [files[number]])

    def delete(client: httpx.Client, number: int) -> httpx.Response:
        return client.delete(f"/v1/files/{files[number]}")

    def look(number: int) -> int:
        deleted = not domain.rows("SELECT id FROM wharf.files WHERE id = %s AND deleted_at IS NULL", [files[number]])
        assert receipts(domain, "file.deleted", files[number]) == ["done"] * deleted
        [blob] = domain.rows("SELECT state FROM wharf.blobs WHERE sha256 = %s", [digest(b"to be deleted %d" % number)])
        assert (blob["state"], domain.bytes_of(digest(b"to be deleted %d" % number))) == (
            "present",
            b"to be deleted %d" % number,
        )
        return int(deleted)

    await until_it_is_not_killed(brokers, delete, look, answers=204, once_done=404, before=furnish)


@pytest.mark.timeout(600)
async def test_a_file_is_changed_with_as_many_receipts_as_it_was_changed(domain, tenant, brokers):
    files: dict[int, UUID] = {}
    seen: list[int] = []

    async def furnish(number: int) -> None:
        files[number] = (await domain.keep(tenant, b"to be pinned %d" % number)).files[0].id
        seen.clear()

    def change(client: httpx.Client, number: int) -> httpx.Response:
        return client.patch(f"/v1/files/{files[number]}", json={"pinned": True})

    def look(number: int) -> int:
        [file] = domain.rows("SELECT pinned FROM wharf.files WHERE id = %s", [files[number]])
        seen.append(len(receipts(domain, "file.changed", files[number])))
        assert file["pinned"] == (seen[-1] > 0)
        return int(file["pinned"])

    async def count(number: int) -> None:
        assert seen[1] == seen[0] + 1

    await until_it_is_not_killed(brokers, change, look, answers=200, before=furnish, after=count)


@pytest.mark.timeout(600)
async def test_known_bytes_are_added_once_however_often_they_are_sent(domain, tenant, brokers):
    await domain.keep(tenant, b"known")

    def add(client: httpx.Client, number: int) -> httpx.Response:
        path = f"/v1/files/sha256:{digest(b'known').hex()}"
        return client.post(path, params={"filename": f"{number}.png"}, headers={"Idempotency-Key": f"add-{number}"})

    def look(number: int) -> int:
        files = domain.rows("SELECT id FROM wharf.files WHERE filename = %s", [f"{number}.png"])
        for file in files:
            assert receipts(domain, "file.added", file["id"]).count("done") == 1
        [total] = domain.rows(
            "SELECT count(*)::int AS added FROM wharf.audit WHERE action = 'file.added' AND outcome = 'done'"
        )
        assert total["added"] == number - 1 + len(files)
        return len(files)

    await until_it_is_not_killed(brokers, add, look, answers=201)


@pytest.mark.timeout(600)
async def test_a_retry_of_several_jobs_reruns_each_of_them_once(domain, tenant, brokers):
    failed: dict[int, list[UUID]] = {}

    async def furnish(number: int) -> None:
        failed[number] = [await domain.submit(tenant) for _ in range(2)]
        for claim in await domain.claim(100):
            await domain.fail(claim)
        for job in failed[number]:
            assert await domain.finish(job)
        await domain.change(
            "UPDATE wharf.jobs SET metadata = jsonb_build_object('retry', %s::int) WHERE id = ANY (%s)",
            [number, failed[number]],
        )

    def retry(client: httpx.Client, number: int) -> httpx.Response:
        wish = {"metadata": {"retry": number}}
        return client.post("/v1/jobs/retry", json=wish, headers={"Idempotency-Key": f"retry-{number}"})

    def look(number: int) -> int:
        reruns = domain.rows("SELECT id, rerun_of FROM wharf.jobs WHERE rerun_of = ANY (%s)", [failed[number]])
        assert len({rerun["rerun_of"] for rerun in reruns}) == len(reruns)
        for rerun in reruns:
            assert domain.task_states(rerun["id"]) == ["queued"]
            assert receipts(domain, "job.rerun", rerun["id"]) == ["done"]
        for job in failed[number]:
            assert len(receipts(domain, "job.rerun", job)) == sum(rerun["rerun_of"] == job for rerun in reruns)
        return len(reruns)

    async def count_orders(number: int) -> None:
        [orders] = domain.rows(
            "SELECT count(*)::int AS done FROM wharf.audit WHERE action = 'job.retried' AND outcome = 'done'"
        )
        assert orders["done"] == number

    await until_it_is_not_killed(brokers, retry, look, answers=200, effects=2, before=furnish, after=count_orders)


def receipts(domain: Domain, action: str, named: UUID) -> list[str]:
    """The outcomes of those that name this file or job."""
    found = domain.rows(
        "SELECT outcome FROM wharf.audit WHERE action = %s AND (%s = ANY (files) OR %s = ANY (jobs)) ORDER BY id",
        [action, named, named],
    )
    return [row["outcome"] for row in found]


def digest(content: bytes) -> bytes:
    return sha256(content).digest()


async def until_it_is_not_killed(
    brokers: Brokers,
    ask: Callable[[httpx.Client, int], httpx.Response],
    look: Callable[[int], int],
    *,
    answers: int,
    once_done: int | None = None,
    effects: int = 1,
    before: Callable[[int], Awaitable[None]] | None = None,
    after: Callable[[int], Awaitable[None]] | None = None,
) -> None:
    """`look` says how much of it was done, of `effects`; `once_done`: what one is answered that is done already, where
    it is not `answers`."""
    done = set()
    for number in range(1, FAR):
        if before:
            await before(number)
        answer = None
        with brokers.killed_before(number) as client, suppress(httpx.TransportError):
            answer = await asyncio.to_thread(ask, client, number)
        before_again = look(number)
        done.add(before_again)
        again = await asyncio.to_thread(ask, brokers.living, number)
        assert again.status_code == (once_done if once_done and before_again else answers), again.text
        assert look(number) == effects, number
        if after:
            await after(number)
        if answer is not None:
            assert answer.status_code == answers
            break
    assert number > FEWEST
    assert done == set(range(effects + 1))


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
