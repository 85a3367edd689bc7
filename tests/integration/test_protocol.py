"""The custody protocol under a scheduler that stops every process before each statement and each operation on the disk,
lets any other go on, and ends some of them there: whatever the order, what was promised is kept.

Each run is made by a seed, which a failure prints with the whole schedule: `WHARF_PROTOCOL_SEED=… pytest
tests/integration/test_protocol.py -k MODE` repeats it, as far as Postgres wakes those who wait for the same lock in the
same order. `WHARF_PROTOCOL_SECONDS` is how long each mode goes on. Before them come walks, which nothing random
chooses: one process stops before each of its steps in turn, and others do meanwhile all that they can.
"""

import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from broker.maintenance.cleanup import cleanup as cleanup_module
from broker.maintenance.cleanup.cleanup import Cleanup, Rules
from broker.maintenance.verify import verification
from broker.maintenance.verify.pace import Pace
from broker.maintenance.verify.verification import Verification
from custody import cleanup, erasure, reruns, volume
from custody.cleanup import Retention
from custody.database import Database
from custody.errors import CustodyError
from custody.files import Files, Upload
from custody.jobs import Jobs
from custody.reconcile import Reconciler
from custody.removal import FOLDERS_AT_ONCE
from custody.tasks import Claim, Tasks
from custody.volume import Volume, blob_path
from custody.wire import JobInput, Parameters, Priority
from tests.conftest import Installation
from tests.support.domain import DETECTIONS, MEDIA, MODEL, POOL, TIMINGS
from tests.support.interleaver import Actor, ActorVolume, Scheduler, stepped_disk
from tests.support.nfs import Host, RealDisk, Vices

SECONDS = float(os.environ.get("WHARF_PROTOCOL_SECONDS", "6"))
SEED = os.environ.get("WHARF_PROTOCOL_SEED")
WATCHED = "WHARF_PROTOCOL_SECONDS" in os.environ

ACTORS_AT_ONCE = 6
ACTORS = 25
SHORT = 0.92
"""The share of runs that are short."""

SLEEPY, SLEEPY_INSIDE = 0.02, 0.15
"""How often an actor sleeps when it is its turn; in the midst of a transaction."""

# Those who are alone in a short run: few steps, so that each order of them comes.
CASTS = (
    ("submit", "delete", "remove"),
    ("rerun", "delete", "remove"),
    ("upload-known", "delete", "remove"),
    ("upload", "delete", "remove"),
    ("upload", "purge", "remove"),
    ("upload", "age", "clean"),
    ("submit", "purge", "remove"),
    ("work", "work", "work"),
    ("work", "cancel", "reconcile"),
    ("work", "silence", "reconcile", "work"),
)
DAMAGED_CASTS = (("damage", "upload", "verify", "upload"), ("damage", "work", "upload", "verify"))


@dataclass(frozen=True)
class Walk:
    """`who` stops before each of its steps in turn. `then` come one after another and go as far as they can; it goes on
    when they have. `let_go`: nobody holds the bytes when it begins; `damaged`: they are damaged; `lost`: its session is
    ended where it stops."""

    who: str
    then: tuple[str, ...]
    let_go: bool = False
    damaged: bool = False
    lost: bool = False


WALKS = (
    Walk("rerun", ("delete", "remove")),
    Walk("rerun", ("purge",)),
    Walk("submit", ("delete", "remove")),
    Walk("upload-known", ("delete", "remove")),
    Walk("upload-known", ("purge", "remove")),
    Walk("upload", ("remove",), let_go=True),
    Walk("remove", ("upload",), let_go=True),
    Walk("remove", ("upload",), let_go=True, lost=True),
    Walk("work", ("silence", "reconcile", "hang")),
    Walk("verify", ("work", "upload"), damaged=True),
)

PATIENCE = 80
"""How often a reader asks again for bytes that do not appear: longer than a host of the NFS model remembers."""

TERMINAL = {"succeeded", "failed", "unprocessable", "cancelled"}


@dataclass(frozen=True)
class Mode:
    """Shares are of steps. `lost`: sessions that the server ends, and answers to a COMMIT that do not arrive."""

    crashes: float = 0.0
    lost: float = 0.0
    nfs: bool = False
    damage: bool = False

    @property
    def may_refuse(self) -> bool:
        return self.lost > 0 or self.nfs


MODES = {
    "undisturbed": Mode(),
    "crashes": Mode(crashes=0.02),
    "lost-sessions": Mode(crashes=0.01, lost=0.02),
    "damage": Mode(crashes=0.01, damage=True),
    "nfs": Mode(nfs=True),
    "nfs-crashes": Mode(crashes=0.015, lost=0.01, nfs=True),
}


def contents() -> list[bytes]:
    """A few, so that everybody meets; all in the folders that the sweep sees first."""
    found: list[bytes] = []
    number = 0
    while len(found) < 3:
        content = b"picture %d" % number
        if sha256(content).digest()[0] == 0:
            found.append(content)
        number += 1
    return found


CONTENTS = contents()
DIGESTS = {sha256(content).digest(): content for content in CONTENTS}


@dataclass
class Ledger:
    """What was answered, and what was asked for: what a row may no longer be is decided when it is asked for."""

    files: dict[UUID, tuple[UUID, bytes]] = field(default_factory=dict)
    let_go: set[UUID] = field(default_factory=set)
    offered: set[tuple[UUID, bytes]] = field(default_factory=set)
    jobs: dict[UUID, UUID] = field(default_factory=dict)
    taken_back: set[tuple[UUID, bytes]] = field(default_factory=set)
    being_purged: Counter[tuple[UUID, bytes]] = field(default_factory=Counter)
    old_jobs: set[UUID] = field(default_factory=set)
    cancelled: set[UUID] = field(default_factory=set)
    succeeded: dict[UUID, int] = field(default_factory=dict)
    task_ends: dict[UUID, tuple[str, int]] = field(default_factory=dict)
    job_ends: dict[UUID, str] = field(default_factory=dict)
    attempts: dict[UUID, int] = field(default_factory=dict)


class Told:
    """Nobody listens."""

    def tell(self, topic: str) -> None:
        pass


class World:
    def __init__(
        self,
        mode: Mode,
        scheduler: Scheduler,
        installation: Installation,
        databases: dict[str, Database],
        tenants: list[UUID],
        cast: tuple[str, ...] | None = None,
    ) -> None:
        self.mode = mode
        self.scheduler = scheduler
        self.random = scheduler.random
        self.root = installation.volume
        self.api, self.worker, self.cleanup = databases["api"], databases["worker"], databases["cleanup"]
        self.tenants = tenants
        self.ledger = Ledger()
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.removal_was_disturbed = False
        self.damaged: set[bytes] = set()
        self.ever_damaged: set[bytes] = set()
        self.not_yet_healed: set[bytes] = set()
        self.cleaners: list[Actor] = []
        self.volumes: list[ActorVolume] = []
        self.tasks = Tasks(lease_seconds=300, max_attempts=3)
        casts = DAMAGED_CASTS if mode.damage else CASTS
        self.cast = cast or (self.random.choice(casts) if self.random.random() < SHORT else None)
        self.contents = CONTENTS[: 1 if self.cast else self.random.choice((1, 1, 1, 2, 2, 3))]
        self._restless = self.random.choice((0.05, 0.2, 0.5, 1.0))
        self._asleep: dict[Actor, int] = {}
        self._made = 0
        hosts = ("broker-1", "broker-2", "worker-1", "worker-2", "cleanup-1", "cleanup-2")
        vices = Vices()
        self._hosts = {
            name: Host(random.Random(self.random.random()), lambda: scheduler.now, vices) if mode.nfs else RealDisk()
            for name in hosts
        }
        self.kinds: list[tuple[str, str, int, Callable[[Volume], Coroutine[Any, Any, None]]]] = [
            ("damage", "broker", 2 if mode.damage else 0, self.damage),
            ("verify", "cleanup", 3 if mode.damage else 0, self.verify),
            ("purge", "broker", 1, self.purge),
            ("upload", "broker", 6, self.upload),
            ("upload-known", "broker", 2, self.upload_known),
            ("delete", "broker", 4, self.delete),
            ("expire", "broker", 2, self.expire),
            ("read", "broker", 2, self.read),
            ("submit", "broker", 5, self.submit),
            ("rerun", "broker", 2, self.rerun),
            ("cancel", "broker", 2, self.cancel),
            ("work", "worker", 8, self.work),
            ("hang", "worker", 1, self.hang),
            ("reconcile", "worker", 2, self.reconcile),
            ("silence", "worker", 1, self.fall_silent),
            ("age", "cleanup", 1, self.age),
            ("clean", "cleanup", 1, self.clean),
            ("remove", "cleanup", 6, self.remove),
        ]
        # No run is as another: in some there is much to delete and little to upload.
        self._wish = {name: weight * self.random.choice((0.2, 1, 3)) for name, _, weight, _ in self.kinds}

    # Actors

    def start(self, kind: str | None = None) -> None:
        idle = self._without_work()
        weights = [
            self._wish[name] if name == kind or (kind is None and name not in idle) else 0 for name, *_ in self.kinds
        ]
        # A second cleanup is kept out by a lock that its process holds; so is a second verification.
        alone = {"verify"} if any(a.name.startswith("verify") and not a.done for a in self.scheduler.actors) else set()
        if self._is_cleaning():
            alone |= {"clean", "remove"}
        weights = [0 if name in alone else weight for (name, *_), weight in zip(self.kinds, weights, strict=True)]
        name, host, _, act = self.random.choices(self.kinds, weights)[0]
        self._made += 1
        actor = Actor(f"{name}-{self._made}", self._hosts[f"{host}-{self.random.randint(1, 2)}"])
        if name in ("clean", "remove"):
            self.cleaners.append(actor)
        mount = ActorVolume(self.root, actor)
        self.volumes.append(mount)
        self.scheduler.start(actor, lambda: self._acting(name, act(mount)))

    def _without_work(self) -> set[str]:
        """Those who would find nothing to do."""
        ledger, idle = self.ledger, set()
        (now,) = self._ask(
            """
            SELECT EXISTS (SELECT FROM wharf.tasks WHERE state = 'queued') AS queued,
                   EXISTS (SELECT FROM wharf.tasks WHERE state = 'running') AS running,
                   EXISTS (SELECT FROM wharf.jobs WHERE state = 'open') AS open,
                   EXISTS (SELECT FROM wharf.suspects) OR EXISTS (SELECT FROM wharf.blobs WHERE state = 'deleting')
                       AS suspected
            """
        )
        if not now["queued"]:
            idle |= {"work", "hang"}
        if not now["running"]:
            idle.add("silence")
        if not ledger.jobs or not now["open"]:
            idle.add("cancel")
        if not ledger.jobs:
            idle.add("rerun")
        if not now["suspected"]:
            idle.add("remove")
        if not ledger.files.keys() - ledger.let_go:
            idle |= {"submit", "delete", "expire"}
        return idle

    async def _acting(self, name: str, act: Coroutine[Any, Any, None]) -> None:
        try:
            await act
            self.outcomes[name] += 1
        except CustodyError as refused:
            self.outcomes[f"{name}: {refused.code}"] += 1
            if refused.code in ("database_unavailable", "volume_unavailable") and not self.mode.may_refuse:
                self.violations.append(f"{name} was refused: {refused.detail}")

    async def upload(self, mount: Volume) -> None:
        tenant = self.random.choice(self.tenants)
        sent = self.random.sample(self.contents, min(len(self.contents), self.random.choice((1, 1, 2))))
        async with _all_staged(mount, sent) as uploads:
            self.ledger.offered |= {(tenant, content) for content in sent}
            async with self.api.transaction(tenant) as transaction:
                kept = await Files(mount).keep(transaction, tenant, uploads)
            for file in kept.files:
                self.ledger.files[file.id] = tenant, bytes.fromhex(file.sha256)

    async def upload_known(self, mount: Volume) -> None:
        tenant, content = self.random.choice(self.tenants), self.random.choice(self.contents)
        async with self.api.transaction(tenant) as transaction:
            file = await Files(mount).keep_known(transaction, tenant, sha256(content).digest(), None)
        if file is not None:
            self.ledger.files[file.id] = tenant, bytes.fromhex(file.sha256)
            if (tenant, content) not in self.ledger.offered:
                self.violations.append(f"{tenant} was given bytes that it never had")

    async def delete(self, mount: Volume) -> None:
        """All that is known of the same bytes: they may have to go."""
        if not (known := self._file()):
            return
        digest = self.ledger.files[known[1]][1]
        for file, (tenant, held) in list(self.ledger.files.items()):
            if held == digest and file not in self.ledger.let_go:
                self.ledger.let_go.add(file)
                async with self.api.transaction(tenant) as transaction:
                    await Files(mount).delete(transaction, file)

    async def purge(self, mount: Volume) -> None:
        """A tenant takes back all that it has of some bytes."""
        tenant, content = self.random.choice(self.tenants), self.random.choice(self.contents)
        digest = sha256(content).digest()
        self.ledger.taken_back.add((tenant, digest))
        self.ledger.being_purged[tenant, digest] += 1
        try:
            async with self.api.transaction(tenant) as transaction:
                purged = await erasure.purge_content(transaction, digest, gone_within=60)
        finally:
            self.ledger.let_go |= {file for file, held in self.ledger.files.items() if held == (tenant, digest)}
            self.ledger.being_purged[tenant, digest] -= 1
        for job in purged.jobs if purged else ():
            async with self.api.transaction(tenant) as transaction:
                await Jobs().finish(transaction, job)

    async def damage(self, mount: Volume) -> None:
        """The disk loses bytes, or holds others."""
        content = self.random.choice(self.contents)
        digest = sha256(content).digest()
        place = self.root / blob_path(digest)
        if place.exists():
            self.damaged.add(digest)
            self.ever_damaged.add(digest)
            self.not_yet_healed.add(digest)
            place.unlink()
            if wrong := self.random.choice((b"", b"other", content[:-1] + b"!")):
                place.write_bytes(wrong)

    async def verify(self, mount: Volume) -> None:
        quick = self.random.random() < 0.3
        await Verification(self.cleanup, mount, Pace(1e12), quick=quick, keep_seconds=0).run()

    async def expire(self, mount: Volume) -> None:
        """Time passes for one file; another is pinned, or let loose."""
        if known := self._file():
            self.ledger.let_go.add(known[1])
            self._pass_time("files", known[1], "expires_at = now() - interval '1 second'")
        if (known := self._file()) and known[1] not in self.ledger.let_go:
            self._pass_time("files", known[1], "pinned = NOT pinned")

    async def read(self, mount: Volume) -> None:
        """As the tenant itself, and as the other one."""
        if not (known := self._file()):
            return
        owner, file_id = known
        for tenant in self.tenants:
            async with self.api.transaction(tenant) as transaction:
                file = await Files(mount).get(transaction, file_id)
            if file is None:
                if tenant == owner and not self._may_go(file_id):
                    self.violations.append(f"file {file_id} was acknowledged, and is not there")
                continue
            if tenant != owner:
                self.violations.append(f"{tenant} sees the file of {owner}")
            digest = bytes.fromhex(file.sha256)
            await self._read(mount, digest, lambda: not self._may_go(file_id))

    async def submit(self, mount: Volume) -> None:
        tenant = self.random.choice(self.tenants)
        owned = [file for file, (owner, _) in self.ledger.files.items() if owner == tenant]
        files = [file for file in owned if file not in self.ledger.let_go] or owned
        if not files:
            return
        named = self.random.choices(self._likely(files), k=self.random.randint(1, 3))
        inputs = [
            JobInput(file=file)
            if self.random.random() < 0.7
            else JobInput(sha256=self.ledger.files[file][1].hex())
            for file in named
        ]  # fmt: skip
        async with self.api.transaction(tenant) as transaction:
            submitted = await Jobs().submit(
                transaction,
                tenant,
                model=POOL,
                files=await Files(mount).hold(transaction, inputs),
                parameters=Parameters(),
                priority=Priority.INTERACTIVE,
                metadata={},
            )
        self.ledger.jobs[submitted.job_id] = tenant

    async def rerun(self, mount: Volume) -> None:
        if not (known := self._job()):
            return
        tenant, job = known
        async with self.api.transaction(tenant) as transaction:
            original = await reruns.original(transaction, job, only_failed=self.random.random() < 0.3)
            if original is None:
                return
            wanted = [each.sha256 for each in original.inputs]
            files = Files(mount)
            held = await files.hold_known(transaction, wanted)
            reruns.require_held(original, held, await files.damaged(transaction, set(wanted) - held))
            inputs = [each.input for each in original.inputs]
            new_job = await Jobs().repeat(transaction, original.job_id, inputs)
        self.ledger.jobs[new_job] = tenant

    async def cancel(self, mount: Volume) -> None:
        if not (known := self._job()):
            return
        tenant, job = known
        jobs = Jobs()
        async with self.api.transaction(tenant) as transaction:
            cancelled = await jobs.cancel(transaction, job)
        if cancelled:
            self.ledger.cancelled.add(job)
            async with self.api.transaction(tenant) as transaction:
                await self.tasks.cancel_open(transaction, job)
                await jobs.freeze(transaction, job)

    async def hang(self, mount: Volume) -> None:
        """A worker that claims, and is not heard of again."""
        await self._claim(mount)

    async def _claim(self, mount: Volume) -> list[Claim]:
        async with self.worker.transaction() as transaction:
            claimed = await self.tasks.claim_next(
                transaction,
                pool=POOL,
                priority=Priority.INTERACTIVE,
                worker=mount.instance,
                limit=self.random.randint(1, 2),
            )
        self.ledger.attempts |= {claim.task_id: claim.attempt for claim in claimed.claims}
        return claimed.claims

    async def work(self, mount: Volume) -> None:
        for claim in await self._claim(mount):
            content = await self._read(mount, claim.sha256, lambda claim=claim: self._holds(claim))
            if content is not None and content != DIGESTS[claim.sha256]:
                async with self.worker.transaction() as transaction:
                    await self.tasks.report_corrupt(transaction, claim)
            await self._end(claim)

    async def _end(self, claim: Claim) -> None:
        ending = self.random.choices(("succeed", "fail", "retry", "give back"), (6, 2, 2, 1))[0]
        async with self.worker.transaction() as transaction:
            match ending:
                case "succeed":
                    ended = await self.tasks.succeed(
                        transaction, claim, model=MODEL, detections=DETECTIONS, timings=TIMINGS
                    )
                case "fail":
                    ended = await self.tasks.fail(transaction, claim, code="undecodable_image", detail="It is none.")
                case "retry":
                    ended = await self.tasks.retry(
                        transaction, claim, code="worker_crashed", detail="It died.", after_seconds=0
                    )
                case _:
                    ended = await self.tasks.give_back(transaction, [claim])
        if ended and claim.attempt < self.ledger.attempts[claim.task_id]:
            self.violations.append(
                f"attempt {claim.attempt} of task {claim.task_id} had the last word after a later one"
            )
        if ending == "succeed" and ended:
            self.ledger.succeeded[claim.task_id] = claim.attempt
        if ended:
            async with self.worker.transaction() as transaction:
                await Jobs().finish(transaction, claim.job_id)

    async def reconcile(self, mount: Volume) -> None:
        await Reconciler(self.worker, self.tasks, Jobs(), Told(), every_seconds=1).run_once()  # type: ignore[arg-type]

    async def fall_silent(self, mount: Volume) -> None:
        """The leases of some running tasks run out, whether their workers live or not."""
        for row in self._ask("SELECT id FROM wharf.tasks WHERE state = 'running' ORDER BY id"):
            if self.cast or self.random.random() < 0.5:
                self._pass_time("tasks", row["id"], "lease_until = now() - interval '1 second'")

    async def age(self, mount: Volume) -> None:
        """Days pass: for what the dead have left on the volume, for what lies in the tree, and for an ended job."""
        living = {actor.name for actor in self.scheduler.actors if not actor.done}
        for folder in ("staging", "dropped"):
            for path in (self.root / folder).iterdir():
                if path.name.split(".")[0] not in living:
                    _make_old(path)
        uploading = any(name.startswith("upload-") for name in living)
        for path in self._tree():
            # Of the other names nothing tells whose they are.
            if not uploading or "." not in path.name:
                _make_old(path)
        ended = self._ask("SELECT id FROM wharf.jobs WHERE state <> 'open' ORDER BY id")
        if ended:
            old = self.random.choice(ended)["id"]
            self.ledger.old_jobs.add(old)
            self._pass_time("jobs", old, "finished_at = now() - interval '91 days'")

    async def clean(self, mount: Volume) -> None:
        run = await Cleanup(self.cleanup, mount, self.rules(self.random.choice((None, None, timedelta(hours=1))))).run()
        if run.errors and not self.mode.may_refuse:
            self.violations.append(f"a cleanup had errors: {run.first_errors}")

    async def remove(self, mount: Volume) -> None:
        """Those steps of a cleanup alone that take bytes away."""
        cleaning = Cleanup(self.cleanup, mount, self.rules(None))
        await cleaning._each(cleanup.find_deleted, cleaning._remove_files)
        await cleaning._each(partial(cleanup.find_suspects, grace=None), cleaning._mark_bytes)
        await cleaning._each(cleanup.find_deleting, cleaning._remove_bytes)

    def rules(self, grace: timedelta | None, staging: timedelta = timedelta(hours=24)) -> Rules:
        retention = Retention(files=timedelta(days=30), jobs=timedelta(days=90))
        return Rules(
            retention=retention,
            receipt_days=90,
            grace=grace,
            staging=staging,
            orphan_fraction=1.0,
            quarantine=timedelta(0),
        )

    # What they have in common

    def _may_go(self, file: UUID) -> bool:
        return file in self.ledger.let_go or self.ledger.being_purged[self.ledger.files[file]] > 0

    def _file(self) -> tuple[UUID, UUID] | None:
        if not self.ledger.files:
            return None
        file = self.random.choice(self._likely(list(self.ledger.files)))
        return self.ledger.files[file][0], file

    def _likely(self, files: list[UUID]) -> list[UUID]:
        """Mostly those whose bytes may go when the files do: no task is open on them."""
        if self.random.random() < 0.4:
            return files
        tasks = self._ask("SELECT DISTINCT sha256 FROM wharf.tasks WHERE state IN ('queued', 'running')")
        busy = {row["sha256"] for row in tasks}
        return [file for file in files if self.ledger.files[file][1] not in busy] or files

    def _job(self) -> tuple[UUID, UUID] | None:
        if not self.ledger.jobs:
            return None
        jobs = list(self.ledger.jobs)
        job = self.random.choice(jobs if self.random.random() < 0.4 else jobs[-2:])
        return self.ledger.jobs[job], job

    async def _read(self, mount: Volume, digest: bytes, must_be_there: Callable[[], bool]) -> bytes | None:
        """As a worker and a client do: what a network file system says for a while about a file that is there is no
        reason to give up. None where the bytes need not be there."""
        for _ in range(PATIENCE if self.mode.may_refuse else 1):
            try:
                content = await _content(mount, digest)
            except CustodyError:
                if not must_be_there():
                    return None
                continue
            if content != DIGESTS[digest] and digest not in self.ever_damaged:
                self.violations.append(f"{digest.hex()[:8]} is read as {content!r}")
            return content
        if digest in self.ever_damaged or (self.removal_was_disturbed and self._withdrawn(digest)):
            return None
        self.violations.append(f"{mount.instance} cannot read {digest.hex()[:8]}, which is promised")
        return None

    def _holds(self, claim: Claim) -> bool:
        return bool(
            self._ask(
                "SELECT id FROM wharf.tasks WHERE id = %s AND attempt = %s AND state = 'running'",
                [claim.task_id, claim.attempt],
            )
        )

    def _ask(self, statement: str, values: list[Any] | None = None) -> list[dict[str, Any]]:
        return self.scheduler.observer.execute(statement.encode(), values or []).fetchall()

    def _pass_time(self, table: str, row: UUID, change: str) -> None:
        """Where nobody has the row locked: it waits for none."""
        self.scheduler.observer.execute(
            f"UPDATE wharf.{table} SET {change} WHERE id IN "
            f"(SELECT id FROM wharf.{table} WHERE id = %s FOR UPDATE SKIP LOCKED)".encode(),
            [row],
        )

    def _tree(self) -> list[Path]:
        first = self.root / "blobs" / "sha256" / "00"
        return sorted(path for folder in first.iterdir() for path in folder.iterdir())

    def _withdrawn(self, digest: bytes) -> bool:
        return any(path.name.startswith(digest.hex()) for path in (self.root / "dropped").iterdir())

    # What holds at any time

    def check(self) -> None:
        if self.scheduler.deadlocks:
            self.violations.append(f"deadlock: {self.scheduler.deadlocks}")
        blobs = {row["sha256"]: row for row in self._ask("SELECT sha256, size, state FROM wharf.blobs")}
        for digest, blob in blobs.items():
            if blob["state"] == "present":
                self._check_bytes(digest, blob["size"])
        self._check_references(blobs)
        self._check_ends()

    def _check_bytes(self, digest: bytes, size: int) -> None:
        place = self.root / blob_path(digest)
        try:
            content = place.read_bytes()
        except FileNotFoundError:
            if digest not in self.damaged and not (self.removal_was_disturbed and self._withdrawn(digest)):
                self.violations.append(f"{digest.hex()[:8]} is promised, and its bytes are missing")
            return
        if content == DIGESTS[digest] and len(content) == size:
            self.damaged.discard(digest)
            self.not_yet_healed.discard(digest)
        elif digest not in self.damaged:
            self.violations.append(f"{digest.hex()[:8]} holds {content!r}")

    def _check_references(self, blobs: dict[bytes, dict[str, Any]]) -> None:
        files = {
            row["id"]: row
            for row in self._ask(
                "SELECT id, tenant_id, sha256, pinned OR expires_at > now() AS unexpired, deleted_at FROM wharf.files"
            )
        }
        for file in files.values():
            state = blobs[file["sha256"]]["state"]
            if file["deleted_at"] is None and not self._is_held(file["sha256"], state):
                self.violations.append(f"file {file['id']} refers to bytes that are {state}")
        for acknowledged, (tenant, digest) in self.ledger.files.items():
            if acknowledged in self.ledger.let_go or self.ledger.being_purged[tenant, digest]:
                continue
            row = files.get(acknowledged)
            if row is None or row["deleted_at"] or (row["tenant_id"], row["sha256"]) != (tenant, digest):
                self.violations.append(f"file {acknowledged} was acknowledged, and is lost")
        held = {(file["tenant_id"], file["sha256"]) for file in files.values()}
        for task in self._ask("SELECT id, tenant_id, sha256 FROM wharf.tasks WHERE state IN ('queued', 'running')"):
            if (task["tenant_id"], task["sha256"]) not in held:
                self.violations.append(f"the tenant of the open task {task['id']} has no file of its bytes")
            if task["sha256"] not in blobs or not self._is_held(task["sha256"], blobs[task["sha256"]]["state"]):
                self.violations.append(f"the bytes of the open task {task['id']} are let go")

    def _is_held(self, digest: bytes, state: str) -> bool:
        return state == "present" or (state == "quarantined" and digest in self.not_yet_healed)

    def _check_ends(self) -> None:
        ledger = self.ledger
        tasks = self._ask(
            """
            SELECT t.id, t.job_id, t.tenant_id, t.sha256, t.state, t.attempt, t.purged_at, r.attempt AS result
            FROM wharf.tasks t
            LEFT JOIN wharf.results r ON r.task_id = t.id
            """
        )
        ends: dict[UUID, Counter[str]] = {}
        for task in tasks:
            ends.setdefault(task["job_id"], Counter())[task["state"]] += 1
            end = task["state"], task["attempt"]
            if task["state"] in TERMINAL and ledger.task_ends.setdefault(task["id"], end) != end:
                self.violations.append(f"task {task['id']} ended as {ledger.task_ends[task['id']]} and is {end}")
            if task["id"] in ledger.task_ends and task["state"] not in TERMINAL:
                self.violations.append(f"task {task['id']} had ended, and is {task['state']}")
            if task["purged_at"] and (task["tenant_id"], task["sha256"]) not in ledger.taken_back:
                self.violations.append(f"task {task['id']} was purged, and nobody asked for it")
            has_result = task["state"] == "succeeded" and not task["purged_at"]
            if task["result"] != (task["attempt"] if has_result else None):
                self.violations.append(f"task {task['id']} is {end} and has the result of attempt {task['result']}")
            if task["id"] in ledger.succeeded and end != ("succeeded", ledger.succeeded[task["id"]]):
                said = f"the success of task {task['id']} in attempt {ledger.succeeded[task['id']]}"
                self.violations.append(f"{said} was acknowledged, and it is {end}")
        seen = set()
        for job in self._ask("SELECT id, state, done, failed, total FROM wharf.jobs"):
            seen.add(job["id"])
            self._check_job(job, ends.get(job["id"], Counter()))
        for lost in ledger.jobs.keys() - seen - ledger.old_jobs:
            self.violations.append(f"job {lost} was acknowledged, and is lost")

    def _check_job(self, job: dict[str, Any], tasks: Counter[str]) -> None:
        ledger, state = self.ledger, job["state"]
        said = f"job {job['id']} is {state} ({job['done']} done, {job['failed']} failed) with {dict(tasks)}"
        if tasks.total() != job["total"]:
            self.violations.append(f"{said} of {job['total']}")
        if state != "open" and ledger.job_ends.setdefault(job["id"], state) != state:
            self.violations.append(f"{said}, and was {ledger.job_ends[job['id']]}")
        if state == "open" and job["id"] in ledger.job_ends:
            self.violations.append(f"{said}, and had ended")
        if job["id"] in ledger.cancelled and state != "cancelled":
            self.violations.append(f"{said}, and was cancelled")
        open_tasks = tasks["queued"] + tasks["running"]
        if state in ("succeeded", "failed"):
            expected = "succeeded" if tasks["succeeded"] == job["total"] else "failed"
            if open_tasks or state != expected:
                self.violations.append(said)
        if job["done"] is not None:
            counted = tasks["succeeded"], tasks["failed"] + tasks["unprocessable"]
            if open_tasks or counted != (job["done"], job["failed"]):
                self.violations.append(said)

    # The run

    async def run(self) -> None:
        await (self._furnish_short() if self.cast else self._furnish())
        for kind in self.cast or [None] * ACTORS_AT_ONCE:
            self.start(kind)
        current: Actor | None = None
        while not self.violations:
            ready = await self.scheduler.quiet()
            living = [actor for actor in self.scheduler.actors if not actor.done]
            while len(living) < ACTORS_AT_ONCE and self._made < ACTORS and not self.cast:
                removes = not self._is_cleaning() and "remove" not in self._without_work()
                self.start("remove" if removes and self.random.random() < 0.7 else None)
                living.append(self.scheduler.actors[-1])
                ready = await self.scheduler.quiet()
            if not living:
                break
            if not ready:
                self.violations.append(f"{[actor.name for actor in living]} wait for one another")
                break
            # Now and then one goes on alone for a while: some faults need many steps of one and few of another.
            awake = [actor for actor in ready if self._asleep.get(actor, 0) <= self.scheduler.now] or ready
            if current not in awake or self.random.random() < self._restless:
                weights = [4 if actor in self.cleaners else 1 for actor in awake]
                current = self.random.choices(awake, weights)[0]
            if self.random.random() < self._sleepiness(current):
                self._put_to_sleep(current)
                continue
            changes = current.label.startswith(("COMMIT", "rename", "unlink", "begins"))
            changes |= await self._move(current, living)
            self._raise_unforeseen()
            if changes:
                self.check()

    async def walk(self, walk: Walk, stop: int) -> bool:
        """False where it has ended before it came to its step number `stop`, the first one being 0."""
        await self._furnish_short()
        if walk.let_go:
            await self.delete(Volume(self.root, instance="before"))
        if walk.damaged:
            await self.damage(Volume(self.root, instance="before"))
        held = await self._go_far(walk.who, stop)
        if held.done:
            return False
        if walk.lost and held.backend is not None:
            self.removal_was_disturbed = True
            await self.scheduler.end_session(held)
        for kind in walk.then:
            await self._go_far(kind)
        while not self.violations and (ready := await self.scheduler.quiet()):
            await self._go_on(ready[0])
        if not self.violations and not all(actor.done for actor in self.scheduler.actors):
            self.violations.append("they wait for one another")
        return True

    async def _go_far(self, kind: str, steps: int | None = None) -> Actor:
        """Until it ends, or waits for a lock, or has done so many steps."""
        self.start(kind)
        actor = self.scheduler.actors[-1]
        while steps != 0 and not self.violations and actor in await self.scheduler.quiet():
            await self._go_on(actor)
            steps = None if steps is None else steps - 1
        await self.scheduler.quiet()
        return actor

    async def _go_on(self, actor: Actor) -> None:
        await self.scheduler.go_on(actor)
        self._raise_unforeseen()
        self.check()

    async def _furnish(self) -> None:
        """Files that are there, and some that were let go of."""
        mount = Volume(self.root, instance="before")
        for content in self.contents:
            tenant = self.random.choice(self.tenants)
            self.ledger.offered.add((tenant, content))
            async with _all_staged(mount, [content]) as uploads, self.api.transaction(tenant) as transaction:
                [file] = (await Files(mount).keep(transaction, tenant, uploads)).files
            self.ledger.files[file.id] = tenant, sha256(content).digest()
            if self.random.random() < 0.5:
                for _ in range(self.random.randint(1, 3)):
                    # What was let go of before is no input of anything.
                    with suppress(CustodyError):
                        await self.submit(mount)
            if self.random.random() < 0.5:
                self.ledger.let_go.add(file.id)
                async with self.api.transaction(tenant) as transaction:
                    await Files(mount).delete(transaction, file.id)

    async def _furnish_short(self) -> None:
        """One file; a job of two inputs for workers, or one that has ended for a rerun."""
        assert self.cast is not None
        mount, tenant, [content] = Volume(self.root, instance="before"), self.tenants[0], self.contents
        self.tenants = [tenant]
        self.ledger.offered.add((tenant, content))
        async with _all_staged(mount, [content]) as uploads, self.api.transaction(tenant) as transaction:
            [file] = (await Files(mount).keep(transaction, tenant, uploads)).files
        self.ledger.files[file.id] = tenant, sha256(content).digest()
        if {"work", "rerun"} & set(self.cast):
            await self.submit(mount)
        while "rerun" in self.cast and self._ask("SELECT id FROM wharf.jobs WHERE state = 'open'"):
            await self.work(mount)
        if {"delete", "purge", "work", "verify"}.isdisjoint(self.cast):
            await self.delete(mount)

    def _sleepiness(self, actor: Actor) -> float:
        if actor.name.startswith("work") and actor.label.startswith("open"):
            # It looks at a picture: nothing takes longer.
            return 0.5
        return SLEEPY if actor.backend is None else SLEEPY_INSIDE

    def _put_to_sleep(self, actor: Actor) -> None:
        """Others do much meanwhile."""
        self._asleep[actor] = self.scheduler.now + self.random.randint(5, 150)

    def _is_cleaning(self) -> bool:
        return any(not actor.done for actor in self.cleaners)

    async def _move(self, actor: Actor, living: list[Actor]) -> bool:
        """True where something was disturbed."""
        chance = self.random.random()
        if (
            self.mode.lost
            and actor in self.cleaners
            and actor.backend is not None
            and actor.label.startswith(("rename", "unlink"))
        ):
            # The worst moment of all.
            chance /= 10
        if chance < self.mode.crashes:
            await self.scheduler.crash(self.random.choice(living))
        elif chance < self.mode.crashes + self.mode.lost and actor.backend is not None:
            self.removal_was_disturbed |= actor in self.cleaners
            if actor.label == "COMMIT" and self.random.random() < 0.5:
                await self.scheduler.go_on_unanswered(actor)
            else:
                await self.scheduler.end_session(actor)
                self._put_to_sleep(actor)
        else:
            await self.scheduler.go_on(actor)
            return False
        return True

    def _raise_unforeseen(self) -> None:
        for actor in self.scheduler.actors:
            if actor.done and not actor.dead and (error := actor.task.exception()):
                raise error

    async def come_to_rest(self) -> None:
        """Nothing disturbs any more, and everybody has gone. What is left behind is mended, and nothing is stuck."""
        mount = Volume(self.root, instance="after")
        for _ in range(30):
            for row in self._ask("SELECT id FROM wharf.tasks WHERE state = 'running'"):
                self._pass_time("tasks", row["id"], "lease_until = now() - interval '1 second'")
            await self.reconcile(mount)
            await self.work(mount)
            self.check()
            if not self._ask("SELECT id FROM wharf.jobs WHERE state = 'open' OR done IS NULL"):
                break
        else:
            self.violations.append("jobs are stuck")
        await self._clean_up(mount)
        self.removal_was_disturbed = False
        if self.mode.damage:
            await self._heal(mount)
        self.check()
        self._check_nothing_is_left()
        for file, (_, digest) in self.ledger.files.items():
            if file not in self.ledger.let_go:
                await self._read(mount, digest, lambda: True)
        self._ask("UPDATE wharf.files SET deleted_at = now() WHERE deleted_at IS NULL RETURNING id")
        self.ledger.let_go |= self.ledger.files.keys()
        await self._clean_up(mount)
        self._check_nothing_is_left()
        if self._tree() or self._ask("SELECT sha256 FROM wharf.blobs"):
            self.violations.append("bytes that nobody refers to are left")

    async def _heal(self, mount: Volume) -> None:
        await Verification(self.cleanup, mount, Pace(1e12), keep_seconds=0).run()
        for content in self.contents:
            async with _all_staged(mount, [content]) as uploads, self.api.transaction(self.tenants[0]) as transaction:
                await Files(mount).keep(transaction, self.tenants[0], uploads)
        self.ever_damaged.clear()
        self.not_yet_healed.clear()
        self.damaged.clear()
        await self._clean_up(mount)

    async def _clean_up(self, mount: Volume) -> None:
        """Days later, twice: the second one meets what the first has put on its list."""
        for path in [*self._tree(), *(self.root / "staging").iterdir(), *(self.root / "dropped").iterdir()]:
            _make_old(path)
        for _ in range(2):
            run = await Cleanup(self.cleanup, mount, self.rules(None)).run()
            if run.stopped != "done" or run.errors:
                self.violations.append(f"the last cleanup: {run}")

    def _check_nothing_is_left(self) -> None:
        left = [path.name for folder in ("staging", "dropped", "quarantine") for path in (self.root / folder).iterdir()]
        if left:
            self.violations.append(f"left on the volume: {left}")
        rows = {row["sha256"]: row["state"] for row in self._ask("SELECT sha256, state FROM wharf.blobs")}
        held = {row["sha256"] for row in self._ask("SELECT sha256 FROM wharf.files")}
        names = {path.name for path in self._tree()}
        if rows.keys() != held or names != {digest.hex() for digest in held} or set(rows.values()) - {"present"}:
            self.violations.append(f"rows {rows}, references {held}, bytes {names}")


async def _content(mount: Volume, digest: bytes) -> bytes:
    """Empty where it is of another size than it should be."""
    descriptor = await mount.open(digest, len(DIGESTS[digest]))
    if descriptor is None:
        return b""
    try:
        return await mount.read(descriptor, 0, 1 << 20)
    finally:
        await mount.run(lambda: os.close(descriptor))


@asynccontextmanager
async def _all_staged(mount: Volume, sent: list[bytes]) -> AsyncIterator[list[Upload]]:
    async with mount.stage(1 << 20) as first:
        await first.write(sent[0])
        uploads = [Upload(await first.seal(), MEDIA, None)]
        if len(sent) == 1:
            yield uploads
            return
        async with _all_staged(mount, sent[1:]) as rest:
            yield uploads + rest


def _make_old(path: Path) -> None:
    past = time.time() - 3 * 86_400
    with suppress(FileNotFoundError):
        os.utime(path, (past, past))


@pytest.fixture
def databases(installation: Installation) -> dict[str, Database]:
    """Not yet open."""
    return {
        role: Database(
            installation.url(f"wharf_{role}"), name=role, size=ACTORS_AT_ONCE + 4, by_index=role == "cleanup"
        )
        for role in ("api", "worker", "cleanup")
    }


@pytest.fixture
async def scheduler(
    installation: Installation, databases: dict[str, Database], monkeypatch
) -> AsyncIterator[Scheduler]:
    # Of the 4,096 folders, those that hold anything here.
    monkeypatch.setattr(cleanup_module, "FOLDERS", FOLDERS_AT_ONCE)
    monkeypatch.setattr(verification, "range", lambda n: range(min(n, 3)), raising=False)
    monkeypatch.setattr(verification, "PAUSE_SECONDS", 0)
    # The process has ended before: what is left is found by a cleanup.
    monkeypatch.setattr(volume, "UNLINK_AFTER_SECONDS", (86_400, 86_400))
    with psycopg.connect(installation.url(), autocommit=True, row_factory=dict_row) as observer:
        scheduler = Scheduler(observer)
        for database in databases.values():
            scheduler.connect(database)
            await database.open()
        try:
            yield scheduler
        finally:
            for database in databases.values():
                await database.close()


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: "-".join((walk.who, *walk.then, *["lost"] * walk.lost)))
@pytest.mark.timeout(300)
async def test_whoever_stops_before_any_of_its_steps_meets_what_others_have_done(
    walk, installation, databases, domain, acme, scheduler
):
    mode = Mode(lost=1.0 if walk.lost else 0.0, damage=walk.damaged)
    for stop in count():
        empty(installation, scheduler.observer)
        scheduler.begin(stop)
        world = World(mode, scheduler, installation, databases, [acme], (walk.who, *walk.then))
        stops: list[bool] = []

        async def act(world: World = world, stop: int = stop, stops: list[bool] = stops) -> None:
            stops.append(await world.walk(walk, stop))

        await one_run(world, act, f"stopped before step {stop}", rest=walk.lost)
        if not stops[0]:
            break
    assert stop > 3
    if WATCHED:
        print(f"{walk}: {stop} schedules")  # noqa: T201


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.timeout(120 + 2 * SECONDS)
async def test_whatever_the_order_every_promise_is_kept(mode, installation, databases, domain, acme, globex, scheduler):
    outcomes: Counter[str] = Counter()
    steps = runs = 0
    ends = time.monotonic() + SECONDS
    while not runs or (time.monotonic() < ends and SEED is None):
        seed = int(SEED) if SEED is not None else random.randrange(1 << 32)
        empty(installation, scheduler.observer)
        scheduler.begin(seed)
        world = World(MODES[mode], scheduler, installation, databases, [acme, globex])
        await one_run(world, world.run, f"WHARF_PROTOCOL_SEED={seed}")
        outcomes += world.outcomes
        steps += scheduler.now
        runs += 1
    if WATCHED:
        print(f"{mode}: {runs} runs, {steps} steps, {dict(sorted(outcomes.items()))}")  # noqa: T201


async def one_run(world: World, act: Callable[[], Coroutine[Any, Any, None]], name: str, *, rest: bool = True) -> None:
    """`rest`: whether what is left behind is mended at the end."""
    scheduler = world.scheduler
    try:
        with stepped_disk(scheduler):
            try:
                await act()
            finally:
                await scheduler.end_all()
            if rest and not world.violations:
                await world.come_to_rest()
    except Exception as error:
        raise AssertionError(_story(scheduler, name, [f"{type(error).__name__}: {error}"])) from error
    finally:
        for mount in world.volumes:
            mount.close()
    assert not world.violations, _story(scheduler, name, world.violations)


def _story(scheduler: Scheduler, name: str, violations: list[str]) -> str:
    return "\n".join([name, *scheduler.schedule, *violations])


def empty(installation: Installation, observer: psycopg.Connection[Any]) -> None:
    observer.execute(
        "TRUNCATE wharf.files, wharf.blobs, wharf.suspects, wharf.jobs, wharf.tasks, wharf.results,"
        " wharf.cleanup_runs, wharf.verify_runs CASCADE"
    )
    observer.execute(
        "UPDATE wharf.installation SET checkpoint = NULL, checkpoint_next = NULL, fingerprint = NULL,"
        " sweep_off_since = NULL, sweep_off_reason = NULL"
    )
    root = installation.volume
    (root / "checkpoint").unlink(missing_ok=True)
    for folder in (
        root / "staging",
        root / "dropped",
        root / "quarantine",
        *(root / "blobs" / "sha256" / "00").iterdir(),
    ):
        for path in folder.iterdir():
            path.unlink()
