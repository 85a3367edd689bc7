"""Kubernetes would take the objects: each field is known to it, in every supported version."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.charts.rendering import VALUES, objects
from tests.conftest import ROOT, SHARED

ALL_VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
VERSIONS = ALL_VERSIONS if os.environ.get("WHARF_TEST_KUBERNETES") == "all" else ["1.29", "1.33", "1.37"]
"""WHARF_TEST_KUBERNETES=all: each."""
CUSTOM = ("keda.sh", "monitoring.coreos.com", "route.openshift.io")


@pytest.fixture(autouse=True)
def schemas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """kubernetes-validate would parse each of its files again for each object."""
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", schema_contents)


schema_contents = cache(kubernetes_validate.utils.schema_contents)


def group(found: dict[str, Any]) -> str:
    return found["apiVersion"].rpartition("/")[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_core_kinds_are_valid(version: str) -> None:
    different = {json.dumps(found): found for name in VALUES for found in objects(name) if group(found) not in CUSTOM}
    for found in different.values():
        kubernetes_validate.validate(found, version, strict=True)
    kinds = {found["kind"] for found in different.values()}
    assert {"Deployment", "CronJob", "Job", "StatefulSet", "NetworkPolicy", "Ingress", "Service"} <= kinds


def test_an_unknown_field_is_found() -> None:
    found = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_admin_s_volume_is_valid(version: str) -> None:
    manifest = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "static-nfs.yaml").read_text())
    kubernetes_validate.validate(manifest, version, strict=True)
    claims = [o for o in objects("external") if o["kind"] == "PersistentVolumeClaim"]
    assert manifest["spec"]["claimRef"] == {"namespace": "ml", "name": claims[0]["metadata"]["name"]}


@pytest.mark.parametrize(
    ("kind", "file", "sets"),
    [
        ("ScaledObject", "keda_scaledobjects.yaml", ["keda-postgresql", "keda-prometheus", "long-names"]),
        ("TriggerAuthentication", "keda_triggerauthentications.yaml", ["keda-postgresql", "long-names"]),
        ("ServiceMonitor", "mon_servicemonitors.yaml", ["everything"]),
        ("PodMonitor", "mon_podmonitors.yaml", ["everything"]),
        ("PrometheusRule", "mon_prometheusrules.yaml", ["everything"]),
        ("Route", "route.crd.yaml", ["everything"]),
    ],
)
def test_custom_kinds_are_valid(kind: str, file: str, sets: list[str]) -> None:
    path = SHARED / "crds" / file
    if not path.exists():
        pytest.skip(f"{file} is not beside the checkout, in ../shared/crds")
    checked = 0
    for name in sets:
        for found in objects(name):
            if found["kind"] == kind:
                jsonschema.validate(found, definition(path, found["apiVersion"]))
                checked += 1
    assert checked > 0


@cache
def definition(path: Path, version: str) -> dict[str, Any]:
    """A custom kind's schema, which refuses what it does not name."""
    crd = yaml.load(path.read_text(), yaml.CSafeLoader)
    [schema] = [
        served["schema"]["openAPIV3Schema"]
        for served in crd["spec"]["versions"]
        if f"{crd['spec']['group']}/{served['name']}" == version
    ]
    schema["properties"]["metadata"] = {"type": "object"}
    close(schema)
    return schema


def close(schema: Any) -> None:
    """Kubernetes prunes what a custom kind does not name; here it is an error."""
    if isinstance(schema, list):
        for each in schema:
            close(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        # Kubernetes reads patterns as Go does, and `anyOf: null` as none.
        if "(?i)" in str(schema.get("pattern", "")):
            del schema["pattern"]
        if "anyOf" in schema and schema["anyOf"] is None:
            del schema["anyOf"]
        for key, each in schema.items():
            # Branches of a choice name some of the fields that stand beside them.
            if key not in ("allOf", "anyOf", "oneOf", "not"):
                close(each)
