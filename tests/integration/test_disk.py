"""The disk that runs full on command: a file system in memory where mounting is allowed, and a budget of bytes."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.budget import Budget
from tests.support.disk import Disk

PAGE = 4096

WRITE_TWO_MEGABYTES = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_bytes(bytes(2_000_000))"


@pytest.fixture(params=[Disk, Budget])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk | Budget]:
    path = tmp_path / "disk"
    path.mkdir()
    with request.param(path) as disk:
        if not disk.allowed:
            pytest.skip("nothing may be mounted here")
        yield disk
    assert list(path.iterdir()) == []


def test_a_full_disk_takes_nothing_and_keeps_what_it_has(disk: Disk | Budget) -> None:
    (disk.path / "kept").write_bytes(bytes(3_000_000))
    with disk.full():
        with pytest.raises(OSError, match=r"No space left") as full:
            (disk.path / "more").write_bytes(bytes(1_000_000))
        assert full.value.errno == errno.ENOSPC
        assert (disk.path / "kept").read_bytes() == bytes(3_000_000)
    (disk.path / "more").write_bytes(bytes(1_000_000))


def test_a_disk_that_is_nearly_full_takes_a_little(disk: Disk | Budget) -> None:
    with disk.full(spare_bytes=100_000):
        (disk.path / "small").write_bytes(bytes(50_000))
        with pytest.raises(OSError, match=r"No space left"):
            (disk.path / "large").write_bytes(bytes(100_000))


def test_a_write_that_does_not_fit_is_done_in_part_and_the_next_one_not_at_all(disk: Disk | Budget) -> None:
    with disk.full(spare_bytes=25 * PAGE):
        descriptor = os.open(disk.path / "growing", os.O_WRONLY | os.O_CREAT)
        try:
            assert os.write(descriptor, bytes(40 * PAGE)) == 25 * PAGE
            with pytest.raises(OSError, match=r"No space left"):
                os.write(descriptor, b"1")
        finally:
            os.close(descriptor)
        assert (disk.path / "growing").stat().st_size == 25 * PAGE


def test_what_is_removed_makes_room(disk: Disk | Budget) -> None:
    (disk.path / "old").write_bytes(bytes(1_000_000))
    with disk.full():
        new = disk.path / "new"
        with pytest.raises(OSError, match=r"No space left"):
            new.write_bytes(bytes(900_000))
        new.unlink()
        (disk.path / "old").unlink()
        new.write_bytes(bytes(900_000))


def test_the_room_that_it_tells_of_is_the_room_that_there_is(disk: Disk | Budget) -> None:
    source = disk.path.parent / "source"
    source.write_bytes(bytes(250 * PAGE))
    before = shutil.disk_usage(disk.path)
    shutil.copyfile(source, disk.path / "copy")
    after = shutil.disk_usage(disk.path)
    assert (before.total, before.free - after.free) == (after.total, 250 * PAGE)
    with disk.full(spare_bytes=50 * PAGE):
        assert shutil.disk_usage(disk.path).free == 50 * PAGE
        with pytest.raises(OSError, match=r"No space left"):
            shutil.copyfile(source, disk.path / "another")
        assert shutil.disk_usage(disk.path).free == 0
        (disk.path / "another").unlink()
        assert shutil.disk_usage(disk.path).free == 50 * PAGE


def test_other_processes_find_it_full_and_the_rest_of_the_machine_is_not(disk: Disk | Budget) -> None:
    def write(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITE_TWO_MEGABYTES, str(path)]
        return subprocess.run(command, env={**os.environ, **disk.environment}, stderr=subprocess.PIPE, text=True)

    with disk.full():
        assert "No space left" in write(disk.path / "inside").stderr
        assert write(disk.path.parent / "outside").returncode == 0
    assert write(disk.path / "inside").returncode == 0
