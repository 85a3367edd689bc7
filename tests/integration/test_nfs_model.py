"""The model of NFS behaves as a folder does where its vices are off, and has each of them where they are on."""

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from custody.errors import CustodyError
from custody.ids import new_id
from custody.removal import Removal
from custody.volume import Volume, blob_path
from tests.support.nfs import NO_VICES, Host, RealDisk, Vices

REMEMBERING = Vices(memory=1000, retried=0.0)


class Clock:
    now = 0


@pytest.fixture(params=["real", "model"])
def disk(request) -> RealDisk | Host:
    return RealDisk() if request.param == "real" else new_host(NO_VICES)


def new_host(vices: Vices) -> Host:
    return Host(Longest(), lambda: Clock.now, vices)


class Longest(random.Random):
    """What is remembered is remembered for as long as may be."""

    def randint(self, a: int, b: int) -> int:
        return b


def test_what_is_done_is_seen_at_once(disk, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(FileNotFoundError):
        disk.stat(first)
    descriptor = disk.open(first, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, b"bytes")
    assert disk.pread(descriptor, 3, 1) == b"yte"
    disk.close(descriptor)
    assert disk.stat(first).st_size == 5
    assert [entry.name for entry in disk.scandir(tmp_path)] == ["first"]
    disk.rename(first, second)
    with pytest.raises(FileNotFoundError):
        disk.lstat(first)
    [entry] = disk.scandir(tmp_path)
    assert (entry.name, Path(entry.path), entry.stat().st_size) == ("second", second, 5)
    disk.unlink(second)
    assert list(disk.scandir(tmp_path)) == []
    for call in (lambda: disk.unlink(second), lambda: disk.rename(second, first), lambda: disk.open(second, 0)):
        with pytest.raises(FileNotFoundError):
            call()


def test_a_name_that_was_not_there_appears_late(tmp_path):
    host, other, name = new_host(REMEMBERING), new_host(NO_VICES), tmp_path / "name"
    with pytest.raises(FileNotFoundError):
        host.stat(name)
    other.close(other.open(name, os.O_CREAT | os.O_WRONLY))
    with pytest.raises(FileNotFoundError):
        host.open(name, os.O_RDONLY)
    Clock.now += 1001
    host.close(host.open(name, os.O_RDONLY))


def test_whoever_changes_the_folder_sees_what_others_have_made(tmp_path):
    host, name = new_host(REMEMBERING), tmp_path / "name"
    with pytest.raises(FileNotFoundError):
        host.stat(name)
    name.touch()
    host.close(host.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY))
    assert host.stat(name).st_size == 0


def test_a_name_that_was_removed_stays_until_it_is_opened(tmp_path):
    host, name = new_host(REMEMBERING), tmp_path / "name"
    name.touch()
    host.stat(name)
    name.unlink()
    assert host.stat(name).st_size == 0
    with pytest.raises(OSError, match="name") as told:
        host.open(name, os.O_RDONLY)
    assert told.value.errno in (errno.ENOENT, errno.ESTALE)
    with pytest.raises(FileNotFoundError):
        host.stat(name)


def test_an_open_file_that_another_host_removes_is_stale_and_one_that_this_host_removes_is_put_aside(tmp_path):
    host, name = new_host(NO_VICES), tmp_path / "name"
    for remove, error in ((os.unlink, errno.ESTALE), (host.unlink, None)):
        name.write_bytes(b"bytes")
        descriptor = host.open(name, os.O_RDONLY)
        remove(name)
        assert not name.exists()
        if error:
            with pytest.raises(OSError, match="name") as told:
                host.pread(descriptor, 5, 0)
            assert told.value.errno == error
        else:
            assert host.pread(descriptor, 5, 0) == b"bytes"
            assert [path.name[:4] for path in tmp_path.iterdir()] == [".nfs"]
        host.close(descriptor)
        assert list(tmp_path.iterdir()) == []


def test_a_retried_rename_is_done_and_answers_enoent(tmp_path):
    host, name = new_host(Vices(memory=0, retried=1.0)), tmp_path / "name"
    name.touch()
    with pytest.raises(FileNotFoundError):
        host.rename(name, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


# What the volume makes of it

CONTENT, DIGEST = b"a picture", bytes(32)


@pytest.fixture
def hosted(tmp_path, monkeypatch) -> Iterator[tuple[Host, Volume]]:
    """All of `os` on this host from now on."""
    host = new_host(REMEMBERING)
    place = tmp_path / blob_path(DIGEST)
    for folder in (place.parent, tmp_path / "dropped", tmp_path / "staging"):
        folder.mkdir(parents=True)
    for name in ("rename", "unlink", "stat", "lstat", "scandir", "open", "close", "pread"):
        monkeypatch.setattr(os, name, getattr(host, name))
    yield host, Volume(tmp_path, instance="cleanup", threads=1)
    monkeypatch.undo()


async def test_withdrawn_bytes_go_back_where_only_the_memory_of_a_name_is(hosted, tmp_path):
    host, volume = hosted
    place, moved = tmp_path / blob_path(DIGEST), tmp_path / "dropped" / f"{DIGEST.hex()}.another"
    place.write_bytes(CONTENT)
    host.stat(place)
    RealDisk.rename(place, moved)
    [withdrawn] = await Removal(volume).left_withdrawn()
    assert host.stat(place).st_size == len(CONTENT)
    await Removal(volume).put_back(withdrawn)
    assert place.read_bytes() == CONTENT
    assert not moved.exists()


async def test_a_withdrawal_whose_rename_is_sent_twice_is_none_of_absent_bytes(hosted, tmp_path):
    host, volume = hosted
    (tmp_path / blob_path(DIGEST)).write_bytes(CONTENT)
    (tmp_path / "volume-id").write_text("01a1ffff-0000-7000-8000-000000000000")
    host.vices = Vices(memory=0, retried=1.0)
    withdrawal = await Removal(volume).withdraw([DIGEST], seconds=10)
    assert [one.sha256 for one in withdrawal.moved] == [DIGEST]
    assert withdrawal.absent == []
    assert withdrawal.moved[0].path.read_bytes() == CONTENT


async def test_dropped_bytes_whose_renames_are_sent_twice_are_dropped(hosted, tmp_path, monkeypatch):
    host, volume = hosted
    monkeypatch.setattr("custody.volume.UNLINK_AFTER_SECONDS", (0, 0))
    async with volume.stage(100) as staging:
        await staging.write(CONTENT)
        staged = await staging.seal()
        host.vices = Vices(memory=0, retried=1.0)
        folder = (tmp_path / blob_path(staged.sha256)).parent
        folder.mkdir(parents=True)
        await volume.drop(staged)
        host.vices = NO_VICES
    for _ in range(100):
        if not list(tmp_path.glob("dropped/*")):
            break
        await asyncio.sleep(0.02)
    assert [path for place in ("dropped", "staging", folder) for path in (tmp_path / place).iterdir()] == []


async def test_damaged_bytes_whose_rename_is_sent_twice_are_set_aside(hosted, tmp_path):
    host, volume = hosted
    (tmp_path / blob_path(DIGEST)).write_bytes(CONTENT)
    (tmp_path / "quarantine").mkdir()
    damaged = await volume.identify(DIGEST)
    host.vices = Vices(memory=0, retried=1.0)
    await volume.set_aside(DIGEST, damaged)
    [copy] = (tmp_path / "quarantine").iterdir()
    assert (copy.read_bytes(), (tmp_path / blob_path(DIGEST)).exists()) == (CONTENT, False)


async def test_a_mark_whose_rename_is_sent_twice_is_left_and_one_that_is_lost_is_not(hosted, tmp_path, monkeypatch):
    host, volume = hosted
    first, second, third = new_id(), new_id(), new_id()
    removal = Removal(volume)
    await removal.write_mark(first)
    host.vices = Vices(memory=0, retried=1.0)
    await removal.write_mark(second)
    assert (tmp_path / "checkpoint").read_text() == f"{second}\n"

    def lost(source, target) -> None:
        raise FileNotFoundError(errno.ENOENT, "it is not there", source)

    monkeypatch.setattr(os, "rename", lost)
    with pytest.raises(CustodyError):
        await removal.write_mark(third)
    assert (tmp_path / "checkpoint").read_text() == f"{second}\n"
    assert list((tmp_path / "staging").iterdir()) == []


async def test_a_file_that_nfs_put_aside_is_swept_as_a_leftover_and_stops_nobody(hosted, tmp_path):
    _, volume = hosted
    aside = (tmp_path / blob_path(DIGEST)).with_name(".nfs0000000000000001")
    RealDisk.close(RealDisk.open(aside, os.O_CREAT | os.O_WRONLY))
    for letter in "123456789abcdef":
        (tmp_path / "blobs" / "sha256" / "00" / letter).mkdir()
    sight = await Removal(volume).look(0, {})
    assert [stray.path for stray in sight.leftovers] == [aside]
    assert (sight.files, sight.strays) == (0, [])


async def test_bytes_that_are_gone_are_told_as_such(hosted):
    _, volume = hosted
    with pytest.raises(CustodyError) as told:
        await volume.open(DIGEST, 9)
    assert told.value.code == "volume_unavailable"
