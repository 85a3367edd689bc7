"""What custody relies on between two machines, tried on the volume: one writes, syncs and renames, the other waits for
the name and reads. Times are the writer's own, there and back: no two clocks are compared."""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from standalone.doctor.finding import Finding

ROUNDS = 5
BYTES = 256 * 1024
MEET_SECONDS = 300.0
"""For both pods to be scheduled and to pull their image."""

SEEN_SECONDS = 90.0
"""NFS remembers for 30 to 60 s (acdirmin, acdirmax) that a name was not there, unless its mount says otherwise."""

SLOW_SECONDS = 5.0
POLL_SECONDS = 0.02
NFS_ADVICE = "For NFS, put lookupcache=positive into the mountOptions of the StorageClass or PersistentVolume."
SLOW_ADVICE = f"Workers look again until it is there, so that this costs time and no picture. {NFS_ADVICE}"


def write(volume: Path, meeting: str, *, meet_seconds: float = MEET_SECONDS) -> Iterator[Finding]:
    """The writer's part of `meeting`, which is a name that both know."""
    place = _Place(volume, meeting)
    try:
        if not _comes(place.name("reader"), meet_seconds):
            yield Finding(
                "two pods", "fault", f"the other pod did not come within {meet_seconds:.0f} s, or its file is not seen",
                f"Is the claim ReadWriteMany, and can pods of two nodes mount it? {NFS_ADVICE}",
            )  # fmt: skip
            return
        written, took = [], []
        for number in range(ROUNDS):
            began = time.monotonic()
            place.publish(f"{number}", _content(meeting, number))
            written.append(time.monotonic() - began)
            # Each of the two has looked before, and may remember that there was nothing.
            if not _comes(place.name(f"{number}.seen"), 2 * SEEN_SECONDS):
                yield Finding(
                    "two pods", "fault", f"a renamed file was not seen by the other pod within {SEEN_SECONDS:.0f} s",
                    NFS_ADVICE,
                )  # fmt: skip
                return
            took.append(time.monotonic() - began)
        slow = max(took) > SLOW_SECONDS
        yield Finding(
            "two pods",
            "warning" if slow else "ok",
            f"write, sync and rename {median(written) * 1000:.0f} ms; with that seen by the other pod and its answer "
            f"seen here {median(took) * 1000:.0f} ms, at worst {max(took) * 1000:.0f} ms of {ROUNDS}",
            SLOW_ADVICE if slow else "",
        )
    finally:
        place.clear()


def read(volume: Path, meeting: str, *, meet_seconds: float = MEET_SECONDS) -> Iterator[Finding]:
    """The reader's part."""
    place = _Place(volume, meeting)
    place.publish("reader", b"here")
    damaged = 0
    for number in range(ROUNDS):
        if not _comes(place.name(f"{number}"), meet_seconds if number == 0 else 3 * SEEN_SECONDS):
            yield Finding("two pods", "fault", "nothing came from the writer", "See what the other pod found.")
            return
        damaged += _read(place.name(f"{number}")) != _content(meeting, number)
        place.publish(f"{number}.seen", b"seen")
    if damaged:
        yield Finding(
            "two pods", "fault", f"{damaged} of {ROUNDS} files had other bytes than were synced before",
            "This volume cannot hold custody: it breaks what POSIX promises of fsync and rename.",
        )  # fmt: skip
    else:
        yield Finding("two pods", "ok", f"{ROUNDS} renamed files had all their bytes as soon as their name was seen")


class _Place:
    def __init__(self, volume: Path, meeting: str) -> None:
        self._folder = volume / "staging"
        self._meeting = meeting

    def name(self, part: str) -> Path:
        return self._folder / f"doctor.{self._meeting}.{part}"

    def publish(self, part: str, content: bytes) -> None:
        """As an upload is: staged, synced, renamed, and its folder synced."""
        staged = self.name(f"{part}.part")
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(self.name(part))
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def clear(self) -> None:
        for file in self._folder.glob(f"doctor.{self._meeting}.*"):
            file.unlink(missing_ok=True)


def _content(meeting: str, number: int) -> bytes:
    return hashlib.shake_256(f"{meeting} {number}".encode()).digest(BYTES)


def _comes(file: Path, seconds: float) -> bool:
    return _within(seconds, file.exists)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE, errno.EIO):
            raise
        return b""


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
