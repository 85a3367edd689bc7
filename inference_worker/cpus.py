"""How many CPUs this process may use: what the machine has is not what a container is granted."""

import os
import re
from collections.abc import Iterator
from math import ceil
from pathlib import Path


def granted_cpus(proc: Path = Path("/proc")) -> int:
    """The least of the CPU affinity and the cgroup's quotas (v1 and v2, those of the parent groups included), rounded
    up: half a CPU is still one to work on. At least 1."""
    quotas = [ceil(quota) for quota in _quotas(proc / "self")]
    return max(1, min([_affinity(), *quotas]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(process: Path) -> Iterator[float]:
    """Every CPU quota that binds the process, in CPUs."""
    for kind, mount, path in _groups(process):
        group = mount / path
        # Without a cgroup namespace the path is the host's, and only the mount itself exists in the container.
        for folder in (group, *group.parents):
            quota = _quota_v2(folder) if kind == "cgroup2" else _quota_v1(folder)
            if quota is not None:
                yield quota
            if folder == mount:
                break


def _groups(process: Path) -> Iterator[tuple[str, Path, str]]:
    """Kind of hierarchy, mount point, and the process's path below it, for those that hold CPU quotas."""
    paths = {controllers: path for _, controllers, path in _lines(process / "cgroup", ":", 2)}
    v1_path = next((path for controllers, path in paths.items() if "cpu" in controllers.split(",")), None)
    for _, mount, kind, options, *_ in _lines(process / "mounts", " ", -1):
        where = Path(_unescaped(mount))
        if kind == "cgroup2" and "" in paths:
            yield kind, where, paths[""].lstrip("/")
        if kind == "cgroup" and "cpu" in options.split(",") and v1_path is not None:
            yield kind, where, v1_path.lstrip("/")


def _quota_v2(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _quota_v1(group: Path) -> float | None:
    quota = _text(group / "cpu.cfs_quota_us").strip()
    period = _text(group / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _lines(path: Path, separator: str, splits: int) -> Iterator[list[str]]:
    for line in _text(path).splitlines():
        yield line.split(separator, splits)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _unescaped(mount: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount)
