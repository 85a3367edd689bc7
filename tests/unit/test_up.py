"""`wharf up`: what it gives the processes that it starts."""

from pathlib import Path

import pytest

from custody.settings import load
from standalone.command import OneMachine
from standalone.settings import UpSettings


def test_a_broker_that_drains_for_long_is_not_killed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHARF_DRAIN_SECONDS", "120")
    monkeypatch.setenv("WHARF_LEAVE_SECONDS", "10")
    broker = OneMachine(load(UpSettings, data=tmp_path))._program("broker", {})
    assert broker._grace_seconds > 120 + 10 + 5


def test_its_processes_are_told_of_no_other_queue_and_no_other_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHARF_AMQP_URL", "amqp://elsewhere")
    monkeypatch.setenv("WHARF_DIRECT_DATABASE_URL", "postgresql://owner@elsewhere/wharf")
    monkeypatch.setenv("WHARF_MAX_PARTS", "3")
    given = OneMachine(load(UpSettings, data=tmp_path))._environment()
    assert not {"WHARF_AMQP_URL", "WHARF_DIRECT_DATABASE_URL"} & given.keys()
    assert given["WHARF_MAX_PARTS"] == "3"
