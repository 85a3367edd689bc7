"""A folder with a budget of bytes, for where nothing may be mounted: it runs full on command, as `tests.support.disk`
does, for the Python processes that were put on the budget. What C writes, PostgreSQL say, counts and is not stopped."""

import builtins
import errno
import fcntl
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support.disk import ROOM_BYTES

PAGE = 4096
"""Each file takes whole pages, as on a file system in memory."""

VARIABLE = "TESTS_BUDGETED_FOLDER"
REPOSITORY = Path(__file__).parents[2]


class Budget:
    """Whole files count, by their sizes; folders and names are free. Beside `path` lies a file with the bytes that may
    be used, a limit that all processes share; while it is empty, nothing is full. `with` puts this process on the
    budget, and empties the folder at the end."""

    allowed = True
    """As a `Disk` tells whether it could be made."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._limit = path.with_name(f"{path.name}.budget")
        self._undo: list[Callable[[], None]] = []

    @property
    def environment(self) -> Mapping[str, str]:
        """It puts a Python process on the budget, and those that this one starts."""
        places = (Path(__file__).with_name("budgeted"), REPOSITORY)
        return {"PYTHONPATH": os.pathsep.join(map(str, places)), VARIABLE: str(self.path)}

    def __enter__(self) -> Self:
        self.enforce()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._limit.unlink(missing_ok=True)
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    @contextmanager
    def full(self, spare_bytes: int = 0) -> Iterator[None]:
        """While the body runs, there is no more room than that."""
        with self._locked() as limit:
            os.pwrite(limit, str(self._used() + max(spare_bytes, PAGE)).encode(), 0)
        try:
            yield
        finally:
            with self._locked() as limit:
                os.ftruncate(limit, 0)

    def enforce(self) -> None:
        """From now on this process writes no more than there is room for."""
        write, statvfs, open_file = os.write, os.statvfs, io.open

        def bounded_write(descriptor: int, data: Any) -> int:
            if not self._holds(f"/proc/self/fd/{descriptor}"):
                return write(descriptor, data)
            with self._locked() as limit:
                data = memoryview(data).cast("B")
                return write(descriptor, data[: self._room(descriptor, len(data), _bytes(limit))])

        def bounded_statvfs(path: Any) -> os.statvfs_result:
            found = statvfs(path)
            if isinstance(path, int) or not self._holds(path):
                return found
            with self._locked() as limit:
                blocks = (_bytes(limit) or ROOM_BYTES) // PAGE
                free = max(0, blocks - self._used() // PAGE)
            return os.statvfs_result((PAGE, PAGE, blocks, free, free, *found[5:]))

        class BoundedFile(io.FileIO):
            def write(self, data: Any) -> int:
                return os.write(self.fileno(), data)

        def bounded_open(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> IO[Any]:
            if isinstance(file, int) or set(mode).isdisjoint("wax") or not self._holds(file):
                return open_file(file, mode, buffering, *rest, **named)
            binary = io.BufferedWriter(BoundedFile(file, mode.replace("b", "").replace("t", "")))
            return binary if "b" in mode else io.TextIOWrapper(binary, *rest, **named)

        self._replace(os, "write", bounded_write)
        self._replace(os, "statvfs", bounded_statvfs)
        self._replace(io, "open", bounded_open)
        self._replace(builtins, "open", bounded_open)
        # Copies go through `write`, not from file to file within the system.
        self._replace(shutil, "_USE_CP_SENDFILE", False)

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        old = getattr(owner, name)
        setattr(owner, name, new)
        self._undo.append(lambda: setattr(owner, name, old))

    def _holds(self, path: Any) -> bool:
        with suppress(OSError, TypeError):
            return Path(os.path.realpath(path)).is_relative_to(self.path)
        return False

    def _used(self) -> int:
        used = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                # Others remove files meanwhile.
                with suppress(FileNotFoundError):
                    used += _whole_pages(os.lstat(f"{folder}/{name}").st_size)
        return used

    def _room(self, descriptor: int, wanted: int, limit: int) -> int:
        """How many of the bytes wanted may be written where the file stands."""
        if not (limit and wanted):
            return wanted
        end = _whole_pages(os.fstat(descriptor).st_size) + max(0, limit - self._used()) // PAGE * PAGE
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        if end <= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return min(wanted, end - at)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file with the limit. One process and thread at a time may use up what there is."""
        descriptor = os.open(self._limit, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _bytes(limit: int) -> int:
    """0: there is no limit."""
    return int(os.pread(limit, 20, 0) or 0)
