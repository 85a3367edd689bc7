"""Environments of their own, in .venv-bench: what a peer or a chart needs stays out of the product's."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from bench.machine import ROOT

PINS = Path(__file__).with_name("environments")
PLACE = ROOT / ".venv-bench"
LONGEST_SECONDS = 900


class UnavailableError(Exception):
    """pip cannot install it. The message has pip's last words."""


def python_of(name: str) -> Path:
    """The interpreter of the environment with what `environments/NAME.txt` pins; made where it is missing, and anew
    where the pins have changed."""
    pins = PINS / f"{name}.txt"
    place = PLACE / name
    python, ready = place / "bin" / "python", place / "ready"
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    if not ready.is_file() or ready.read_text() != wanted:
        sys.stderr.write(f"  making {place.relative_to(ROOT)}\n")
        shutil.rmtree(place, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(place)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)])
        ready.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONGEST_SECONDS)
    except subprocess.CalledProcessError as error:
        raise UnavailableError("\n".join(str(error.stderr).strip().splitlines()[-3:])) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"It was not installed in {LONGEST_SECONDS} s.") from error
