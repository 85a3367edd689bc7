"""One large file into custody, against a shell that copies, hashes and syncs it."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import starter_model
from bench.fleet import fleet, per_thing
from bench.large_file import MIB, ROOM, LargeFile
from bench.load import cpu_figures
from bench.null_engine import NULL_ENGINE
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario, program

SHELL = 'cat "$1" | tee "$2" | openssl sha256 && sync --data "$2"'


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    program("openssl")
    file = LargeFile(folder / "large", size * MIB)
    settings = {"WHARF_SLOTS": "1", "WHARF_ENGINE": NULL_ENGINE}
    with fleet("embedded", folder / "embedded", starter_model.MODEL, settings, broker_settings=ROOM) as started:

        def measure() -> Window:
            before = started.cpu_seconds()
            seconds = file.upload(started)
            return Window(size / seconds, cpu_figures(per_thing(before, started.cpu_seconds(), size)))

        yield Contest(
            [Contender("POST /v1/files", measure)], Contender("cat, tee, openssl, sync", partial(_copy, file))
        )


def _copy(file: LargeFile) -> Window:
    copy = file.path.with_name("copy")
    began = time.perf_counter()
    subprocess.run(["sh", "-c", SHELL, "sh", file.path, copy], check=True, stdout=subprocess.DEVNULL)  # noqa: S607
    seconds = time.perf_counter() - began
    copy.unlink()
    return Window(file.bytes / MIB / seconds)


SCENARIO = Scenario("f", "One upload of 1 GiB against copying, hashing and syncing it", "MiB", size=1024, open=_open)
