"""What deploy/README.md tells people to type works."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.rendering import STARTER_MODEL
from tests.conftest import ROOT
from tests.deploy.conftest import DEPLOY
from tests.support.openshift import process
from tests.support.pods import pods

README = (DEPLOY / "README.md").read_text()


@pytest.mark.parametrize("name", ["evaluation", "secrets", "template", "model"])
def test_its_commands_give_each_template_what_it_needs(name: str) -> None:
    commands = re.findall(rf"^    oc process -f deploy/openshift/{name}\.yaml ((?:.*\\\n)*.*)", README, re.MULTILINE)
    assert commands
    template = yaml.safe_load((DEPLOY / "openshift" / f"{name}.yaml").read_text())
    for command in commands:
        assert process(template, dict(re.findall(r"-p (\w+)=(\S+)", command)))


def test_the_parameters_that_it_names_are_the_template_s(template: Mapping[str, Any]) -> None:
    section = README.split("## OpenShift")[1].split("## Kustomize")[0].split("Then:")[1]
    beside = [yaml.safe_load((DEPLOY / "openshift" / f"{name}.yaml").read_text()) for name in ("secrets", "model")]
    known = {parameter["name"] for one in (template, *beside) for parameter in one["parameters"]}
    named = set(re.findall(r"-p '?(\w+)=", section))
    assert len(named) >= 7
    assert named <= known


def test_its_pull_secrets_are_a_list_that_pods_take(template: Mapping[str, Any]) -> None:
    [given] = re.findall(r"-p PULL_SECRETS='([^']+)'", README)
    needed = {"BROKER_IMAGE": "b:1", "WORKER_IMAGE": "w:1", "STORAGE_CLASS_NAME": "nfs"}
    found = [pod["imagePullSecrets"] for _, pod in pods(process(template, {**needed, "PULL_SECRETS": given}))]
    assert found
    assert all(secrets == [{"name": "my-registry"}] for secrets in found)


def test_its_first_try_registers_the_model_that_its_workers_wait_for() -> None:
    section = README.split("A first try in a project of yours")[1].split("With a PostgreSQL")[0]
    assert re.findall(r"-p MODEL=(\w+)", section) == ["digits", "digits"]
    assert re.findall(r"-p MODEL_FILE=(\S+)", section) == [STARTER_MODEL]
    [worker] = re.findall(r"-p WORKER_IMAGE=(\S+)", section)
    assert re.findall(r"-p IMAGE=(\S+)", section) == [worker]


def test_its_overlay_builds_with_your_images_settings_and_host(tools: Callable[..., str], tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "wharfinger" / "deploy" / "kustomize")
    [block] = re.findall(r"An overlay of yours[^:]*:\n\n((?:    .*\n)+)", README)
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
    accounts = [one for one in objects if one["kind"] == "ServiceAccount"]
    assert all(one["imagePullSecrets"] == [{"name": "my-registry"}] for one in accounts)
    assert {pod["serviceAccountName"] for _, pod in pods(objects)} == {one["metadata"]["name"] for one in accounts}
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


def test_the_command_line_reads_what_it_exports() -> None:
    exported = set(re.findall(r"(WHARF_\w+)=", " ".join(re.findall(r"^    export (.*)", README, re.MULTILINE))))
    told = (ROOT / "wharfinger" / "discovery.py").read_text()
    assert exported == {"WHARF_SERVER", "WHARF_API_KEY", "WHARF_API_KEY_FILE"}
    assert [name for name in exported if name not in told] == []
