"""What deploy/README.md tells people to type works."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.conftest import DEPLOY
from tests.support.openshift import process

README = (DEPLOY / "README.md").read_text()


@pytest.mark.parametrize("name", ["secrets", "template", "model"])
def test_its_commands_give_each_template_what_it_needs(name: str) -> None:
    [command] = re.findall(rf"^    oc process -f deploy/openshift/{name}\.yaml ((?:.*\\\n)*.*)", README, re.MULTILINE)
    given = dict(re.findall(r"-p (\w+)=(\S+)", command))
    assert given
    objects = process(yaml.safe_load((DEPLOY / "openshift" / f"{name}.yaml").read_text()), given)
    assert objects


def test_the_parameters_that_it_names_are_the_template_s(template: Mapping[str, Any]) -> None:
    section = README.split("## OpenShift")[1].split("## Kustomize")[0].split("Then:")[1]
    known = {parameter["name"] for parameter in template["parameters"]}
    named = set(re.findall(r"-p (\w+)=", section))
    assert named
    assert named <= known


def test_its_overlay_builds_with_your_images_settings_and_host(tools: Callable[..., str], tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "wharfinger" / "deploy" / "kustomize")
    [block] = re.findall(r"An overlay of yours:\n\n((?:    .*\n)+)", README)
    overlay = tmp_path / "mine"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(re.sub(r"^    ", "", block, flags=re.MULTILINE))
    objects = list(yaml.load_all(tools("kubectl", "kustomize", str(overlay)), yaml.CSafeLoader))
    text = yaml.safe_dump(objects)
    images = set(re.findall(r"image: (\S+)", text))
    assert images
    assert all(image.startswith("registry.example.com/ml/") for image in images)
    assert "host: wharf.ml.example.com" in text
    assert "storageClassName: cephfs" in text
    [settings] = [one for one in objects if one["kind"] == "ConfigMap"]
    assert settings["data"] == {"WHARF_VOLUME": "/srv/wharf", "WHARF_FILE_RETENTION_DAYS": "7"}


def test_every_file_that_it_names_is_there() -> None:
    named = [target for target in re.findall(r"\]\(([^)]+)\)", README) if target != "images"]
    assert len(named) >= 8
    assert [target for target in named if not (DEPLOY / target).exists()] == []


def test_every_overlay_and_component_is_named() -> None:
    folders = [*(DEPLOY / "kustomize" / "overlays").iterdir(), *(DEPLOY / "kustomize" / "components").iterdir()]
    assert len(folders) >= 7
    assert [folder.name for folder in folders if not re.search(rf"\b{folder.name}\b", README)] == []


def test_git_keeps_nothing_that_compose_init_makes() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/deploy/.env", "/deploy/files/", "/deploy/secrets/"} <= set(ignored)
