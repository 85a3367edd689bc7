"""A model of a disk as NFS shows it to several hosts, on a real folder: what the Linux client and its server do that a
local disk does not.

- A host keeps what it knows of a name for a while: a name that was not there still is not, one that was still is, with
  its size; a folder's listing is as old. Opening a file asks the server again, unless the name was not there. Whoever
  changes a folder hears how it is now.
- A rename or unlink whose answer was lost is sent again by the client, and answers ENOENT though it was done.
- A file that another host has removed answers ESTALE to those who have it open, or know its name.
- A file that is removed or replaced on the host that has it open is renamed to `.nfs…` in its folder, until it is
  closed; where the host dies, it stays.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

REAL_RENAME, REAL_UNLINK, REAL_STAT, REAL_SCANDIR = os.rename, os.unlink, os.stat, os.scandir
REAL_OPEN, REAL_CLOSE, REAL_PREAD = os.open, os.close, os.pread


class RealDisk:
    """The same words, and none of the vices."""

    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    stat = staticmethod(os.stat)
    lstat = staticmethod(os.lstat)
    scandir = staticmethod(os.scandir)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))
    open = staticmethod(os.open)
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)

    def opener(self, path: str, flags: int) -> int:
        """For `open`."""
        return REAL_OPEN(path, flags, 0o666)


@dataclass(frozen=True)
class Vices:
    """`memory`: for how many ticks of the clock a host keeps what it knows, at most; `retried`: the share of renames
    and unlinks that answer ENOENT although they were done."""

    memory: int = 40
    retried: float = 0.05


NO_VICES = Vices(memory=0, retried=0.0)


class Entry:
    """What `os.scandir` gives."""

    def __init__(self, host: "Host", folder: str, name: str) -> None:
        self._host = host
        self.name = name
        self.path = f"{folder}/{name}"

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return self._host.stat(self.path, follow_symlinks=follow_symlinks)


class Listing(list[Entry]):
    """What `os.scandir` gives, that it can be closed included."""

    def __enter__(self) -> Iterator[Entry]:
        return iter(self)

    def __exit__(self, *_: object) -> None:
        pass


class Host:
    """One client of the server that holds the folder. `now`: the clock, in ticks."""

    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))

    _silly = count()

    def __init__(self, chance: random.Random, now: Callable[[], int], vices: Vices) -> None:
        self._chance = chance
        self._now = now
        self.vices = vices
        self._names: dict[str, tuple[os.stat_result | None, int]] = {}
        self._listings: dict[str, tuple[list[str], int]] = {}
        self._open: dict[int, str] = {}

    def stat(self, path: Any, *, follow_symlinks: bool = True) -> os.stat_result:
        name = os.fspath(path)
        known, status = self._known(name)
        if not known:
            try:
                status = REAL_STAT(name, follow_symlinks=follow_symlinks)
            except FileNotFoundError:
                status = None
            self._remember(name, status)
        if status is None:
            raise _error(errno.ENOENT, name)
        return status

    def lstat(self, path: Any) -> os.stat_result:
        return self.stat(path, follow_symlinks=False)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        name = os.fspath(path)
        known, status = self._known(name)
        if known and status is None and not flags & os.O_CREAT:
            raise _error(errno.ENOENT, name)
        try:
            descriptor = REAL_OPEN(name, flags, mode)
        except FileNotFoundError:
            self._names.pop(name, None)
            raise _error(errno.ESTALE if known and self._chance.random() < 0.5 else errno.ENOENT, name) from None
        self._open[descriptor] = name
        if flags & os.O_CREAT:
            self._changed(name)
        self._remember(name, os.fstat(descriptor))
        return descriptor

    def opener(self, path: str, flags: int) -> int:
        """For `open`, whose descriptors are closed elsewhere."""
        descriptor = self.open(path, flags, 0o666)
        del self._open[descriptor]
        return descriptor

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if descriptor in self._open and os.fstat(descriptor).st_nlink == 0:
            raise _error(errno.ESTALE, self._open[descriptor])
        return REAL_PREAD(descriptor, size, offset)

    def close(self, descriptor: int) -> None:
        name = self._open.pop(descriptor, "")
        if Path(name).name.startswith(".nfs") and name not in self._open.values():
            REAL_UNLINK(name)
        REAL_CLOSE(descriptor)

    def unlink(self, path: Any) -> None:
        name = os.fspath(path)
        self._ask_for(name)
        if not self._put_aside(name):
            REAL_UNLINK(name)
        self._changed(name)
        self._remember(name, None)
        self._lose_the_answer(name)

    def rename(self, source: Any, target: Any) -> None:
        old, new = os.fspath(source), os.fspath(target)
        self._ask_for(old)
        self._put_aside(new)
        try:
            REAL_RENAME(old, new)
        except FileNotFoundError:
            self._names.pop(old, None)
            raise
        for descriptor, name in self._open.items():
            if name == old:
                self._open[descriptor] = new
        self._changed(old)
        self._changed(new)
        self._remember(old, None)
        self._remember(new, REAL_STAT(new))
        self._lose_the_answer(old)

    def scandir(self, path: Any) -> "Listing":
        folder = os.fspath(path)
        names, until = self._listings.get(folder, ([], 0))
        if until <= self._now():
            with REAL_SCANDIR(folder) as found:
                names = sorted(entry.name for entry in found)
            self._listings[folder] = names, self._until()
        return Listing(Entry(self, folder, name) for name in names)

    def _known(self, name: str) -> tuple[bool, os.stat_result | None]:
        status, until = self._names.get(name, (None, 0))
        return until > self._now(), status

    def _remember(self, name: str, status: os.stat_result | None) -> None:
        self._names[name] = status, self._until()

    def _changed(self, name: str) -> None:
        """The server's answer to a change of a folder tells its client how old all is that it knows of the folder."""
        folder = f"{Path(name).parent}"
        self._listings.pop(folder, None)
        self._names = {known: seen for known, seen in self._names.items() if f"{Path(known).parent}" != folder}

    def _until(self) -> int:
        return self._now() + self._chance.randint(0, self.vices.memory)

    def _ask_for(self, name: str) -> None:
        known, status = self._known(name)
        if known and status is None:
            raise _error(errno.ENOENT, name)

    def _put_aside(self, name: str) -> bool:
        """True where the file is open here, and has another name now."""
        holding = [descriptor for descriptor, held in self._open.items() if held == name]
        if not holding or not os.path.exists(name):  # noqa: PTH110
            return False
        aside = f"{Path(name).parent}/.nfs{next(self._silly):016x}"
        REAL_RENAME(name, aside)
        for descriptor in holding:
            self._open[descriptor] = aside
        return True

    def _lose_the_answer(self, name: str) -> None:
        if self._chance.random() < self.vices.retried:
            raise _error(errno.ENOENT, name)


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)
