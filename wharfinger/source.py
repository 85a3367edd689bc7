"""What a user hands in, a file on disk or bytes, read the same way and never held in memory twice."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TypeAlias

from wharfinger.errors import FileChangedError

Picture: TypeAlias = str | os.PathLike[str] | bytes
"""A path, or the encoded bytes of a picture."""

Report: TypeAlias = Callable[[int, int], None]
"""Hears of a transfer: bytes moved so far, bytes in all. Starts over where a transfer is tried again."""

_CHUNK = 256 * 1024


@dataclass(frozen=True)
class Source:
    """Bytes that can be opened as often as they are needed."""

    filename: str
    size: int
    open: Callable[[], BufferedReader | BytesIO]

    def sha256(self) -> str:
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def chunks(self, report: Report | None = None) -> Iterator[bytes]:
        """Exactly `size` bytes, a chunk at a time. Raises FileChangedError where there are no longer that many."""
        sent = 0
        with self.open() as file:
            while sent < self.size:
                chunk = file.read(min(_CHUNK, self.size - sent))
                if not chunk:
                    raise FileChangedError(f"{self.filename} became shorter while it was sent: send it again")
                yield chunk
                sent += len(chunk)
                if report is not None:
                    report(sent, self.size)


def source_of(picture: Picture, filename: str | None = None) -> Source:
    """Raises OSError where a path cannot be read."""
    if isinstance(picture, bytes):
        return Source(filename or "picture", len(picture), lambda: BytesIO(picture))
    path = Path(picture)
    with path.open("rb") as file:  # Before anything is sent: a folder or a file without permission fails here.
        size = os.fstat(file.fileno()).st_size
    return Source(filename or _transmissible(path.name), size, lambda: path.open("rb"))


def _transmissible(name: str) -> str:
    """A file's name as text; bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")
