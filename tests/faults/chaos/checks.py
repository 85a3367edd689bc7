"""The site held to what it promised, once all is healed and nothing is left to do."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import httpx

from tests.e2e.service import Service
from tests.faults.chaos.ledger import Deletion, KeptFile, Ledger, PromisedJob, Violation
from tests.faults.chaos.site import Site

T = TypeVar("T")

THREADS = 4
NAMED = 5
"""Of each broken promise of one kind, so many are named; the others are counted."""


def broken_promises(ledger: Ledger, service: Service) -> list[Violation]:
    """All that the ledger, the database and the volume say against the service. Nothing is changed."""
    found = chain(
        _of_each(list(ledger.files.values()), lambda http, file: _file(http, file), service),
        _of_each(list(ledger.jobs.values()), lambda http, job: _job(http, job), service),
        _open_work(service),
        _doubles(ledger, service),
        _results(service),
        (Violation("left over", what) for what in left_over(service)),
        _purged_bytes(ledger, service),
        _bytes(service),
    )
    return list(found)


def shortened(violations: Sequence[Violation]) -> list[str]:
    """A line each, but no more than `NAMED` of a kind."""
    kinds = Counter(violation.kind for violation in violations)
    lines = []
    for kind, count in kinds.items():
        of_kind = [str(violation) for violation in violations if violation.kind == kind]
        lines += of_kind[:NAMED] + ([f"{kind}: {count - NAMED} more"] if count > NAMED else [])
    return lines


def left_over(service: Service) -> list[str]:
    """What the processes, a cleanup among them, clear away by themselves in the end: uploads in progress, bytes that no
    row knows, and rows of bytes that nobody refers to."""
    in_progress = [path for folder in ("staging", "dropped") for path in (service.volume / folder).iterdir()]
    known = {str(sha256) for (sha256,) in service.ask("SELECT encode(sha256, 'hex') FROM wharf.blobs")}
    strays = [path for path in (service.volume / "blobs").rglob("*") if path.is_file() and path.name not in known]
    unwanted = service.ask(
        "SELECT encode(sha256, 'hex'), state FROM wharf.blobs b WHERE state <> 'present' OR"
        " NOT EXISTS (SELECT FROM wharf.files f WHERE f.sha256 = b.sha256)"
        " AND NOT EXISTS (SELECT FROM wharf.tasks t WHERE t.sha256 = b.sha256 AND t.ended_at IS NULL)"
    )
    paths = [str(path.relative_to(service.volume)) for path in sorted([*in_progress, *strays])]
    return [*paths, *(f"blob {sha256} ({state}), to which nothing refers" for sha256, state in unwanted)]


def bugs_told(site: Site) -> Iterator[Violation]:
    """By the processes, in their logs."""
    for member in site.members:
        words = member.part.output()
        if (at := words.find("Traceback")) >= 0:
            count = words.count("Traceback")
            yield Violation("harmed", f"{member.part.name} told of {count} bugs: {words[max(0, at - 500) : at + 1500]}")


def _of_each(
    promises: Sequence[T], check: Callable[[httpx.Client, T], Iterator[Violation]], service: Service
) -> Iterator[Violation]:
    with (
        httpx.Client(base_url=service.url, timeout=60, trust_env=False, verify=False) as http,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        yield from chain.from_iterable(threads.map(lambda promise: list(check(http, promise)), promises))


def _file(http: httpx.Client, file: KeptFile) -> Iterator[Violation]:
    answer = http.get(f"/v1/files/{file.id}/content", headers={"Authorization": f"Bearer {file.key}"})
    match file.deletion:
        case Deletion.NONE if answer.status_code != 200:
            yield Violation("lost", f"file {file.id} ({file.sha256}): {answer.status_code} {answer.text[:200]}")
        case Deletion.NONE if hashlib.sha256(answer.content).hexdigest() != file.sha256:
            yield Violation("lost", f"file {file.id} has other bytes than {file.sha256}")
        case Deletion.DONE | Deletion.PURGED if answer.status_code != 404:
            yield Violation("wrong", f"file {file.id} was deleted and is there: {answer.status_code}")
        case Deletion.DATED if answer.status_code != 404:
            yield Violation("left over", f"file {file.id}, whose time is over: {answer.status_code}")


def _job(http: httpx.Client, job: PromisedJob) -> Iterator[Violation]:
    answer = http.get(f"/v1/jobs/{job.id}", headers={"Authorization": f"Bearer {job.key}"})
    if answer.status_code != 200:
        yield Violation("lost", f"job {job.id}: {answer.status_code} {answer.text[:200]}")
        return
    found = answer.json()
    if found["finished_at"] is None:
        yield Violation("stuck", f"job {job.id} has not ended: {found['state']}, {found['progress']}")
        return
    if found["state"] not in job.endings:
        yield Violation("wrong", f"job {job.id} ended as {found['state']}: {[r['error'] for r in found['results']]}")
    if job.ended not in (None, found["state"]):
        yield Violation("wrong", f"job {job.id} was {job.ended}, and then {found['state']}")
    for result in found["results"]:
        if job.purge is Deletion.PURGED and not result["purged_at"]:
            yield Violation("wrong", f"job {job.id}: its input {result['input']} was purged, and is not: {result}")
        if job.purge is Deletion.NONE and result["purged_at"]:
            yield Violation("lost", f"job {job.id}: its input {result['input']} was purged, and nobody asked for it")
        is_told = result["state"] == "succeeded" and not result["purged_at"]
        expected = [job.fingerprints[result["input"]]] if is_told else None
        if result["detections"] != expected:
            yield Violation(
                "wrong", f"job {job.id}, input {result['input']}: {result['detections']} in place of {expected}"
            )
    succeeded = sum(result["state"] == "succeeded" for result in found["results"])
    if found["state"] == "succeeded" and succeeded != len(job.fingerprints):
        yield Violation("lost", f"job {job.id} succeeded with {succeeded} of {len(job.fingerprints)} results")


def _purged_bytes(ledger: Ledger, service: Service) -> Iterator[Violation]:
    held = {str(sha256) for (sha256,) in service.ask("SELECT encode(sha256, 'hex') FROM wharf.files")}
    purged = {file.sha256 for file in ledger.files.values() if file.deletion is Deletion.PURGED}
    for sha256 in purged - held:
        if (service.volume / "blobs" / "sha256" / sha256[:2] / sha256[2] / sha256).exists():
            yield Violation("left over", f"the bytes {sha256}, which were purged and which no file has")


def _open_work(service: Service) -> Iterator[Violation]:
    """Whoever it was promised to."""
    for job, state in service.ask(
        "SELECT id, state FROM wharf.jobs j WHERE state = 'open'"
        " OR EXISTS (SELECT FROM wharf.tasks t WHERE t.job_id = j.id AND t.ended_at IS NULL)"
    ):
        yield Violation("stuck", f"job {job} ({state}) has work that has not ended")
    for (task,) in service.ask("SELECT task_id FROM wharf.released"):
        yield Violation("left over", f"task {task} counts as released, and takes room in the queue's window")


def _doubles(ledger: Ledger, service: Service) -> Iterator[Violation]:
    """One job for each operation, whatever was sent again, and one rerun of it; and no results row twice."""
    for operation, jobs in service.ask(
        "SELECT metadata ->> 'operation', array_agg(id::text) FROM wharf.jobs WHERE metadata ? 'operation'"
        " GROUP BY tenant_id, metadata ->> 'operation', rerun_of HAVING count(*) > 1"
    ):
        yield Violation("duplicated", f"operation {operation} has the jobs {jobs}")
    for task, count in service.ask("SELECT task_id, count(*) FROM wharf.results GROUP BY task_id HAVING count(*) > 1"):
        yield Violation("duplicated", f"task {task} has {count} results")


def _results(service: Service) -> Iterator[Violation]:
    for task, state, attempt, stored in service.ask(
        "SELECT t.id, t.state, t.attempt, r.attempt FROM wharf.tasks t LEFT JOIN wharf.results r ON r.task_id = t.id"
        " WHERE (t.state = 'succeeded' AND t.purged_at IS NULL) <> (r.attempt IS NOT NULL) OR r.attempt <> t.attempt"
    ):
        yield Violation("wrong", f"task {task} is {state} in attempt {attempt}, its result is of attempt {stored}")


def _bytes(service: Service) -> Iterator[Violation]:
    for sha256, size in service.ask("SELECT encode(sha256, 'hex'), size FROM wharf.blobs WHERE state = 'present'"):
        name = str(sha256)
        path = service.volume / "blobs" / "sha256" / name[:2] / name[2] / name
        try:
            content = path.read_bytes()
        except OSError as error:
            yield Violation("lost", f"blob {name} is present and cannot be read: {error}")
            continue
        if len(content) != size or hashlib.sha256(content).hexdigest() != name:
            yield Violation("lost", f"blob {name} is present and has other bytes")
