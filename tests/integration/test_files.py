"""Files: bytes kept once, held by tenants, and never lost to a cleanup that runs at the same time."""

import asyncio
import random
import subprocess
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from uuid import UUID

import psycopg
import pytest

from custody.errors import CustodyError
from custody.files import Files, Upload
from custody.ids import new_id
from custody.volume import Volume, blob_path
from custody.wire import File, JobInput
from tests.support.domain import MEDIA, Domain

pytestmark = pytest.mark.postgres


async def test_a_kept_file_is_described_and_its_bytes_lie_in_the_tree_read_only(domain, acme):
    kept = await domain.keep(acme, b"a picture", "holiday.png")
    [file] = kept.files
    assert (file.sha256, file.size, file.filename) == (sha256(b"a picture").hexdigest(), 9, "holiday.png")
    assert (file.media_type, file.width, file.height, file.orientation) == ("image/png", 40, 30, 1)
    path = domain.volume.root / blob_path(bytes.fromhex(file.sha256))
    assert path.read_bytes() == b"a picture"
    assert path.stat().st_mode & 0o777 == 0o444
    assert domain.staged() == []
    async with domain.api.transaction(acme) as transaction:
        assert await domain.files.get(transaction, file.id) == file


@pytest.mark.parametrize("state", ["deleting", "quarantined"])
async def test_bytes_that_come_where_none_are_promised_say_how_many_they_are(domain, acme, state):
    digest = sha256(b"a picture").digest()
    await domain.change(
        "INSERT INTO wharf.blobs (sha256, size, state, fault) VALUES (%s, 1, %s, 'corrupt')", [digest, state]
    )
    await domain.keep(acme, b"a picture")
    assert domain.rows("SELECT size, state FROM wharf.blobs") == [{"size": 9, "state": "present"}]


async def test_thirty_two_clients_with_the_same_bytes_leave_one_blob_and_thirty_two_files(domain, acme):
    content = random.randbytes(3_000_000)
    kept = await asyncio.gather(*(domain.keep(acme, content) for _ in range(32)))
    assert len({one.files[0].id for one in kept}) == 32
    assert domain.rows("SELECT size, state FROM wharf.blobs") == [{"size": 3_000_000, "state": "present"}]
    assert domain.rows("SELECT count(*) FROM wharf.files") == [{"count": 32}]
    assert files_in_tree(domain) == [blob_path(sha256(content).digest())]
    assert domain.bytes_of(sha256(content).digest()) == content
    assert domain.staged() == []
    # The first is new to the tenant; the others saw what was committed when they began.
    assert not all(one.held_before for one in kept)


async def test_one_request_with_the_same_bytes_twice_makes_two_files_and_one_blob(domain, acme):
    kept = await keep_all(domain, acme, [b"one", b"two", b"one"])
    assert [file.sha256 for file in kept.files] == [sha256(text).hexdigest() for text in (b"one", b"two", b"one")]
    assert len({file.id for file in kept.files}) == 3
    assert len(files_in_tree(domain)) == 2
    assert domain.staged() == []


async def test_held_before_is_told_only_where_every_byte_was(domain, acme):
    assert not (await keep_all(domain, acme, [b"one"])).held_before
    assert (await keep_all(domain, acme, [b"one"])).held_before
    assert not (await keep_all(domain, acme, [b"one", b"two"])).held_before
    assert (await keep_all(domain, acme, [b"two", b"one"])).held_before


async def test_many_who_keep_the_same_files_in_any_order_never_wait_in_a_circle(domain, acme):
    contents = [random.randbytes(100) for _ in range(12)]
    await asyncio.gather(*(keep_all(domain, acme, random.sample(contents, 12)) for _ in range(16)))
    assert len(files_in_tree(domain)) == 12


async def test_bytes_of_one_tenant_are_saved_once_for_another_and_nothing_tells_it(domain, acme, globex):
    mine = (await domain.keep(acme, b"a picture")).files[0]
    digest = bytes.fromhex(mine.sha256)
    async with domain.api.transaction(globex) as transaction:
        assert not await domain.files.holds(transaction, digest)
        assert await domain.files.keep_known(transaction, globex, digest, None) is None
        assert await domain.files.get(transaction, mine.id) is None
        assert not await domain.files.delete(transaction, mine.id)
        assert await domain.files.page(transaction, before=None, limit=10) == []
        for wanted in (JobInput(file=mine.id), JobInput(sha256=mine.sha256)):
            with pytest.raises(CustodyError, match="Input 0") as refused:
                await domain.files.hold(transaction, [wanted])
            assert refused.value.code == "not_found"
    theirs = await domain.keep(globex, b"a picture")
    assert not theirs.held_before
    assert theirs.files[0].id != mine.id
    assert len(files_in_tree(domain)) == 1


async def test_known_bytes_become_another_file_without_being_sent(domain, acme):
    first = (await domain.keep(acme, b"a picture", "old.png")).files[0]
    digest = bytes.fromhex(first.sha256)
    async with domain.api.transaction(acme) as transaction:
        assert await domain.files.holds(transaction, digest)
        second = await domain.files.keep_known(transaction, acme, digest, "new.png")
        third = await domain.files.keep_known(transaction, acme, digest, None)
        assert await domain.files.keep_known(transaction, acme, sha256(b"another").digest(), None) is None
    assert len({first.id, second.id, third.id}) == 3
    assert (second.filename, third.filename) == ("new.png", "new.png")
    assert (second.sha256, second.size, second.media_type) == (first.sha256, first.size, first.media_type)


async def test_a_deleted_or_expired_file_is_gone_for_its_tenant(domain, acme):
    deleted, expired = await keep_all(domain, acme, [b"one", b"two"]), await domain.keep(acme, b"three")
    async with domain.api.transaction(acme) as transaction:
        for file in deleted.files:
            assert await domain.files.delete(transaction, file.id)
            assert not await domain.files.delete(transaction, file.id)
    domain.rows("UPDATE wharf.files SET expires_at = now() WHERE id = %s", [expired.files[0].id])
    async with domain.api.transaction(acme) as transaction:
        for file in [*deleted.files, *expired.files]:
            digest = bytes.fromhex(file.sha256)
            assert await domain.files.get(transaction, file.id) is None
            assert not await domain.files.holds(transaction, digest)
            assert await domain.files.keep_known(transaction, acme, digest, None) is None
            with pytest.raises(CustodyError):
                await domain.files.hold(transaction, [JobInput(file=file.id)])
        assert await domain.files.page(transaction, before=None, limit=10) == []
    assert not (await domain.keep(acme, b"one")).held_before


async def test_an_input_that_names_nothing_is_refused_by_its_field(domain, acme):
    file = (await domain.keep(acme, b"a picture")).files[0]
    async with domain.api.transaction(acme) as transaction:
        held = await domain.files.hold(transaction, [JobInput(sha256=file.sha256), JobInput(file=file.id)])
        assert [one.id for one in held] == [file.id, file.id]
        with pytest.raises(CustodyError) as refused:
            await domain.files.hold(transaction, [JobInput(file=file.id), JobInput(file=new_id())])
        assert refused.value.field == "inputs.1.file"
        with pytest.raises(CustodyError) as refused:
            await domain.files.hold(transaction, [JobInput(file=file.id), JobInput(sha256="0" * 64)])
        assert refused.value.field == "inputs.1.sha256"


async def test_lists_are_newest_first_and_page_by_the_last_id(domain, acme):
    ids = [(await domain.keep(acme, bytes([number]))).files[0].id for number in range(5)]
    async with domain.api.transaction(acme) as transaction:
        first = await domain.files.page(transaction, before=None, limit=3)
        second = await domain.files.page(transaction, before=first[-1].id, limit=3)
    assert [file.id for file in first + second] == ids[::-1]


async def test_a_keep_that_is_rolled_back_leaves_no_row_and_nothing_staged(domain, acme):
    async def keep_and_fail() -> None:
        async with domain.volume.stage(1000) as staging:
            await staging.write(b"a picture")
            upload = Upload(await staging.seal(), MEDIA, None)
            async with domain.api.transaction(acme) as transaction:
                await domain.files.keep(transaction, acme, [upload])
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await keep_and_fail()
    assert domain.rows("SELECT sha256 FROM wharf.blobs") == domain.rows("SELECT id FROM wharf.files") == []
    assert domain.staged() == []
    assert not (await domain.keep(acme, b"a picture")).held_before
    assert domain.bytes_of(sha256(b"a picture").digest()) == b"a picture"


# Cleanup runs beside all this. What it does to a blob is done here by hand, in the steps of the custody protocol.


@pytest.mark.parametrize("bytes_are_there", [True, False])
async def test_a_blob_that_is_being_deleted_is_brought_back(domain, acme, bytes_are_there):
    file = (await domain.keep(acme, b"a picture")).files[0]
    digest = bytes.fromhex(file.sha256)
    await let_go(domain, acme, file.id)
    async with cleanup(domain) as steps:
        assert await steps.mark(digest)
        if not bytes_are_there:
            assert await steps.remove(digest)
    kept = await domain.keep(acme, b"a picture")
    assert not kept.held_before
    assert_present(domain, digest, b"a picture")
    async with cleanup(domain) as steps:
        assert not await steps.remove(digest)
    assert_present(domain, digest, b"a picture")


async def test_an_upload_that_meets_a_cleanup_in_its_mark_waits_and_brings_the_bytes_back(domain, acme):
    file = (await domain.keep(acme, b"a picture")).files[0]
    digest = bytes.fromhex(file.sha256)
    await let_go(domain, acme, file.id)
    async with cleanup(domain) as steps, asyncio.TaskGroup() as group:
        async with steps.connection.transaction():
            assert await steps.lock(digest)
            upload = group.create_task(domain.keep(acme, b"a picture"))
            await until_somebody_waits(domain)
            assert not await steps.is_referenced(digest)
            await steps.set_deleting(digest)
        await upload
        assert not await steps.remove(digest)
    assert_present(domain, digest, b"a picture")


async def test_an_upload_that_meets_a_cleanup_in_its_removal_waits_and_brings_new_bytes(domain, acme):
    file = (await domain.keep(acme, b"a picture")).files[0]
    digest = bytes.fromhex(file.sha256)
    await let_go(domain, acme, file.id)
    async with cleanup(domain) as steps, asyncio.TaskGroup() as group:
        assert await steps.mark(digest)
        async with steps.connection.transaction():
            assert await steps.lock(digest)
            upload = group.create_task(domain.keep(acme, b"a picture"))
            await until_somebody_waits(domain)
            steps.unlink(digest)
        await upload
    assert_present(domain, digest, b"a picture")


async def test_a_cleanup_passes_by_what_an_upload_has_in_its_hands(domain, acme):
    file = (await domain.keep(acme, b"a picture")).files[0]
    digest = bytes.fromhex(file.sha256)
    await let_go(domain, acme, file.id)
    async with cleanup(domain) as steps:
        async with domain.volume.stage(1000) as staging:
            await staging.write(b"a picture")
            upload = Upload(await staging.seal(), MEDIA, None)
            async with domain.api.transaction(acme) as transaction:
                await domain.files.keep(transaction, acme, [upload])
                assert not await steps.mark(digest)
        assert not await steps.mark(digest)
    assert_present(domain, digest, b"a picture")


@pytest.mark.parametrize("named_by", ["file", "sha256"])
async def test_a_job_that_meets_a_cleanup_in_its_mark_is_refused(domain, acme, named_by):
    """The file was there when the job looked it up, and gone with its bytes when it took hold of them."""
    file = (await domain.keep(acme, b"a picture")).files[0]
    digest = bytes.fromhex(file.sha256)
    wanted = JobInput(file=file.id) if named_by == "file" else JobInput(sha256=file.sha256)

    async def hold() -> list[File]:
        async with domain.api.transaction(acme) as transaction:
            return await domain.files.hold(transaction, [wanted])

    async with cleanup(domain) as steps:
        async with steps.connection.transaction():
            assert await steps.lock(digest)
            holding = asyncio.create_task(hold())
            await until_somebody_waits(domain)
            await let_go(domain, acme, file.id)
            assert not await steps.is_referenced(digest)
            await steps.set_deleting(digest)
        with pytest.raises(CustodyError) as refused:
            await holding
    assert refused.value.code == "not_found"


async def test_a_job_on_bytes_that_came_after_it_had_looked_for_them_is_refused(domain, acme, monkeypatch):
    """It holds nothing of them: a cleanup could take them away before its commit."""
    file = (await domain.keep(acme, b"a picture")).files[0]
    await let_go(domain, acme, file.id)
    hold = domain.files._hold

    async def late(transaction, wanted) -> set[bytes]:
        monkeypatch.setattr(domain.files, "_hold", hold)
        await domain.keep(acme, b"a picture")
        return await hold(transaction, wanted)

    monkeypatch.setattr(domain.files, "_hold", late)
    with pytest.raises(CustodyError) as refused:
        async with domain.api.transaction(acme) as transaction:
            await domain.files.hold(transaction, [JobInput(sha256=file.sha256)])
    assert refused.value.code == "not_found"


async def test_a_job_and_a_cleanup_at_once_end_with_the_job_refused_or_the_bytes_kept(domain, acme):
    """A hundred times, with a file let go at the same moment."""
    outcomes: Counter[str] = Counter()

    async def submit(file: UUID, delay: float) -> str:
        await asyncio.sleep(delay)
        try:
            await domain.submit_on(acme, [file])
        except CustodyError as error:
            return error.code
        return "submitted"

    async def remove(file: UUID, digest: bytes, delay: float) -> None:
        await asyncio.sleep(delay)
        await let_go(domain, acme, file)
        async with cleanup(domain) as steps:
            await asyncio.sleep(random.uniform(0, 0.001))
            await steps.mark(digest)
            await steps.remove(digest)

    for number in range(100):
        content = number.to_bytes(2)
        file = (await domain.keep(acme, content)).files[0]
        digest = bytes.fromhex(file.sha256)
        delays = [random.uniform(0, 0.004), 0.0]
        if number % 2:
            delays.reverse()
        outcome, _ = await asyncio.gather(submit(file.id, delays[0]), remove(file.id, digest, delays[1]))
        outcomes[outcome] += 1
        if outcome == "submitted":
            assert_present(domain, digest, content)
        else:
            assert outcome == "not_found"
            # The job may have kept the first cleanup out for the moment in which it saw that the file was gone.
            async with cleanup(domain) as steps:
                await steps.mark(digest)
                await steps.remove(digest)
            assert state_of(domain, digest) == "deleting"
            assert domain.bytes_of(digest) is None
    assert len(outcomes) == 2, outcomes


async def test_uploads_and_cleanups_of_the_same_bytes_at_once_never_leave_a_promise_without_bytes(domain, acme):
    """A hundred times."""

    async def upload_and_let_go() -> None:
        await asyncio.sleep(random.uniform(0, 0.003))
        kept = await domain.keep(acme, b"a picture")
        assert_present(domain, digest, b"a picture")
        await let_go(domain, acme, kept.files[0].id)

    async def remove() -> None:
        async with cleanup(domain) as steps:
            for _ in range(4):
                await steps.mark(digest)
                await asyncio.sleep(random.uniform(0, 0.002))
                await steps.remove(digest)

    digest = sha256(b"a picture").digest()
    for _ in range(50):
        await asyncio.gather(upload_and_let_go(), remove(), upload_and_let_go())
        if state_of(domain, digest) == "present":
            assert_present(domain, digest, b"a picture")
    assert (await domain.keep(acme, b"a picture")).files
    assert_present(domain, digest, b"a picture")


async def test_a_file_deleted_while_a_task_runs_on_it_keeps_its_bytes_until_the_task_ends(domain, acme):
    file = (await domain.keep(acme, b"a picture")).files[0]
    digest = bytes.fromhex(file.sha256)
    await domain.submit_on(acme, [file.id])
    await let_go(domain, acme, file.id)
    async with cleanup(domain) as steps:
        assert not await steps.mark(digest)
        [claim] = await domain.claim()
        assert not await steps.mark(digest)
        assert (domain.volume.root / claim.path).read_bytes() == b"a picture"
        await domain.end(claim)
        assert await steps.mark(digest)


# A full disk


@pytest.fixture
def small_volume(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)]
    if subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not everywhere")
    try:
        volume = Volume(mount, instance="broker")
        volume.prepare(new_id())
        yield volume
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


async def test_a_full_disk_is_told_as_such_and_leaves_nothing_behind(domain, acme, small_volume):
    async def keep(content: bytes) -> None:
        async with small_volume.stage(1 << 30) as staging:
            await staging.write(content)
            upload = Upload(await staging.seal(), MEDIA, None)
            async with domain.api.transaction(acme) as transaction:
                await Files(small_volume).keep(transaction, acme, [upload])

    async def refused(size: int) -> CustodyError:
        with pytest.raises(CustodyError) as refused:
            await keep(random.randbytes(size))
        return refused.value

    await keep(b"this one fits")
    ballast = small_volume.root / "ballast"
    ballast.write_bytes(bytes(2_000_000))
    for error in await asyncio.gather(refused(1_500_000), refused(20_000_000)):
        assert (error.code, error.kind.status) == ("storage_full", 507)
    assert not list((small_volume.root / "staging").iterdir())
    assert domain.rows("SELECT size FROM wharf.blobs") == domain.rows("SELECT size FROM wharf.files") == [{"size": 13}]
    ballast.unlink()
    await keep(random.randbytes(1_500_000))


class Cleanup:
    """The steps of the cleanup on one blob, as a superuser."""

    def __init__(self, domain: Domain, connection: psycopg.AsyncConnection) -> None:
        self.connection = connection
        self._domain = domain

    async def mark(self, digest: bytes) -> bool:
        async with self.connection.transaction():
            if not await self.lock(digest, skip=True) or await self.is_referenced(digest):
                return False
            return await self.set_deleting(digest)

    async def remove(self, digest: bytes) -> bool:
        async with self.connection.transaction():
            if await self.lock(digest) != "deleting" or await self.is_referenced(digest):
                return False
            self.unlink(digest)
            return True

    async def lock(self, digest: bytes, *, skip: bool = False) -> str | None:
        """The blob's state; None where there is none, or another has it locked and it is to be skipped."""
        found = await self.connection.execute(
            f"SELECT state FROM wharf.blobs WHERE sha256 = %s FOR UPDATE {'SKIP LOCKED' if skip else ''}", [digest]
        )
        row = await found.fetchone()
        return row[0] if row else None

    async def is_referenced(self, digest: bytes) -> bool:
        found = await self.connection.execute(
            """
            SELECT EXISTS (SELECT FROM wharf.files WHERE sha256 = %(sha256)s AND deleted_at IS NULL
                           AND (expires_at IS NULL OR expires_at > now()))
                OR EXISTS (SELECT FROM wharf.tasks WHERE sha256 = %(sha256)s AND state IN ('queued', 'running'))
            """,
            {"sha256": digest},
        )
        return (await found.fetchone())[0]

    async def set_deleting(self, digest: bytes) -> bool:
        changed = await self.connection.execute(
            "UPDATE wharf.blobs SET state = 'deleting' WHERE sha256 = %s AND state = 'present'", [digest]
        )
        return changed.rowcount == 1

    def unlink(self, digest: bytes) -> None:
        (self._domain.volume.root / blob_path(digest)).unlink(missing_ok=True)


@asynccontextmanager
async def cleanup(domain: Domain):
    async with await psycopg.AsyncConnection.connect(domain.installation.url(), autocommit=True) as connection:
        yield Cleanup(domain, connection)


async def keep_all(domain: Domain, tenant: UUID, contents: list[bytes]):
    """One request with several files."""
    async with AsyncExitStack() as stack:
        uploads = []
        for content in contents:
            staging = await stack.enter_async_context(domain.volume.stage(1000))
            await staging.write(content)
            uploads.append(Upload(await staging.seal(), MEDIA, None))
        async with domain.api.transaction(tenant) as transaction:
            return await domain.files.keep(transaction, tenant, uploads)


async def let_go(domain: Domain, tenant: UUID, file: UUID) -> None:
    async with domain.api.transaction(tenant) as transaction:
        assert await domain.files.delete(transaction, file)


async def until_somebody_waits(domain: Domain) -> None:
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    for _ in range(1000):
        if domain.rows(waiting):
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("nobody waits for a lock")


def assert_present(domain: Domain, digest: bytes, content: bytes) -> None:
    assert state_of(domain, digest) == "present"
    assert domain.bytes_of(digest) == content


def state_of(domain: Domain, digest: bytes) -> str:
    return domain.rows("SELECT state FROM wharf.blobs WHERE sha256 = %s", [digest])[0]["state"]


def files_in_tree(domain: Domain) -> list[str]:
    root = domain.volume.root
    return [str(path.relative_to(root)) for path in (root / "blobs").rglob("*") if path.is_file()]
