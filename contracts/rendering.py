"""The chart's objects as deploy/ takes them over: without what is helm's own."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from contracts.helm import run

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "wharfinger"
DEPLOY = ROOT / "deploy"
GENERATED = "# Rendered from charts/wharfinger by `make manifests`: change the chart, not this file.\n"

Manifest = dict[str, Any]

VERSION: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
NAMESPACE = "wharfinger"
CLAIM = "ml-files-storage"
QUEUE_CA = "/etc/wharf/queue/ca.crt"
"""Where the chart mounts the authorities of RabbitMQ."""
SETTINGS_MARK = "wharfinger/settings"
"""The chart's annotation of pods that changes with the settings, so that pods start anew with others."""
STARTER_MODEL = "/opt/wharf/lib/python3.11/site-packages/starter_model/digits.onnx"
"""The little model that the workers' images bring along."""


def chart(release: str, values: Mapping[str, Any]) -> list[Manifest]:
    """The chart's objects without what is helm's own: its labels, its annotations, and the test."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        printed = run("helm", "template", release, str(CHART), "--values", file.name, "--namespace", NAMESPACE)
    found = [one for one in yaml.load_all(printed, yaml.CSafeLoader) if one is not None]
    return [_plain(one) for one in found if "helm.sh/hook" not in one["metadata"].get("annotations", {})]


def pod_templates(manifest: Manifest) -> list[Manifest]:
    """Metadata and spec of the pods that this object makes."""
    match manifest["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            return [manifest["spec"]["template"]]
        case "CronJob":
            return [manifest["spec"]["jobTemplate"]["spec"]["template"]]
        case _:
            return []


def mark_settings(manifest: Manifest, mark: str | None) -> Manifest:
    """With `mark` in place of the chart's digest of the settings, or without any."""
    for pod in pod_templates(manifest):
        annotations = pod["metadata"].get("annotations", {})
        if SETTINGS_MARK in annotations:
            del annotations[SETTINGS_MARK]
            if mark is not None:
                annotations[SETTINGS_MARK] = mark
            if not annotations:
                del pod["metadata"]["annotations"]
    return manifest


def make_authorities_optional(manifest: Manifest, queue_ca: str | None) -> None:
    """The Secrets of private authorities are mounted where they exist, since neither a Template nor a kustomization
    has switches. PostgreSQL's client does without a file that is missing, unless the URL says verify-full; for RabbitMQ
    `queue_ca` stands in place of the chart's file, or nothing does."""
    for pod in pod_templates(manifest):
        for volume in pod["spec"]["volumes"]:
            if volume["name"] in ("database-ca", "queue-ca"):
                volume["secret"]["optional"] = True
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            for variable in [one for one in container["env"] if one["name"] == "WHARF_AMQP_CA_FILE"]:
                assert variable["value"] == QUEUE_CA
                if queue_ca is None:
                    container["env"].remove(variable)
                else:
                    variable["value"] = queue_ca


def without_revision(job: str) -> str:
    """The migration Job's name without helm's revision and the digest of what it does."""
    plain, found = re.subn(r"-1-[0-9a-f]{8}$", "", job)
    assert found == 1, job
    return plain


def registering_job(objects: Iterable[Manifest], name: str, kept_seconds: int) -> Manifest:
    """What the worker of a pool whose model is a file does before it starts. Its pods are not the pool's."""
    [worker] = [
        one for one in objects if one["kind"] == "Deployment" and "wharfinger/pool" in one["metadata"]["labels"]
    ]
    pod = worker["spec"]["template"]
    labels = {key: value for key, value in pod["metadata"]["labels"].items() if key != "wharfinger/pool"}
    spec: Manifest = pod["spec"]
    waiting, registering = spec["initContainers"]
    left_out = ("initContainers", "containers", "volumes", "terminationGracePeriodSeconds", "topologySpreadConstraints")
    mounted = {mount["name"] for container in (waiting, registering) for mount in container["volumeMounts"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": 1800,
            "ttlSecondsAfterFinished": kept_seconds,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **{key: value for key, value in spec.items() if key not in left_out},
                    "restartPolicy": "Never",
                    "initContainers": [waiting],
                    "containers": [registering],
                    "volumes": [volume for volume in spec["volumes"] if volume["name"] in mounted],
                },
            },
        },
    }


def dump(document: Any) -> str:
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=4096, allow_unicode=True)
    return text


def _plain(manifest: Manifest) -> Manifest:
    """Without helm's labels and annotations, wherever metadata stand."""
    stack: list[Any] = [manifest]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            stack.extend(node.values())
            for kind in ("labels", "annotations"):
                marks = node.get(kind)
                if isinstance(marks, dict):
                    for key in [key for key in marks if "helm.sh/" in key or key == "app.kubernetes.io/managed-by"]:
                        del marks[key]
                    if not marks:
                        del node[kind]
    return manifest


class _Dumper(yaml.SafeDumper):
    """Lists indented below their key, no anchors, and texts of several lines as such."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
