"""Compiled networks, kept from one start of a slot to the next.

OpenVINO has a cache of its own (CACHE_DIR), which writes in place and believes what it reads: of a file with 64 flipped
bytes it made an engine that found something else. Here an entry appears whole or not at all, and is compared with its
digest each time. What is read is as good as code: hence the folder is its owner's alone.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

SUFFIX = ".compiled"
UNFINISHED = ".new"
DIGEST_BYTES = 32


class CompiledCache:
    """Entries below `folder`, `max_bytes` of them at most: the ones that were used longest ago go first. Any number of
    processes use it at once. Nothing that happens to it keeps an engine from its start: it is told on standard error,
    and the network is compiled."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def find(self, key: str) -> bytes | None:
        """What was kept under `key`, as it was; None where nothing was, or where it has been damaged since."""
        path = self._folder / f"{key}{SUFFIX}"
        try:
            with _private(self._folder):
                kept = path.read_bytes()
                if _digest(kept[DIGEST_BYTES:]) != kept[:DIGEST_BYTES]:
                    _say(f"{path} is damaged; the model is compiled anew")
                    path.unlink(missing_ok=True)
                    return None
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(f"{self._folder} cannot be used: {error}")
            return None
        return kept[DIGEST_BYTES:]

    def keep(self, key: str, compiled: bytes) -> None:
        """Nothing is kept that is larger than all may be together, or while another process writes."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _private(self._folder) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Only who holds the lock writes: those were killed.
                for left in self._folder.glob(f"*{UNFINISHED}"):
                    left.unlink(missing_ok=True)
                if self._make_room(DIGEST_BYTES + len(compiled)):
                    self._write(key, compiled)
        except BlockingIOError:
            return
        except OSError as error:
            _say(f"the compiled model is not kept in {self._folder}: {error}")

    def _make_room(self, size: int) -> bool:
        kept = sorted(((each.stat().st_mtime, each) for each in self._folder.glob(f"*{SUFFIX}")), reverse=True)
        if size > self._max_bytes:
            _say(f"the compiled model has {size} bytes, more than the {self._max_bytes} that are kept")
            return False
        for _, path in kept:
            size += path.stat().st_size
            if size > self._max_bytes:
                path.unlink(missing_ok=True)
        return True

    def _write(self, key: str, compiled: bytes) -> None:
        new = self._folder / f"{key}{UNFINISHED}"
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(compiled))
                file.write(compiled)
            # Not flushed to the disk: the digest tells what a power cut left.
            new.rename(self._folder / f"{key}{SUFFIX}")
        except OSError:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise


@contextmanager
def _private(folder: Path) -> Iterator[int]:
    """The folder, open. Raises `OSError` where it is not this user's own, or others may enter it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError("it has to belong to the worker's user, with mode 0700")
        yield descriptor
    finally:
        os.close(descriptor)


def _digest(compiled: bytes) -> bytes:
    return sha256(compiled).digest()


def _say(text: str) -> None:
    sys.stderr.write(f"compiled models: {text}\n")
