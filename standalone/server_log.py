"""What Postgres says, in a file that stays short.

A file, not a pipe: Postgres stands still on a pipe that nobody reads, and whoever holds a `Postgres` may not be
reading, a test between two event loops for one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LARGEST = 8 * 1024 * 1024
"""Bytes; as many are kept in `<path>.1`."""


class ServerLog:
    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """For a child to write to the end of."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            yield file

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def since(self, offset: int) -> str:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def shorten(self) -> None:
        """By copying and cutting, since the server keeps the file open; a line written in between is lost, and on a
        full disk what is cut."""
        if self.size > LARGEST:
            older = self.path.with_name(f"{self.path.name}.1")
            try:
                shutil.copyfile(self.path, older)
            except OSError:
                older.unlink(missing_ok=True)
            os.truncate(self.path, 0)
