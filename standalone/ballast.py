"""A file that only takes up room on the disk of `wharf up`, and gives it back where the disk runs full. A database that
cannot write cannot delete either: without it nothing could go, and the disk would stay full."""

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LITTLE_BYTES = 16 << 20
"""What PostgreSQL needs to go on: the next segment of its log."""

LOOK_SECONDS = 0.5


class Ballast:
    """`path`: the file, of `size` bytes; 0: none is kept. `say` is given a line whenever something changes."""

    def __init__(self, path: Path, size: int, say: Callable[[str], None]) -> None:
        self._path = path
        self._size = size
        self._say = say

    def look(self) -> None:
        """Gives the room back where there is little, and takes it again where there is plenty."""
        free = shutil.disk_usage(self._path.parent).free
        if self._path.exists():
            if free < LITTLE_BYTES or not self._size:
                self._path.unlink()
                self._say(f"The disk is full: {self._size >> 20} MiB kept for this were given back. Free some space.")
        elif self._size and free > 3 * self._size + LITTLE_BYTES:
            self._take()

    async def watch(self) -> None:
        while True:
            # A disk that does not answer is found out by those who need it.
            with suppress(OSError):
                await asyncio.to_thread(self.look)
            await asyncio.sleep(LOOK_SECONDS)

    def _take(self) -> None:
        with self._path.open("wb") as file:
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self._size)
                else:
                    file.write(bytes(self._size))
            except OSError:
                self._path.unlink(missing_ok=True)
                raise
