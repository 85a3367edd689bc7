"""The most memory that processes have had since they were last asked."""

from pathlib import Path

import psutil

RESET_PEAK = "5"
"""Of Linux's proc(5), clear_refs: the peak becomes what is resident now."""


def reset_peak(pid: int) -> None:
    for process in _tree(pid):
        Path(f"/proc/{process.pid}/clear_refs").write_text(RESET_PEAK)


def peak_mb(pid: int) -> float:
    """Resident, of the process and all below it: the sum of each one's peak."""
    return sum(_peak_kb(process.pid) for process in _tree(pid)) / 1000


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
