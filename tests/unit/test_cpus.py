import os
from pathlib import Path

import pytest

from inference_worker.cpus import granted_cpus


@pytest.fixture(autouse=True)
def sixteen_cpus_of_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)


def machine(folder: Path, *, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A /proc whose cgroup mounts lie in the test's folder."""
    process = folder / "proc" / "self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(groups)
    (process / "mounts").write_text(mounts.replace("/sys", f"{folder}/sys"))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "proc"


V2_MOUNTS = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
V1_MOUNTS = (
    "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
    "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
)


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    proc = machine(tmp_path, groups="0::/\n", mounts=V2_MOUNTS, files={"sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert granted_cpus(proc) == 16


def test_without_any_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert granted_cpus(tmp_path) == 16


@pytest.mark.parametrize(("quota", "cpus"), [("400000", 4), ("150000", 2), ("50000", 1), ("9900000", 16)])
def test_quota_of_v2_is_rounded_up_and_bounded_by_the_affinity(tmp_path: Path, quota: str, cpus: int) -> None:
    proc = machine(tmp_path, groups="0::/\n", mounts=V2_MOUNTS, files={"sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})
    assert granted_cpus(proc) == cpus


def test_tightest_of_the_parent_groups_binds(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/pods/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/pods/one/cpu.max": "800000 100000\n",
    }
    proc = machine(tmp_path, groups="0::/pods/one\n", mounts=V2_MOUNTS, files=files)
    assert granted_cpus(proc) == 3


def test_path_of_the_host_falls_back_to_the_containers_mount(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "200000 100000\n"}
    proc = machine(tmp_path, groups="0::/docker/abc\n", mounts=V2_MOUNTS, files=files)
    assert granted_cpus(proc) == 2


def test_quota_of_v1_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
    }
    proc = machine(tmp_path, groups="5:memory:/box\n3:cpu,cpuacct:/box\n0::/\n", mounts=V1_MOUNTS, files=files)
    assert granted_cpus(proc) == 3


def test_unlimited_v1_group_has_no_quota(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    proc = machine(tmp_path, groups="3:cpu,cpuacct:/\n", mounts=V1_MOUNTS, files=files)
    assert granted_cpus(proc) == 16
