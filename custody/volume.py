"""The shared volume: where bytes lie, and how they get there so that a promise survives a crash.

    blobs/sha256/ab/c/<64 hex>    immutable, read-only
    staging/<instance>.<id>       uploads in progress
    dropped/<instance>.<id>       uploads whose bytes were here already, for a moment
    dropped/<64 hex>.<id>         bytes that a cleanup has taken out of the tree, for a moment: see custody/removal
    quarantine/<64 hex>.<id>      bytes that were found damaged
    models/<name>/<16 hex>/       immutable once registered; the first 16 digits of its digest
    volume-id                     the same random id as in the database
    checkpoint                    the mark that the last cleanup left here and in the database

Every process has its own mount root, so the references that leave this module are relative. The volume may be NFS or
CephFS: no O_TMPFILE, no file locks, no mmap.
"""

import asyncio
import errno
import hashlib
import os
import random
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from custody.errors import CustodyError, StartError
from custody.ids import id_time, new_id

T = TypeVar("T")

CHUNK = 1024 * 1024
"""Bytes gathered before they are hashed and written: two of these are all the memory that an upload holds."""


BLOB_NAME = re.compile(r"[0-9a-f]{64}")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where nothing more can be written."""

SET_ASIDE = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The names under `quarantine/` that are ours. Operators look in there, and leave what their editors leave."""

UNLINK_AFTER_SECONDS = (0.05, 0.15)


@dataclass(frozen=True)
class Staged:
    """Bytes that are on the volume's disk, hashed, and not yet in the tree."""

    path: Path
    sha256: bytes
    size: int


@dataclass(frozen=True)
class Usage:
    """Bytes of the volume's file system. `free`: what a process that is not root may still write."""

    used: int
    free: int

    @property
    def total(self) -> int:
        return self.used + self.free


@dataclass(frozen=True)
class Identity:
    """Which file it is: another one at the same place, or one that was changed, differs in one of these."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Digest:
    """What a file's bytes are, and which file that was."""

    sha256: bytes
    identity: Identity


@dataclass(frozen=True)
class SetAside:
    """Damaged bytes under `quarantine/`, there since `since`, in seconds since 1970."""

    name: str
    sha256: bytes
    since: float


class Interrupted(Exception):  # noqa: N818
    """Somebody asked for the end in the middle of a read."""


class Volume:
    """`root`: the mount; `instance`: a name that no other living process of this volume has."""

    def __init__(self, root: Path, *, instance: str, threads: int = 16) -> None:
        self._root = root
        self._staging = root / "staging"
        self._dropped = root / "dropped"
        self._quarantine = root / "quarantine"
        self._instance = instance
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="volume")
        self._moved: set[Path] = set()  # out of `staging/`: nobody needs to look for them there

    @property
    def root(self) -> Path:
        return self._root

    @property
    def instance(self) -> str:
        return self._instance

    def prepare(self, volume_id: UUID) -> None:
        """Makes the folders once and makes them durable; what is there already stays. `wharf migrate` calls it."""
        tree = self._root / "blobs" / "sha256"
        for folder in (self._root, self._staging, self._dropped, self._quarantine, self._root / "models", tree):
            folder.mkdir(parents=True, exist_ok=True)
        for first in map("".join, product("0123456789abcdef", repeat=2)):
            for second in "0123456789abcdef":
                (tree / first / second).mkdir(parents=True, exist_ok=True)
            sync_path(tree / first)
        mark = self._root / "volume-id"
        if not mark.exists():
            growing = mark.with_name(f"volume-id.{new_id()}")
            try:
                growing.write_text(f"{volume_id}\n")
                sync_path(growing)
                growing.rename(mark)
            finally:
                growing.unlink(missing_ok=True)
        for folder in (tree, self._root / "blobs", self._root):
            sync_path(folder)

    def is_prepared(self) -> bool:
        return (self._root / "volume-id").exists()

    def identity(self) -> UUID:
        """Raises `StartError` where the folder is no prepared volume."""
        try:
            return UUID((self._root / "volume-id").read_text().strip())
        except FileNotFoundError:
            raise StartError(
                f"WHARF_VOLUME: {self._root} is not a prepared volume (it has no file volume-id). "
                "Check the mount; for a new volume run `wharf migrate` first."
            ) from None
        except (OSError, ValueError) as error:
            raise StartError(f"WHARF_VOLUME: {self._root / 'volume-id'} cannot be read: {error}") from error

    def discard_former(self) -> int:
        """Removes what a former process of this instance's name left in progress; gives the number of files."""
        left = [path for folder in (self._staging, self._dropped) for path in folder.glob(f"{self._instance}.*")]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    async def check_writable(self) -> None:
        """Raises `CustodyError` where the volume takes no file now."""
        probe = self._staging / f"{self._instance}.probe-{new_id()}"

        def write_and_remove() -> None:
            try:
                probe.write_bytes(b"wharfinger")
            finally:
                probe.unlink(missing_ok=True)

        await self.run(write_and_remove)

    async def usage(self) -> Usage:
        disk = await self.run(lambda: shutil.disk_usage(self._root))
        return Usage(disk.used, disk.free)

    @asynccontextmanager
    async def stage(self, max_bytes: int) -> AsyncIterator["Staging"]:
        """A new file under `staging/`, removed at the end unless `keep` or `drop` has moved it out."""
        path = self._staging / f"{self._instance}.{new_id()}"
        staging = Staging(self, path, max_bytes)
        try:
            yield staging
        finally:
            if path in self._moved:
                self._moved.discard(path)
            else:
                await staging.discard()

    async def keep(self, staged: Staged) -> None:
        """Moves staged bytes into the tree, durably. Call it with the blob's row locked and not `present`."""
        await self.run(lambda: _place(staged, self._blob(staged.sha256)))
        self._moved.add(staged.path)

    async def drop(self, staged: Staged) -> None:
        """Lets go of staged bytes that the tree has already, by the same steps as `keep`, so that no clock tells
        whether the bytes were known: into the tree, under a name of their own, and out again. The unlink, whose time
        grows with the file, follows when the answer is long gone."""
        dropped = self._dropped / staged.path.name

        def in_and_out() -> None:
            beside = self._blob(staged.sha256).with_name(f"{staged.sha256.hex()}.{new_id()}")
            move(staged.path, beside, staged.size)
            sync_path(beside.parent)
            move(beside, dropped, staged.size)

        await self.run(in_and_out)
        self._moved.add(staged.path)
        later = random.uniform(*UNLINK_AFTER_SECONDS)  # noqa: S311
        asyncio.get_running_loop().call_later(later, self._threads.submit, dropped.unlink)

    async def open(self, sha256: bytes, size: int) -> int | None:
        """A descriptor of the bytes, opened for reading; the caller closes it. None where there are not `size` of them:
        they are damaged."""

        def open_whole() -> int | None:
            descriptor = os.open(self._blob(sha256), os.O_RDONLY | os.O_CLOEXEC)
            if os.fstat(descriptor).st_size == size:
                return descriptor
            os.close(descriptor)
            return None

        return await self.run(open_whole)

    async def read(self, descriptor: int, offset: int, size: int) -> bytes:
        return await self.run(lambda: os.pread(descriptor, size, offset))

    async def identify(self, sha256: bytes) -> Identity | None:
        """Which file lies where these bytes belong; None where there is none."""
        return await self.run(lambda: _identify(self._blob(sha256)))

    async def digest(self, sha256: bytes, pace: Callable[[int], bool]) -> Digest | None:
        """Reads what lies where these bytes belong, from the disk and past its cache; None where nothing does. `pace`
        is told of each so many bytes before they are read, in a thread; where it says False, `Interrupted` is
        raised."""
        return await self.run(lambda: _digest(self._blob(sha256), pace))

    async def set_aside(self, sha256: bytes, damaged: Identity) -> None:
        """Moves damaged bytes out of the tree, durably, unless another file than that lies there by now. Call it with
        the blob's row locked and `quarantined`."""

        def move_damaged() -> None:
            blob = self._blob(sha256)
            if _identify(blob) != damaged:
                return
            # Volumes of the release before have no such folder until they are migrated.
            self._quarantine.mkdir(exist_ok=True)
            move(blob, self._quarantine / f"{blob.name}.{new_id()}", damaged.size)
            for folder in (self._quarantine, blob.parent):
                sync_path(folder)

        await self.run(move_damaged)

    async def quarantined(self) -> list[SetAside]:
        """What `set_aside` has moved, the oldest first."""

        def look() -> list[SetAside]:
            names = [path.name for path in self._quarantine.iterdir()] if self._quarantine.exists() else []
            found = [
                SetAside(name, bytes.fromhex(name[:64]), id_time(UUID(name[65:])))
                for name in names
                if SET_ASIDE.fullmatch(name)
            ]
            return sorted(found, key=lambda each: each.since)

        return await self.run(look)

    async def discard_quarantined(self, several: Sequence[SetAside]) -> None:
        def discard() -> None:
            for each in several:
                (self._quarantine / each.name).unlink(missing_ok=True)

        await self.run(discard)

    async def names(self, prefix: str) -> set[bytes]:
        """What lies in the folders of `prefix`, two hex digits: the SHA-256 by which each file is called."""

        def look() -> set[bytes]:
            found: set[bytes] = set()
            for last in "0123456789abcdef":
                for name in os.listdir(self._root / "blobs" / "sha256" / prefix / last):  # noqa: PTH208
                    if BLOB_NAME.fullmatch(name):
                        found.add(bytes.fromhex(name))
            return found

        return await self.run(look)

    async def run(self, work: Callable[[], T]) -> T:
        """Runs blocking work on the volume in a thread of its pool, errors of the disk told as `CustodyError`."""
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            # A thread cannot be cancelled. Nobody may go on, to roll back say, while it still works. Cancelled again
            # and again, as by the framework when a client hangs up, this waits all the same.
            while not working.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([working])
            raise
        except OSError as error:
            raise _disk_error(error) from error

    def _blob(self, sha256: bytes) -> Path:
        return self._root / blob_path(sha256)


class Staging:
    """One upload in progress: hashed while it is written, one chunk ahead of the disk."""

    def __init__(self, volume: Volume, path: Path, max_bytes: int) -> None:
        self._volume = volume
        self._path = path
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._size = 0
        self._descriptor: int | None = None
        self._writing: asyncio.Task[None] | None = None

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Raises `CustodyError("file_too_large")` at the first byte over the limit."""
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise CustodyError("file_too_large", f"A file may have {self._max_bytes} bytes at most.")
        self._buffer += chunk
        if len(self._buffer) >= CHUNK:
            await self._written()
            full, self._buffer = self._buffer, bytearray()
            self._writing = asyncio.create_task(self._volume.run(lambda: self._append(full)))

    async def seal(self) -> Staged:
        """The bytes are on the disk when this returns."""
        await self._written()
        await self._volume.run(self._finish)
        return Staged(self._path, self._hash.digest(), self._size)

    async def discard(self) -> None:
        with suppress(CustodyError):
            await self._written()
        with suppress(CustodyError):
            await self._volume.run(self._remove)

    async def _written(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    def _append(self, data: bytearray) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hash.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _finish(self) -> None:
        self._append(self._buffer)
        self._buffer = bytearray()
        assert self._descriptor is not None
        os.fchmod(self._descriptor, 0o444)
        os.fdatasync(self._descriptor) if hasattr(os, "fdatasync") else os.fsync(self._descriptor)
        self._close()

    def _remove(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def blob_path(sha256: bytes) -> str:
    """Where the bytes lie, relative to the volume's root."""
    name = sha256.hex()
    return f"blobs/sha256/{name[:2]}/{name[2]}/{name}"


def move(source: Path, target: Path, size: int) -> None:
    """Renames a file of so many bytes."""
    try:
        source.rename(target)
    except FileNotFoundError:
        # NFS may retry a rename that has already happened and answer ENOENT.
        if size_of(target) != size:
            raise


def size_of(path: Path) -> int | None:
    """In bytes; None where there is no such file. It is opened to be sure: a network file system goes on telling of a
    name that another host has removed, until it must open it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _place(staged: Staged, target: Path) -> None:
    move(staged.path, target, staged.size)
    sync_path(target.parent)


def _identify(blob: Path) -> Identity | None:
    try:
        return _identity(blob.stat())
    except FileNotFoundError:
        pass
    # A network file system remembers for a while that there was no such file. A new name beside it makes it ask.
    probe = blob.with_name(f"{blob.name}.{new_id()}")
    probe.touch()
    probe.unlink()
    try:
        return _identity(blob.stat())
    except FileNotFoundError:
        return None


def _digest(blob: Path, pace: Callable[[int], bool]) -> Digest | None:
    try:
        descriptor = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        _forget_cached(descriptor)
        digest = hashlib.sha256()
        found = os.fstat(descriptor)
        offset = 0
        while True:
            if not pace(min(CHUNK, max(found.st_size - offset, 1))):
                raise Interrupted
            chunk = os.pread(descriptor, CHUNK, offset)
            if not chunk:
                break
            digest.update(chunk)
            offset += len(chunk)
        return Digest(digest.digest(), _identity(found))
    finally:
        _forget_cached(descriptor)
        os.close(descriptor)


def _forget_cached(descriptor: int) -> None:
    """What the page cache holds of a file may be right where the disk is not; and a whole volume read once is not to
    drive out of it what is read all the time."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_ino, found.st_size, found.st_mtime_ns)


def sync_path(path: Path) -> None:
    """What a file or folder holds is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError) -> CustodyError:
    if error.errno in NO_ROOM:
        return CustodyError(
            "storage_full", "The volume has no room left. Remove files or enlarge it, then try again.", retry_after=60
        )
    return CustodyError(
        "volume_unavailable",
        f"The volume answered {errno.errorcode.get(error.errno or 0, 'an error')}. Check its mount, then try again.",
        retry_after=5,
    )
