"""The domain on one installation, put together as broker and worker do it, in the few words that tests need."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from custody.database import Database
from custody.files import Files, Kept, Media, Upload
from custody.ids import new_id
from custody.jobs import Jobs
from custody.tasks import Claim, Success, Tasks
from custody.volume import Volume, blob_path
from custody.wire import Box, Detection, EngineReference, Job, JobInput, ModelReference, Parameters, Priority, Timings

POOL = "digits"
MODEL = ModelReference(name=POOL, version=1, digest="ab" * 32)
MEDIA = Media("image/png", 40, 30, 1)
ENGINE = EngineReference(name="openvino", version="2026.1")
TIMINGS = Timings(queue=1, read=2, decode=3, infer=4)
DETECTIONS = [Detection(class_id=5, label="5", confidence=0.5, box=Box(x1=1, y1=2, x2=3, y2=4))]


class Domain:
    """Every method is one committed transaction, but `cancel` and `end`, which are the two that they promise to be."""

    def __init__(self, installation, api: Database, worker: Database) -> None:
        self.installation = installation
        self.api = api
        self.worker = worker
        self.volume = Volume(installation.volume, instance="broker")
        self.files = Files(self.volume)
        self.jobs = Jobs()
        self.tasks = Tasks(lease_seconds=30, max_attempts=3)

    def rows(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """What a statement gives a superuser, to whom no wall applies. It stops the event loop meanwhile: what may have
        to wait for a lock of somebody in this process goes through `change`."""
        with psycopg.connect(self.installation.url(), autocommit=True, row_factory=dict_row) as connection:
            found = connection.execute(statement, values)
            return found.fetchall() if found.description else []

    async def ask(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """`rows`, with the event loop running meanwhile."""
        return await asyncio.to_thread(self.rows, statement, values)

    async def change(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> None:
        await self.ask(statement, values)

    def add_model(self, name: str) -> None:
        self.rows(
            """
            INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)
            VALUES (%s, 1, sha256('a model'), 'models/none', 'detect', '[]', 1, 1)
            """,
            [name],
        )

    def add_tenant(self, name: str) -> UUID:
        tenant = new_id()
        self.rows("INSERT INTO wharf.tenants (id, name) VALUES (%s, %s)", [tenant, name])
        return tenant

    def add_worker(self, name: str, pool: str = POOL) -> None:
        """A living worker, and the model that it serves."""
        self.rows(
            "INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)"
            " VALUES (%s, 1, sha256('model'), 'models/x', 'detect', '[]', 1, 1) ON CONFLICT DO NOTHING",
            [pool],
        )
        self.rows(
            "INSERT INTO wharf.workers (name, pool, model_version, engine, slots) VALUES (%s, %s, 1, 'openvino', 2)",
            [name, pool],
        )

    async def keep(self, tenant: UUID, content: bytes, filename: str | None = None) -> Kept:
        async with self.volume.stage(1 << 30) as staging:
            await staging.write(content)
            upload = Upload(await staging.seal(), MEDIA, filename)
            async with self.api.transaction(tenant) as transaction:
                return await self.files.keep(transaction, tenant, [upload])

    async def submit(
        self,
        tenant: UUID,
        inputs: int = 1,
        *,
        pool: str = POOL,
        priority: Priority = Priority.INTERACTIVE,
        expires_in: float | None = None,
    ) -> UUID:
        """A job on a new file, `inputs` times."""
        kept = await self.keep(tenant, random.randbytes(16))
        files = [kept.files[0].id] * inputs
        return await self.submit_on(tenant, files, pool=pool, priority=priority, expires_in=expires_in)

    async def submit_on(
        self,
        tenant: UUID,
        files: Sequence[UUID],
        *,
        pool: str = POOL,
        priority: Priority = Priority.INTERACTIVE,
        expires_in: float | None = None,
        cache: bool = False,
    ) -> UUID:
        async with self.api.transaction(tenant) as transaction:
            submitted = await self.jobs.submit(
                transaction,
                tenant,
                model=pool,
                files=await self.files.hold(transaction, [JobInput(file=file) for file in files]),
                parameters=Parameters(),
                priority=priority,
                metadata={},
                expires_in=expires_in,
                cache=cache,
            )
        return submitted.job_id

    async def claim(
        self, limit: int = 1, *, pool: str = POOL, priority: Priority = Priority.INTERACTIVE, worker: str = "w1"
    ) -> list[Claim]:
        async with self.worker.transaction() as transaction:
            claimed = await self.tasks.claim_next(transaction, pool=pool, priority=priority, worker=worker, limit=limit)
        return claimed.claims

    async def succeed(self, claim: Claim) -> bool:
        return bool(await self.success(claim))

    async def success(self, claim: Claim) -> Success | None:
        """`succeed`, and what it tells."""
        async with self.worker.transaction() as transaction:
            return await self.tasks.succeed(transaction, claim, model=MODEL, detections=DETECTIONS, timings=TIMINGS)

    async def fail(self, claim: Claim) -> bool:
        async with self.worker.transaction() as transaction:
            return await self.tasks.fail(transaction, claim, code="undecodable_image", detail="It is no picture.")

    async def retry(self, claim: Claim, after_seconds: float = 0) -> str | None:
        """The state that the task came to."""
        async with self.worker.transaction() as transaction:
            ended = await self.tasks.retry(
                transaction, claim, code="worker_crashed", detail="It died.", after_seconds=after_seconds
            )
        return ended.state if ended else None

    async def finish(self, job: UUID) -> bool:
        async with self.worker.transaction() as transaction:
            return await self.jobs.finish(transaction, job)

    async def end(self, claim: Claim) -> bool:
        """As a worker ends a task: True where this was the end of its job too."""
        success = await self.success(claim)
        return bool(success and success.finished) or await self.finish(claim.job_id)

    async def cancel(self, tenant: UUID, job: UUID) -> bool:
        """As the broker cancels a job."""
        async with self.api.transaction(tenant) as transaction:
            cancelled = await self.jobs.cancel(transaction, job)
        if cancelled:
            await self.follow_cancel(tenant, job)
        return cancelled

    async def follow_cancel(self, tenant: UUID, job: UUID) -> None:
        async with self.api.transaction(tenant) as transaction:
            await self.tasks.cancel_open(transaction, job)
            await self.jobs.freeze(transaction, job)

    async def get(self, tenant: UUID, job: UUID) -> Job:
        """As it stands now: `self.jobs` may count an open job's progress a second late."""
        async with self.api.transaction(tenant) as transaction:
            found = await Jobs().get(transaction, job)
        assert found is not None
        return found

    async def expire_leases(self, worker: str | None = None) -> None:
        """Lets the time pass after which silent workers lose their tasks."""
        await self.change(
            "UPDATE wharf.tasks SET lease_until = now() - interval '1 second'"
            " WHERE state = 'running' AND (%(worker)s::text IS NULL OR worker = %(worker)s)",
            {"worker": worker},
        )

    def task_states(self, job: UUID) -> list[str]:
        found = self.rows("SELECT state FROM wharf.tasks WHERE job_id = %s ORDER BY input", [job])
        return [row["state"] for row in found]

    def blob(self, sha256: str) -> dict[str, Any]:
        [row] = self.rows("SELECT * FROM wharf.blobs WHERE sha256 = decode(%s, 'hex')", [sha256])
        return row

    def bytes_of(self, sha256: bytes) -> bytes | None:
        path = self.installation.volume / blob_path(sha256)
        return path.read_bytes() if path.exists() else None

    def staged(self) -> list[str]:
        return staged_files(self.installation.volume)


def staged_files(volume: Path) -> list[str]:
    return sorted(path.name for path in (volume / "staging").iterdir())
