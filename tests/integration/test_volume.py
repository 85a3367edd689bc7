"""The volume: bytes staged, hashed, moved into the tree and read again, and what a crash or a wrong mount brings."""

import asyncio
import os
import random
from hashlib import sha256

import pytest

from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.installation import check_volume
from custody.volume import CHUNK, Staged, Volume, blob_path
from tests.support.domain import staged_files


@pytest.fixture
def volume(shared_installation) -> Volume:
    return Volume(shared_installation.volume, instance="broker")


@pytest.mark.parametrize("size", [1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("piece", [777, 64 * 1024, 1 << 30])
async def test_what_is_written_in_any_pieces_is_staged_hashed_and_read_again(volume, size, piece):
    piece = max(piece, size // 50)
    content = random.randbytes(size)
    async with volume.stage(size) as staging:
        for offset in range(0, size, piece):
            await staging.write(content[offset : offset + piece])
        staged = await staging.seal()
        assert (staged.sha256, staged.size) == (sha256(content).digest(), size)
        assert staged.path.read_bytes() == content
        await volume.keep(staged)
    assert staged_files(volume.root) == []
    descriptor = await volume.open(staged.sha256, staged.size)
    try:
        assert await volume.read(descriptor, 0, size) == content
        assert await volume.read(descriptor, size - 1, 10) == content[-1:]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [10, CHUNK, 2 * CHUNK + 5])
async def test_the_first_byte_over_the_limit_is_refused_and_nothing_is_left(volume, size):
    async with volume.stage(size) as staging:
        for _ in range(size // 5):
            await staging.write(bytes(5))
        await staging.write(bytes(size % 5))
        with pytest.raises(CustodyError) as refused:
            await staging.write(b"x")
    assert (refused.value.code, refused.value.kind.status) == ("file_too_large", 413)
    assert staged_files(volume.root) == []


async def test_an_upload_that_breaks_off_leaves_nothing(volume):
    async def break_off() -> None:
        async with volume.stage(1 << 30) as staging:
            await staging.write(bytes(3 * CHUNK))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    assert staged_files(volume.root) == []


async def test_an_upload_holds_two_chunks_of_memory_at_most(volume):
    async with volume.stage(1 << 30) as staging:
        for _ in range(64):
            await staging.write(bytes(CHUNK // 4))
            assert len(staging._buffer) < CHUNK


async def test_dropped_bytes_are_gone_soon_and_the_tree_keeps_its_own(volume):
    kept = await keep(volume, b"a picture")
    inode = (volume.root / blob_path(kept.sha256)).stat().st_ino
    async with volume.stage(100) as staging:
        await staging.write(b"a picture")
        await volume.drop(await staging.seal())
        assert staged_files(volume.root) == []
    [path] = (volume.root / blob_path(kept.sha256)).parent.iterdir()
    assert (path.name, path.stat().st_ino) == (kept.sha256.hex(), inode)
    for _ in range(500):
        if not (left := list((volume.root / "dropped").iterdir())):
            break
        await asyncio.sleep(0.01)
    assert left == []


async def test_what_others_leave_in_the_quarantine_is_none_of_ours(volume):
    ours = f"{'ab' * 32}.{new_id()}"
    names = (ours, "README.txt", ".nfs0000001", f".{ours}.swp", "ab.cd")
    for name in names:
        (volume.root / "quarantine" / name).write_bytes(b"damaged")
    assert [each.name for each in await volume.quarantined()] == [ours]
    for name in names:
        (volume.root / "quarantine" / name).unlink()


async def test_a_rename_that_answers_enoent_has_happened_where_the_target_has_the_size(volume):
    """As NFS answers where a rename was sent twice."""
    staged = await keep(volume, b"a picture")
    await volume.keep(staged)
    with pytest.raises(CustodyError) as failed:
        await volume.keep(Staged(staged.path, staged.sha256, staged.size + 1))
    assert failed.value.code == "volume_unavailable"
    with pytest.raises(CustodyError):
        await volume.keep(Staged(staged.path, sha256(b"another").digest(), staged.size))


@pytest.mark.parametrize("folder", ["staging", "dropped"])
async def test_a_start_removes_what_its_former_self_had_in_progress_and_nothing_of_another(volume, folder):
    paths = [volume.root / folder / name for name in ("broker.1", "broker.2", "broker-2.1", "other.1")]
    for path in paths:
        path.write_bytes(b"half a picture")
    assert volume.discard_former() == 2
    assert [path.exists() for path in paths] == [False, False, True, True]
    for path in paths[2:]:
        path.unlink()


async def test_a_volume_that_cannot_be_written_or_read_is_told(volume, tmp_path):
    await volume.check_writable()
    assert staged_files(volume.root) == []
    volume = Volume(tmp_path / "not mounted", instance="broker")
    for call in (volume.check_writable(), volume.open(sha256(b"unknown").digest(), 7)):
        with pytest.raises(CustodyError) as told:
            await call
        assert (told.value.code, told.value.kind.retryable) == ("volume_unavailable", True)
        assert "ENOENT" in told.value.detail


async def test_a_process_starts_on_the_volume_of_its_database_and_on_no_other(volume, shared_installation, tmp_path):
    other = Volume(tmp_path / "other", instance="broker")
    url = shared_installation.url("wharf_api")
    async with Database(url, name="api") as database, database.transaction() as transaction:
        await check_volume(transaction, volume)
        with pytest.raises(StartError, match="not a prepared volume"):
            await check_volume(transaction, other)
        other.prepare(new_id())
        with pytest.raises(StartError, match="Mount the volume that belongs to this database"):
            await check_volume(transaction, other)


def test_preparing_again_changes_nothing(tmp_path):
    volume = Volume(tmp_path / "volume", instance="migrate")
    assert not volume.is_prepared()
    first = new_id()
    volume.prepare(first)
    assert volume.is_prepared()
    (volume.root / blob_path(bytes(32))).write_bytes(b"a picture")
    volume.prepare(new_id())
    assert volume.identity() == first
    assert (volume.root / blob_path(bytes(32))).read_bytes() == b"a picture"


def test_there_is_a_folder_for_every_digest(volume):
    for first in range(256):
        for second in range(16):
            digest = bytes([first, second << 4, *bytes(30)])
            assert (volume.root / blob_path(digest)).parent.is_dir()


async def keep(volume: Volume, content: bytes) -> Staged:
    async with volume.stage(1 << 30) as staging:
        await staging.write(content)
        staged = await staging.seal()
        await volume.keep(staged)
    return staged
