"""The limit of custody: files that are on disk before they have a name, written by several threads."""

import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.rounds import Window


def durable_files(folder: Path, contents: Iterable[bytes], threads: int) -> Window:
    """Each content in a file of its own. Leaves nothing."""
    folder.mkdir()
    files = list(enumerate(contents))

    def write(number: int, content: bytes) -> None:
        file = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            os.write(file, content)
            os.fdatasync(file)
            # With a folder's descriptor Python calls linkat(2), which can follow the link to the file.
            os.link(f"/proc/self/fd/{file}", folder / str(number), src_dir_fd=file, follow_symlinks=True)
        finally:
            os.close(file)

    with ThreadPoolExecutor(threads) as pool:
        cpu_began, began = time.process_time(), time.perf_counter()
        for written in [pool.submit(write, *file) for file in files]:
            written.result()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    shutil.rmtree(folder)
    return Window(len(files) / seconds, {"CPU ms": cpu_seconds / len(files) * 1000})
