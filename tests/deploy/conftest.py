"""helm and kubectl, and what deploy/ holds."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from contracts.helm import ToolMissingError, run, tool
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = ("dev", "production", "gpu")

Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def tools() -> Callable[..., str]:
    """Runs helm or kubectl. Where they cannot be had, the test is skipped; in CI it fails."""
    try:
        tool("helm")
    except ToolMissingError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    return run


@pytest.fixture(scope="session")
def template() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "openshift" / "template.yaml").read_text())


@pytest.fixture(scope="session")
def built(tools: Callable[..., str]) -> dict[str, dict[tuple[str, str], Manifest]]:
    """Overlay -> (kind, name) -> object."""
    made = {}
    for overlay in OVERLAYS:
        printed = tools("kubectl", "kustomize", str(DEPLOY / "kustomize" / "overlays" / overlay))
        objects = list(yaml.load_all(printed, yaml.CSafeLoader))
        made[overlay] = {(one["kind"], one["metadata"]["name"]): one for one in objects}
        assert len(made[overlay]) == len(objects)
    return made
