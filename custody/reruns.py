"""Reruns: a new job on the inputs of one that was, and which of many jobs deserve one.

A task's row carries all that a worker must know of its file, so a rerun needs no file's row; but its tenant must still
hold the bytes, or it would revive what was let go.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from custody.database import Transaction
from custody.errors import CustodyError
from custody.tenants import operators_only
from custody.wire import Priority, RetryRequest

BEFORE_ALL = UUID(int=0)


@dataclass(frozen=True)
class Repeated:
    """One input of the original: its number there, and its bytes."""

    input: int
    sha256: bytes


@dataclass(frozen=True)
class Original:
    """A job, and those of its inputs that are to run again; it stays while the transaction lasts."""

    job_id: UUID
    model: str
    priority: Priority
    inputs: Sequence[Repeated]


@dataclass(frozen=True)
class Match:
    """A job that a retry is about. `failed`: its failed inputs; `rerun`: the job that this walk has made of it
    already."""

    job: UUID
    tenant_id: UUID
    tenant: str
    failed: int
    rerun: UUID | None


@dataclass(frozen=True)
class Walk:
    """Through all jobs that match, in the order of their ids. `began`: by the database's clock; what was made since
    then, by the walk itself as well, is not met; `after`: the last job that was met."""

    began: datetime
    after: UUID = BEFORE_ALL

    def __str__(self) -> str:
        return f"{self.began.isoformat()} {self.after}"


async def original(transaction: Transaction, job_id: UUID, *, only_failed: bool) -> Original | None:
    """None where the tenant has no such job.

    Raises `CustodyError`: `job_not_ended` where `only_failed` of its inputs are asked for and others may still fail,
    `nothing_to_rerun` where none has."""
    # Its row stays, whoever cleans up; it may end meanwhile.
    found = await transaction.execute(
        "SELECT model, priority, state FROM wharf.jobs WHERE id = %s FOR KEY SHARE", [job_id]
    )
    job = await found.fetchone()
    if job is None:
        return None
    if only_failed and job["state"] == "open":
        raise CustodyError(
            "job_not_ended", "More of its inputs may fail yet: wait for the job's end, or cancel it.", field="only"
        )
    found = await transaction.execute(
        """
        SELECT input, sha256 FROM wharf.tasks
        WHERE job_id = %s AND (NOT %s OR state IN ('failed', 'unprocessable')) ORDER BY input
        """,
        [job_id, only_failed],
    )
    inputs = [Repeated(row["input"], row["sha256"]) for row in await found.fetchall()]
    if not inputs:
        raise CustodyError("nothing_to_rerun", "None of the job's inputs has failed.", field="only")
    return Original(job_id, job["model"], Priority(job["priority"]), inputs)


def require_held(wanted: Original, held: set[bytes], damaged: set[bytes]) -> None:
    """Raises `CustodyError` for the first input whose bytes are not among those `held`: `file_corrupt` where they are
    `damaged`, `input_gone` otherwise."""
    for each in wanted.inputs:
        if each.sha256 in damaged:
            raise CustodyError(
                "file_corrupt",
                f"The bytes of input {each.input} (sha256 {each.sha256.hex()}) are damaged or gone. Upload the same "
                "bytes again, then rerun the job.",
                field=f"inputs.{each.input}",
            )
        if each.sha256 not in held:
            raise CustodyError(
                "input_gone",
                f"You do not hold the bytes of input {each.input} any more (sha256 {each.sha256.hex()}). Upload them "
                "again, or submit a job on the other inputs.",
                field=f"inputs.{each.input}",
            )


async def now(transaction: Transaction) -> datetime:
    """The transaction's time, by the database's clock."""
    found = await transaction.execute("SELECT now() AS now")
    row = await found.fetchone()
    assert row is not None
    moment: datetime = row["now"]
    return moment


async def matching(transaction: Transaction, wish: RetryRequest, walk: Walk) -> list[Match]:
    """The next jobs of the walk, up to `wish.limit`.

    Raises `CustodyError("forbidden")` where all tenants' are asked for and the transaction is not the operator's."""
    source = "wharf.all_jobs_to_retry" if wish.all_tenants else "wharf.jobs_to_retry"
    async with operators_only("retries the jobs of all tenants"):
        found = await transaction.execute(
            f"SELECT * FROM {source}(%s, %s, %s, %s, %s, %s::jsonb, %s, %s, %s)",
            [
                walk.began, walk.after, wish.state, wish.model, wish.error_code,
                None if wish.metadata is None else json.dumps(wish.metadata), wish.created_after, wish.created_before,
                wish.limit,
            ],
        )  # fmt: skip
    return [Match(**row) for row in await found.fetchall()]


async def newest_rerun(transaction: Transaction, job_id: UUID) -> UUID | None:
    """The one that the job has by now, cancelled ones aside. Until the transaction ends, no other retry makes one."""
    await transaction.execute("SELECT 1 FROM wharf.jobs WHERE id = %s FOR NO KEY UPDATE", [job_id])
    found = await transaction.execute(
        """
        SELECT id FROM wharf.jobs
        WHERE rerun_of = %s AND state <> 'cancelled' ORDER BY id DESC LIMIT 1
        """,
        [job_id],
    )
    row = await found.fetchone()
    return None if row is None else row["id"]
