"""A small disk of the tests' own, which runs full on command."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

ROOM_BYTES = 4 << 30
"""More than anybody writes. What is not written takes no memory."""


class Disk:
    """A file system in memory at `path`, an empty folder, where mounting is allowed; `allowed` tells. `with` removes it
    and all that is on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.allowed = False

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to find it full: nothing."""
        return {}

    def __enter__(self) -> Self:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES},mode=755", "none", str(self.path)],
            stderr=subprocess.DEVNULL,
        )
        self.allowed = done.returncode == 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.allowed:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    @contextmanager
    def full(self, spare_bytes: int = 0) -> Iterator[None]:
        """While the body runs, there is no more room than that."""
        self._shrink(spare_bytes)
        try:
            yield
        finally:
            self._resize(ROOM_BYTES)

    def _shrink(self, spare_bytes: int) -> None:
        for _ in range(100):
            now = os.statvfs(self.path)
            if self._resize((now.f_blocks - now.f_bfree) * now.f_frsize + max(spare_bytes, now.f_frsize)):
                return
        raise RuntimeError(f"The disk at {self.path} is written to faster than it can be made small.")

    def _resize(self, size: int) -> bool:
        """False where more than that has been written by now."""
        resize = ["mount", "-o", f"remount,size={size}", str(self.path)]
        return subprocess.run(resize, stderr=subprocess.DEVNULL).returncode == 0
