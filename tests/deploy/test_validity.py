"""What deploy/ makes is what Kubernetes and OpenShift take: no field that they do not know."""

from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.charts.test_validity import definition, schema_contents
from tests.conftest import SHARED
from tests.deploy.conftest import DEPLOY
from tests.support.openshift import process

VERSION = "1.37"
NEEDED = {"BROKER_IMAGE": "b:1", "WORKER_IMAGE": "w:1", "STORAGE_CLASS_NAME": "nfs"}
CUSTOM = {
    "ScaledObject": "keda_scaledobjects.yaml",
    "TriggerAuthentication": "keda_triggerauthentications.yaml",
    "ServiceMonitor": "mon_servicemonitors.yaml",
    "PodMonitor": "mon_podmonitors.yaml",
    "PrometheusRule": "mon_prometheusrules.yaml",
}
MODEL = {"MODEL": "parcels", "MODEL_FILE": "/models/parcels.onnx", "IMAGE": "parcels:3"}


@pytest.fixture(autouse=True)
def schemas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """kubernetes-validate would parse each of its files again for each object."""
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", schema_contents)


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_an_overlay_is_valid(overlay: str, built: dict[str, dict[tuple[str, str], Any]]) -> None:
    """That of production is a part of gpu's."""
    assert len(built[overlay]) > 20
    for one in built[overlay].values():
        kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.parametrize(("name", "given"), [("template", NEEDED), ("model", MODEL), ("evaluation", {})])
def test_a_processed_template_is_valid(name: str, given: dict[str, str]) -> None:
    routes = 0
    for one in process(yaml.safe_load((DEPLOY / "openshift" / f"{name}.yaml").read_text()), given):
        if one["kind"] == "Route":
            routes += 1
        else:
            kubernetes_validate.validate(one, VERSION, strict=True)
    assert routes == (1 if name == "template" else 0)


def test_the_route_is_valid(template: dict[str, Any]) -> None:
    path = SHARED / "crds" / "route.crd.yaml"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the checkout, in ../shared/crds")
    for given in (NEEDED, {**NEEDED, "HOST": "wharf.example.com"}):
        [route] = [one for one in process(template, given) if one["kind"] == "Route"]
        jsonschema.validate(route, definition(path, route["apiVersion"]))


@pytest.mark.parametrize("kind", CUSTOM)
def test_the_components_custom_kinds_are_valid(kind: str) -> None:
    path = SHARED / "crds" / CUSTOM[kind]
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the checkout, in ../shared/crds")
    components = (DEPLOY / "kustomize" / "components").rglob("*.yaml")
    objects = [one for file in components for one in yaml.load_all(file.read_text(), yaml.CSafeLoader)]
    found = [one for one in objects if one["kind"] == kind]
    assert found
    for one in found:
        jsonschema.validate(one, definition(path, one["apiVersion"]))
