"""Tests of the chart need helm: where it cannot be had they are skipped, but not in CI."""

import os

import pytest

from tests.charts.programs import WHEELS, ProgramMissingError, helm


@pytest.fixture(scope="session", autouse=True)
def helms() -> None:
    try:
        for release in WHEELS:
            helm(release)
    except ProgramMissingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
