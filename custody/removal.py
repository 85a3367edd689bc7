"""How bytes leave the volume, and what lies on it that no row knows.

Bytes are withdrawn first: moved from the tree to `dropped/<64 hex>.<id>`, while their row's lock is held. Only when the
commit that takes the row away has shown that the lock was held all the while are they unlinked. A cleanup that was
stopped for a minute, or whose session broke, may withdraw bytes that an upload has promised meanwhile: those are put
back. An unlink could not be.
"""

import asyncio
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.volume import Volume, blob_path, move, size_of, sync_path

T = TypeVar("T")
Result = TypeVar("Result")

FOLDERS = 4096
FOLDERS_AT_ONCE = 16
"""Folders of the tree that the sweep sees together: those of one `blobs/sha256/ab`."""

AT_ONCE = 32
"""Files that one thread works off."""

WITHDRAWN = re.compile(r"[0-9a-f]{64}\..+")
LEFT_BY_NFS = re.compile(r"\.nfs[0-9a-f]+")
"""What was replaced while it was open on the same host; it stays where that host dies."""

WHOLE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Withdrawn:
    """Bytes out of the tree, under a name of their own."""

    sha256: bytes
    path: Path
    size: int


@dataclass
class Withdrawal:
    """`absent`: there was nothing; `failed`: what the volume said, by sha256. What is in none of the three was not
    begun."""

    moved: list[Withdrawn] = field(default_factory=list)
    absent: list[bytes] = field(default_factory=list)
    failed: dict[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stray:
    """A file that no row knows. `modified`: by the file server's clock."""

    path: Path
    size: int
    modified: float


@dataclass(frozen=True)
class Sight:
    """What lies in some folders of the tree. `strays`: bytes whose sha256 is not among the known ones; `leftovers`:
    names that are none of a blob's, which a crash between two renames leaves, or NFS; `missing`: known bytes not
    found."""

    files: int
    strays: Sequence[Stray]
    leftovers: Sequence[Stray]
    missing: Sequence[bytes]


class Removal:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._dropped = volume.root / "dropped"

    async def clock(self) -> float:
        """The file server's, in seconds since 1970: ages are taken by it."""
        probe = _probe(self._volume)

        def write_and_look() -> float:
            probe.touch()  # empty: it must not take any room
            try:
                return probe.stat().st_mtime
            finally:
                probe.unlink()

        return await self._volume.run(write_and_look)

    async def withdraw(self, wanted: Sequence[bytes], *, seconds: float) -> Withdrawal:
        """Call it with the rows of these bytes locked. It begins with none after `seconds`: the server may have ended
        the session by then. Raises `CustodyError` where the volume is no longer the one it was."""
        until = time.monotonic() + seconds
        whole = Withdrawal()
        for part in await self._in_threads(wanted, lambda some: self._withdraw(some, until)):
            whole.moved += part.moved
            whole.absent += part.absent
            whole.failed |= part.failed
        if whole.absent:
            await self.check()
        return whole

    async def discard(self, withdrawn: Sequence[Withdrawn]) -> dict[bytes, str]:
        """Unlinks them. Gives what the volume said where it would not, by sha256; the next cleanup tries again."""
        failed: dict[bytes, str] = {}
        for part in await self._in_threads(withdrawn, _unlink):
            failed |= part
        return failed

    async def left_withdrawn(self) -> list[Withdrawn]:
        """What a cleanup that was killed has left between tree and unlink."""

        def look() -> list[Withdrawn]:
            return [
                Withdrawn(bytes.fromhex(stray.path.name[:64]), stray.path, stray.size)
                for stray in _strays(entry for entry in os.scandir(self._dropped) if WITHDRAWN.fullmatch(entry.name))
            ]

        return await self._volume.run(look)

    async def put_back(self, withdrawn: Withdrawn) -> None:
        """Back into the tree, durably, unless such bytes are there again. Call it with the row locked."""
        place = self._volume.root / blob_path(withdrawn.sha256)

        def move() -> None:
            if size_of(place) is not None:
                withdrawn.path.unlink(missing_ok=True)
                return
            with suppress(FileNotFoundError):
                withdrawn.path.rename(place)
            sync_path(place.parent)

        await self._volume.run(move)

    async def abandoned(self, before: float) -> list[Stray]:
        """Uploads in progress that nobody has written to since `before`."""

        def look() -> list[Stray]:
            entries = [entry for name in ("staging", "dropped") for entry in os.scandir(self._volume.root / name)]
            return [
                stray for stray in _strays(entry for entry in entries if not WITHDRAWN.fullmatch(entry.name))
                if stray.modified < before
            ]  # fmt: skip

        return await self._volume.run(look)

    async def remove(self, stray: Stray) -> None:
        """Raises `CustodyError`."""
        await self._volume.run(lambda: stray.path.unlink(missing_ok=True))

    async def look(self, first: int, known: dict[bytes, bool]) -> Sight:
        """What lies in folders `first` to `first + FOLDERS_AT_ONCE`. `known`: the rows of these folders, read before;
        True where the row promises bytes."""
        tree = self._volume.root / "blobs" / "sha256" / f"{first // FOLDERS_AT_ONCE:02x}"

        def look() -> Sight:
            names: set[str] = set()
            unknown: list[os.DirEntry[str]] = []
            others: list[os.DirEntry[str]] = []
            for letter in "0123456789abcdef":
                for entry in os.scandir(tree / letter):
                    if not WHOLE.fullmatch(entry.name):
                        others.append(entry)
                    elif entry.name not in names:
                        names.add(entry.name)
                        if bytes.fromhex(entry.name) not in known:
                            unknown.append(entry)
            missing = [
                sha256 for sha256, promised in known.items()
                if promised and sha256.hex() not in names and not (self._volume.root / blob_path(sha256)).exists()
            ]  # fmt: skip
            leftovers = [
                stray for stray in _strays(others)
                if WITHDRAWN.fullmatch(stray.path.name) or LEFT_BY_NFS.fullmatch(stray.path.name)
            ]  # fmt: skip
            return Sight(len(names), _strays(unknown), leftovers, missing)

        return await self._volume.run(look)

    async def check(self) -> None:
        """Raises `CustodyError` where the volume is no longer mounted."""
        try:
            await self._volume.run(self._volume.identity)
        except StartError as error:
            raise CustodyError("volume_unavailable", str(error), retry_after=60) from error

    async def read_mark(self) -> tuple[UUID, float] | None:
        """The mark of the last cleanup, and when it was left, by the file server's clock; None where there is none."""
        mark = self._volume.root / "checkpoint"

        def read() -> tuple[UUID, float] | None:
            try:
                return UUID(mark.read_text().strip()), mark.stat().st_mtime
            except FileNotFoundError:
                return None

        try:
            return await self._volume.run(read)
        except ValueError as error:
            raise CustodyError("volume_unavailable", f"{mark} cannot be read: {error}") from error

    async def write_mark(self, checkpoint: UUID) -> None:
        """On the disk when this returns; a crash leaves the former mark or this one."""
        mark = self._volume.root / "checkpoint"
        growing = _probe(self._volume)

        def write() -> None:
            try:
                growing.write_text(f"{checkpoint}\n")
                sync_path(growing)
                growing.rename(mark)
            except FileNotFoundError:
                # NFS may retry a rename that has already happened. Each mark is as long as the one before.
                if mark.read_text() != f"{checkpoint}\n":
                    raise
            finally:
                growing.unlink(missing_ok=True)
            sync_path(mark.parent)

        await self._volume.run(write)

    async def _in_threads(self, items: Sequence[T], work: Callable[[Sequence[T]], Result]) -> list[Result]:
        parts = [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]
        return await asyncio.gather(*(self._volume.run(partial(work, part)) for part in parts))

    def _withdraw(self, wanted: Sequence[bytes], until: float) -> Withdrawal:
        found = Withdrawal()
        for sha256 in wanted:
            if time.monotonic() > until:
                break
            place = self._volume.root / blob_path(sha256)
            moved = self._dropped / f"{sha256.hex()}.{new_id()}"
            try:
                status = place.lstat()
                if not stat.S_ISREG(status.st_mode):
                    found.failed[sha256] = f"{place} is no file"
                    continue
                move(place, moved, status.st_size)
            except FileNotFoundError:
                found.absent.append(sha256)
            except OSError as error:
                found.failed[sha256] = str(error)
            else:
                found.moved.append(Withdrawn(sha256, moved, status.st_size))
        return found


def _probe(volume: Volume) -> Path:
    return volume.root / "staging" / f"{volume.instance}.probe-{new_id()}"


def _unlink(withdrawn: Sequence[Withdrawn]) -> dict[bytes, str]:
    failed: dict[bytes, str] = {}
    for one in withdrawn:
        try:
            one.path.unlink(missing_ok=True)
        except OSError as error:
            failed[one.sha256] = str(error)
    return failed


def _strays(entries: Iterable[os.DirEntry[str]]) -> list[Stray]:
    found = []
    for entry in entries:
        # Gone since it was listed: an upload that ended.
        with suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                found.append(Stray(Path(entry.path), status.st_size, status.st_mtime))
    return found
