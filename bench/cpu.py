"""CPU time of processes, those that ended meanwhile included."""

from contextlib import suppress

import psutil


def own_seconds(pid: int) -> float:
    """The process's own; without its children."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def below_seconds(pid: int) -> float:
    """Of all its descendants: the kernel adds what a dead child has used to its parent, when that takes note."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    seconds = float(times.children_user + times.children_system)
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            seconds += tree_seconds(child.pid)
    return seconds


def tree_seconds(pid: int) -> float:
    return own_seconds(pid) + below_seconds(pid)
