"""The disk that runs full on command."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disk import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path) as disk:
        if not disk.mounted:
            pytest.skip("nothing may be mounted here")
        yield disk


def test_a_full_disk_takes_nothing_and_keeps_what_it_has(disk: Disk) -> None:
    (disk.path / "kept").write_bytes(bytes(3_000_000))
    with disk.full():
        with pytest.raises(OSError, match=r"No space left") as full:
            (disk.path / "more").write_bytes(bytes(1_000_000))
        assert full.value.errno == errno.ENOSPC
        assert (disk.path / "kept").read_bytes() == bytes(3_000_000)
    (disk.path / "more").write_bytes(bytes(1_000_000))


def test_a_disk_that_is_nearly_full_takes_a_little(disk: Disk) -> None:
    with disk.full(spare_bytes=100_000):
        (disk.path / "small").write_bytes(bytes(50_000))
        with pytest.raises(OSError, match=r"No space left"):
            (disk.path / "large").write_bytes(bytes(100_000))


def test_nothing_of_it_is_left(tmp_path: Path) -> None:
    with Disk(tmp_path) as disk:
        if not disk.mounted:
            pytest.skip("nothing may be mounted here")
        (tmp_path / "file").write_bytes(b"gone")
    assert list(tmp_path.iterdir()) == []
