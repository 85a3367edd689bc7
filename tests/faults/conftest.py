"""Fleets that are to be hurt, and the table of how long they took to recover."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.service import Installation
from tests.faults.fleet import Fleet, Recovery
from tests.support.rabbitmq import RabbitMQ

RECOVERIES = pytest.StashKey[list[Recovery]]()

NewFleet = Callable[[RabbitMQ | None], Fleet]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECOVERIES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    recoveries = config.stash[RECOVERIES]
    if not recoveries:
        return
    width = max(len(recovery.fault) for recovery in recoveries)
    terminalreporter.section("recovered from")
    terminalreporter.write_line(f"{'fault':{width}}  {'jobs':>5}  {'inputs':>6}  {'next, s':>7}  {'all, s':>7}")
    for each in recoveries:
        terminalreporter.write_line(
            f"{each.fault:{width}}  {each.jobs:5}  {each.inputs:6}  {each.next_seconds:7.2f}  {each.all_seconds:7.2f}"
        )


@pytest.fixture(scope="module")
def new_fleet(postgres: Postgres, pytestconfig: pytest.Config) -> Iterator[NewFleet]:
    """Makes fleets on databases and volumes of their own."""
    with ExitStack() as stack:
        recoveries = pytestconfig.stash[RECOVERIES]
        yield lambda node: stack.enter_context(_fleet(postgres, recoveries, node))


@contextmanager
def _fleet(postgres: Postgres, recoveries: list[Recovery], node: RabbitMQ | None) -> Iterator[Fleet]:
    # In memory, where there is such a place: a volume has 4,096 folders.
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="wharf-fleet-", dir=memory if memory.is_dir() else None))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        database = stack.enter_context(new_database(postgres))
        installation = Installation(folder, lambda role: postgres.url(role, database))
        stack.callback(installation.stop)
        fleet = Fleet(installation, recoveries, node)
        stack.callback(fleet.close)
        yield fleet
