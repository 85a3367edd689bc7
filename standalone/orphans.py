"""What a Postgres that was killed with -9, or whose parent was, left running on a cluster."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


async def end_orphans(cluster: Path) -> None:
    """Ends every process of a Postgres that works on `cluster`, and removes its pid file. Only for a caller who holds
    the folder, and who has no Postgres running on it."""
    postmaster = _postmaster_of(cluster)
    if postmaster is not None:
        await _end(lambda: {postmaster} if _is_postmaster(postmaster, cluster) else set(), _POSTMASTER)
    # A server process outlives its postmaster for as long as its query computes, and keeps the shared memory.
    await _end(lambda: _processes_in(cluster), _SERVER_PROCESSES)
    # The pid in it may be another program's by now (after a power cut, for one), on which Postgres refuses to start.
    (cluster / "postmaster.pid").unlink(missing_ok=True)


_POSTMASTER = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
_SERVER_PROCESSES = ((signal.SIGQUIT, 2.0), (signal.SIGKILL, 10.0))


async def _end(alive: Callable[[], set[int]], steps: tuple[tuple[signal.Signals, float], ...]) -> None:
    for number, seconds in steps:
        for pid in alive():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while alive() and time.monotonic() < deadline:  # noqa: ASYNC110 - they are not our children: nothing tells
            await asyncio.sleep(0.05)


def _postmaster_of(cluster: Path) -> int | None:
    try:
        pid = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    return pid if _is_postmaster(pid, cluster) else None


def _is_postmaster(pid: int, cluster: Path) -> bool:
    """By the command line, which everybody may read, unlike the working directory. A zombie has none."""
    command = _command_line(pid)
    program = command.partition(" -D ")[0]
    return Path(program).name in ("postgres", "postmaster") and f" -D {cluster} " in f"{command} "


def _command_line(pid: int) -> str:
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")).strip()
        except OSError:
            return ""
    ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    said = subprocess.run(ps, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def _processes_in(cluster: Path) -> set[int]:
    """Processes of Postgres whose working directory is the cluster, as every one's is. Empty on macOS, and of other
    users' where a container withholds CAP_SYS_PTRACE: there the start is retried until they have gone."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text().startswith("postgres") and (folder / "cwd").readlink() == cluster:
                found.add(int(folder.name))
    return found
