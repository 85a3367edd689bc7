"""`wharf doctor` on a database and a volume: what each process's role may look at, and nothing that it may not."""

import json
import subprocess
import sys

import pytest

from tests.conftest import Installation
from tests.e2e.service import clean_environment


@pytest.mark.parametrize(
    ("role", "subjects"),
    [
        ("wharf_api", {"cleanup", "model"}),
        ("wharf_worker", {"model"}),
        ("wharf_relay", {"model"}),
        ("wharf_cleanup", {"cleanup"}),
    ],
)
def test_each_role_is_told_of_what_it_may_see(installation: Installation, role: str, subjects: set[str]) -> None:
    reach = {"WHARF_DATABASE_URL": installation.url(role), "WHARF_VOLUME": str(installation.volume)}
    command = [sys.executable, "-m", "wharfinger", "doctor", "--json"]
    ended = subprocess.run(command, env=clean_environment(reach), capture_output=True, text=True, timeout=60)
    found = json.loads(ended.stdout)
    assert ended.stderr == ""
    assert [each["state"] for each in found if each["subject"] == "database"] == ["ok"]
    assert {"cleanup", "model"} & {each["subject"] for each in found} == subjects
    assert {each["state"] for each in found if each["subject"] == "volume"} == {"ok"}
