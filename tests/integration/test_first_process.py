"""`wharf` as a container's first process, which the kernel spares the signals that it does not handle."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import Installation
from tests.e2e.service import clean_environment

UNSHARE = ["unshare", "--fork", "--pid", "--kill-child"]


def may_unshare() -> bool:
    return shutil.which("unshare") is not None and not subprocess.call([*UNSHARE, "true"], stderr=subprocess.DEVNULL)


@contextmanager
def first_process(environment: dict[str, str], *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """With its number as we see it."""
    command = [*UNSHARE, sys.executable, "-m", "wharfinger", *arguments]
    unshare = subprocess.Popen(command, env=clean_environment(environment), stderr=subprocess.PIPE, text=True)
    try:
        while not (inside := psutil.Process(unshare.pid).children()):
            time.sleep(0.02)
        yield unshare, inside[0].pid
    finally:
        unshare.kill()
        unshare.communicate()


@pytest.mark.skipif(not may_unshare(), reason="no namespace of processes can be made here")
@pytest.mark.parametrize("command", ["models wait nobodys", "migrate --wait"])
def test_what_waits_in_a_pod_ends_when_it_is_asked_to(installation: Installation, tmp_path: Path, command: str) -> None:
    # An unprepared volume, which a migration is waited for.
    environment = {"WHARF_DATABASE_URL": installation.url("wharf_worker"), "WHARF_VOLUME": str(tmp_path)}
    with first_process(environment, *command.split()) as (unshare, number):
        assert unshare.stderr is not None
        assert unshare.stderr.readline()  # it says what it waits for
        os.kill(number, signal.SIGTERM)
        assert unshare.wait(10) == 128 + signal.SIGTERM
