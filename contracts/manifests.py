"""`python -m contracts.manifests`: what deploy/ holds of the chart, rendered anew, or compared with what is committed.

deploy/kustomize/base           the chart's objects, for Secrets that exist already; a file for each component
deploy/kustomize/components     what the chart adds to them where something more is enabled, and a Job for a model
deploy/openshift/template.yaml  the chart's objects as OpenShift's Template
deploy/openshift/model.yaml     a Job that registers a model, as the chart's workers do it before they start
"""

import copy
import difflib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from contracts.helm import ToolMissingError, run

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "wharfinger"
DEPLOY = ROOT / "deploy"
GENERATED = "# Rendered from charts/wharfinger by `make manifests`: change the chart, not this file.\n"

Manifest = dict[str, Any]

VERSION: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
CLAIM = "ml-files-storage"
SETTINGS_MARK = "wharfinger/settings"
"""The chart's annotation of pods that changes with the settings, so that pods start anew with others."""
BASE: Mapping[str, Any] = {
    "database": {"existingSecret": "wharfinger-database", "createLogins": True},
    "queue": {"existingSecret": "wharfinger-queue"},
    "adminKey": {"existingSecret": "wharfinger-admin-key"},
    "storage": {"claimName": CLAIM},
}
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
COMPONENTS: Mapping[str, Mapping[str, Any]] = {
    "autoscaling": {"poolDefaults": {"autoscaling": {"enabled": True}}},
    "gpu": {
        "pools": [
            {"name": "yolo11n", "model": "yolo11n"},
            {
                "name": "yolo11n-gpu",
                "model": "yolo11n-gpu",
                "engine": "ultralytics",
                "gpus": 1,
                "tolerations": [GPU_TOLERATION],
            },
        ]
    },
    "ingress": {"ingress": {"enabled": True, "host": "wharfinger.example.com", "tlsSecret": "wharfinger-tls"}},
    "monitoring": {
        "monitoring": {
            "serviceMonitor": {"enabled": True},
            "podMonitor": {"enabled": True},
            "rules": {"enabled": True},
            "dashboards": {"enabled": True},
        }
    },
}


@dataclass(frozen=True)
class Parameter:
    """One of the Template's. `stand_in` is what the chart is rendered with in its place: a number where the object
    wants a number, and nothing that occurs in the chart by itself."""

    name: str
    description: str
    stand_in: str | int | None
    value: str | None = None
    required: bool = False
    generated_from: str | None = None
    may_be_null: bool = False
    """Then it is all of a value, and `null` leaves the field out."""

    def declaration(self) -> Manifest:
        said: Manifest = {"name": self.name, "description": self.description}
        if self.generated_from is not None:
            said |= {"generate": "expression", "from": self.generated_from}
        if self.value is not None:
            said["value"] = self.value
        if self.required:
            said["required"] = True
        return said


PARAMETERS = (
    Parameter(
        "NAME", "Names of all objects begin with it; also the Route's name", "wharfinger-p-name", "wharfinger", True
    ),
    Parameter("BROKER_IMAGE", "Image of broker, relay, cleanup, verify and migrate", "p/broker:1", None, True),
    Parameter("WORKER_IMAGE", "Image of the workers on CPUs, with OpenVINO", "p/worker-cpu:1", None, True),
    Parameter(
        "GPU_WORKER_IMAGE",
        "Image of the workers on GPUs, with ultralytics; never pulled while GPU_WORKER_REPLICAS is 0",
        "p/worker-gpu:1",
        f"wharfinger-worker-gpu:{VERSION}",
        True,
    ),
    Parameter(
        "STORAGE_CLASS_NAME",
        "StorageClass of the claim ml-files-storage; it must offer ReadWriteMany (NFS, CephFS, EFS, Filestore)",
        "p-class",
        None,
        True,
    ),
    Parameter("STORAGE_SIZE", "Room for files and models, for example 500Gi", "41001Gi", "100Gi", True),
    Parameter(
        "DATABASE_SECRET",
        "Secret with PostgreSQL's URLs: owner-url, api-url, relay-url, worker-url, cleanup-url",
        "p-database-secret",
        "wharfinger-database",
        True,
    ),
    Parameter("DATABASE_PORT", "Port of PostgreSQL; pods may reach no other", 41002, "5432", True),
    Parameter(
        "QUEUE_SECRET",
        "Secret with RabbitMQ's URLs: relay-url, worker-url",
        "p-queue-secret",
        "wharfinger-queue",
        True,
    ),
    Parameter("QUEUE_PORT", "Port of RabbitMQ: 5671 for amqps, 5672 for amqp", 41003, "5671", True),
    Parameter(
        "ADMIN_API_KEY",
        "An admin's API key of the tenant `default`: wharf_ and at least 32 characters. A key that was admitted before "
        "stays valid; give it here to keep it in the Secret",
        None,
        generated_from="wharf_[a-zA-Z0-9]{43}",
        required=True,
    ),
    Parameter(
        "REVISION",
        "End of the migration Job's name, new each time: a Job cannot be changed",
        None,
        generated_from="[a-z0-9]{8}",
        required=True,
    ),
    Parameter(
        "HOST",
        "Host name of the Route; null: OpenShift chooses",
        "p-host.example.com",
        "null",
        required=True,
        may_be_null=True,
    ),
    Parameter("ROUTE_TIMEOUT", "Longest request through the Route, uploads included", "41004s", "3600s", True),
    Parameter("BROKER_REPLICAS", "How many brokers", 41005, "2", True),
    Parameter("RELAY_REPLICAS", "How many relays; a second takes over when one dies", 41006, "2", True),
    Parameter(
        "MODEL",
        "Registered name of the model of the workers on CPUs; part of object names, so of a-z, 0-9 and hyphens",
        "p-model-cpu",
        "yolo11n",
        True,
    ),
    Parameter("WORKER_REPLICAS", "How many workers on CPUs", 41007, "1", True),
    Parameter("WORKER_CPUS", "CPUs that each worker asks for", "41008", "2", True),
    Parameter("WORKER_MEMORY", "Most memory of each worker", "41009Mi", "4Gi", True),
    Parameter(
        "GPU_MODEL",
        "Registered name of the model of the workers on GPUs, with the engine ultralytics",
        "p-model-gpu",
        "yolo11n-gpu",
        True,
    ),
    Parameter("GPU_WORKER_REPLICAS", "How many workers on GPUs; 0: the cluster needs none", 41010, "0", True),
    Parameter("GPUS", "GPUs (nvidia.com/gpu) of each worker on GPUs", 41011, "1", True),
    Parameter("FILE_RETENTION_DAYS", "Days that a file is kept, unless it is pinned", "41012", "30", True),
    Parameter("JOB_RETENTION_DAYS", "Days that a job is kept after its end", "41013", "90", True),
    Parameter(
        "CLEANUP_SCHEDULE", "When expired files are removed, as cron writes it", "41 1 13 12 3", "*/15 * * * *", True
    ),
)


MODEL_PARAMETERS = (
    Parameter("NAME", "NAME of template.yaml", "wharfinger-p-name", "wharfinger", True),
    Parameter("MODEL", "The name to register it under, as MODEL or GPU_MODEL of template.yaml", "p-model", None, True),
    Parameter(
        "MODEL_FILE",
        "The model in the image: an .onnx, an OpenVINO .xml with its .bin, or for the engine ultralytics a .pt",
        "/p/model-file",
        None,
        True,
    ),
    Parameter("IMAGE", "An image made from the worker's that holds the model", "p/worker:1", None, True),
    Parameter("ENGINE", "openvino, or ultralytics", "p-engine:P", "openvino", True),
    Parameter("DATABASE_SECRET", "Secret with PostgreSQL's URLs", "p-database-secret", "wharfinger-database", True),
    Parameter(
        "REVISION",
        "End of the Job's name, new each time: a Job cannot be changed",
        None,
        generated_from="[a-z0-9]{8}",
        required=True,
    ),
)


def template_values(of: Callable[[str], str | int]) -> Manifest:
    """The chart's values for the Template's objects; `of` gives each parameter's."""
    return {
        "image": {"broker": of("BROKER_IMAGE"), "workerCpu": of("WORKER_IMAGE"), "workerGpu": of("GPU_WORKER_IMAGE")},
        "settings": {
            "FILE_RETENTION_DAYS": of("FILE_RETENTION_DAYS"),
            "JOB_RETENTION_DAYS": of("JOB_RETENTION_DAYS"),
        },
        "database": {
            "existingSecret": of("DATABASE_SECRET"),
            "port": of("DATABASE_PORT"),
            "createLogins": True,
        },
        "queue": {"existingSecret": of("QUEUE_SECRET"), "port": of("QUEUE_PORT")},
        "adminKey": {"existingSecret": f"{of('NAME')}-admin-key"},
        "storage": {"claimName": CLAIM, "className": of("STORAGE_CLASS_NAME"), "size": of("STORAGE_SIZE")},
        "broker": {"replicas": of("BROKER_REPLICAS")},
        "relay": {"replicas": of("RELAY_REPLICAS")},
        "pools": [
            {
                "name": of("MODEL"),
                "model": of("MODEL"),
                "replicas": of("WORKER_REPLICAS"),
                "resources": {
                    "requests": {"cpu": of("WORKER_CPUS")},
                    "limits": {"memory": of("WORKER_MEMORY")},
                },
            },
            {
                "name": of("GPU_MODEL"),
                "model": of("GPU_MODEL"),
                "engine": "ultralytics",
                "replicas": of("GPU_WORKER_REPLICAS"),
                "gpus": of("GPUS"),
                "tolerations": [GPU_TOLERATION],
            },
        ],
        "cleanup": {"schedule": of("CLEANUP_SCHEDULE")},
        "route": {"enabled": True, "host": of("HOST"), "timeout": of("ROUTE_TIMEOUT")},
    }


def manifests(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where something differs")] = False,
) -> None:
    """Renders what deploy/ holds of the chart, or checks that it is up to date."""
    try:
        wanted = rendered()
    except ToolMissingError as error:
        if not check or "CI" in os.environ:
            sys.exit(str(error))
        typer.echo(f"deploy/ was not compared with the chart: {error}", err=True)
        return
    folders = (DEPLOY / "kustomize" / "base", DEPLOY / "kustomize" / "components")
    superfluous = [path for folder in folders for path in folder.rglob("*.yaml") if path not in wanted]
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            old = path.read_text().splitlines() if path.exists() else []
            lines = difflib.unified_diff(old, wanted[path].splitlines(), str(path), "rendered", lineterm="")
            typer.echo("\n".join(list(lines)[:40]))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
            typer.echo(f"wrote {path.relative_to(ROOT)}")
    for path in superfluous:
        typer.echo(f"{path.relative_to(ROOT)}: no longer rendered")
        if not check:
            path.unlink()
    if check and (stale or superfluous):
        sys.exit("deploy/ differs from the chart: run `make manifests` and commit what it wrote.")


def rendered() -> dict[Path, str]:
    """Path -> text of every file that is made from the chart. Raises `ToolMissingError` without helm."""
    files: dict[Path, str] = {}
    base = [_mark_settings(one, None) for one in chart("wharfinger", BASE)]
    kustomize = DEPLOY / "kustomize"
    files |= _base(kustomize / "base", base)
    common = {_identity(one): one for one in base}
    component = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
    for name, values in COMPONENTS.items():
        more = [_mark_settings(one, None) for one in chart("wharfinger", {**BASE, **values})]
        changed = [one for one in more if common.get(_identity(one), one) != one]
        added = [one for one in more if _identity(one) not in common]
        files |= _folder(kustomize / "components" / name, added, {**component, **_patches(changed, common)})
    pool = {"name": "yolo11n", "model": "/models/yolo11n.onnx", "image": f"wharfinger-model:{VERSION}"}
    job = _registering_job(chart("wharfinger", {**BASE, "pools": [pool]}), "wharfinger-model-yolo11n")
    files |= _folder(kustomize / "components" / "model", [job], component)
    files[DEPLOY / "openshift" / "template.yaml"] = GENERATED + dump(template())
    files[DEPLOY / "openshift" / "model.yaml"] = GENERATED + dump(model_template())
    return files


def chart(release: str, values: Mapping[str, Any]) -> list[Manifest]:
    """The chart's objects without what is helm's own: its labels, its annotations, and the test."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        printed = run("helm", "template", release, str(CHART), "--values", file.name, "--namespace", "wharfinger")
    found = [one for one in yaml.load_all(printed, yaml.CSafeLoader) if one is not None]
    return [_plain(one) for one in found if "helm.sh/hook" not in one["metadata"].get("annotations", {})]


def template() -> Manifest:
    """OpenShift's Template: the chart's objects with parameters in place of their stand-ins."""
    stand_ins = {parameter.name: parameter.stand_in for parameter in PARAMETERS}

    def of(name: str) -> str | int:
        found = stand_ins[name]
        assert found is not None
        return found

    objects = chart(str(of("NAME")), template_values(of))
    for one in objects:
        _mark_settings(one, "${FILE_RETENTION_DAYS} ${JOB_RETENTION_DAYS}")
        if one["kind"] == "Job":
            one["metadata"]["name"] = _without_revision(one["metadata"]["name"]) + "-${REVISION}"
            one["spec"].setdefault("ttlSecondsAfterFinished", 86400)
    key: Manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{of('NAME')}-admin-key", "labels": _labels_of_the_key(objects)},
        "type": "Opaque",
        "stringData": {"api-key": "${ADMIN_API_KEY}"},
    }
    return {
        "apiVersion": "template.openshift.io/v1",
        "kind": "Template",
        "metadata": {
            "name": "wharfinger",
            "annotations": {
                "openshift.io/display-name": "Wharfinger",
                "description": "Takes custody of images and videos once and brings the model to them.\n\n"
                "Needs PostgreSQL, RabbitMQ, a Secret with the URLs of each, and a StorageClass with ReadWriteMany.",
                "tags": "inference,object-detection,yolo,openvino",
            },
        },
        "message": "Wharfinger comes up. Its address: oc get route ${NAME}. Its admin's API key: the Secret "
        "${NAME}-admin-key. Its workers wait until their models are registered: see deploy/README.md.",
        "parameters": [parameter.declaration() for parameter in PARAMETERS],
        "objects": [_parametrised(one, PARAMETERS) for one in [key, *objects]],
    }


def model_template() -> Manifest:
    """OpenShift's Template of a Job that registers a model."""
    stand_ins = {parameter.name: parameter.stand_in for parameter in MODEL_PARAMETERS}
    values = {
        **BASE,
        "database": {"existingSecret": stand_ins["DATABASE_SECRET"]},
        "pools": [
            {
                "name": stand_ins["MODEL"],
                "model": stand_ins["MODEL_FILE"],
                "engine": stand_ins["ENGINE"],
                "image": stand_ins["IMAGE"],
            }
        ],
    }
    job = _registering_job(chart(str(stand_ins["NAME"]), values), f"{stand_ins['NAME']}-model-${{REVISION}}")
    return {
        "apiVersion": "template.openshift.io/v1",
        "kind": "Template",
        "metadata": {
            "name": "wharfinger-model",
            "annotations": {
                "openshift.io/display-name": "A model of Wharfinger's",
                "description": "Puts a model that an image holds on the volume and registers it. Workers that wait for "
                "it start then.",
                "tags": "inference",
            },
        },
        "parameters": [parameter.declaration() for parameter in MODEL_PARAMETERS],
        "objects": [_parametrised(job, MODEL_PARAMETERS)],
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


def _registering_job(objects: Iterable[Manifest], name: str) -> Manifest:
    """What the worker of a pool whose model is a file does before it starts. Its pods are not the pool's."""
    [worker] = [
        one for one in objects if one["kind"] == "Deployment" and "wharfinger/pool" in one["metadata"]["labels"]
    ]
    pod = worker["spec"]["template"]
    labels = {key: value for key, value in pod["metadata"]["labels"].items() if key != "wharfinger/pool"}
    spec: Manifest = pod["spec"]
    waiting, registering = spec["initContainers"]
    kept = ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext", "volumes")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": 1800,
            "ttlSecondsAfterFinished": 86400,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **{key: spec[key] for key in kept},
                    "restartPolicy": "Never",
                    "initContainers": [waiting],
                    "containers": [registering],
                },
            },
        },
    }


def _base(folder: Path, objects: list[Manifest]) -> dict[Path, str]:
    """The settings are kustomize's to generate: it names them by what they say, so that pods start anew with others.
    A Job cannot be changed: a release's has its own name, and no reference to settings that may change under it."""
    [settings] = [one for one in objects if one["kind"] == "ConfigMap"]
    generator = {
        "name": settings["metadata"]["name"],
        "literals": [f"{name}={value}" for name, value in settings["data"].items()],
        "options": {"labels": settings["metadata"]["labels"]},
    }
    kept = []
    for one in objects:
        if one["kind"] == "Job":
            job = copy.deepcopy(one)
            job["metadata"]["name"] = f"{_without_revision(job['metadata']['name'])}-{VERSION.replace('.', '-')}"
            [container] = job["spec"]["template"]["spec"]["containers"]
            del container["envFrom"]
            container["env"].append({"name": "WHARF_VOLUME", "value": settings["data"]["WHARF_VOLUME"]})
            kept.append(job)
        elif one is not settings:
            kept.append(one)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "configMapGenerator": [generator],
    }
    return _folder(folder, kept, kustomization)


def _without_revision(job: str) -> str:
    """The migration Job's name without helm's revision and the digest of what it does."""
    return re.sub(r"-1-[0-9a-f]{8}$", "", job)


def pod_templates(manifest: Manifest) -> list[Manifest]:
    """Metadata and spec of the pods that this object makes."""
    match manifest["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            return [manifest["spec"]["template"]]
        case "CronJob":
            return [manifest["spec"]["jobTemplate"]["spec"]["template"]]
        case _:
            return []


def _mark_settings(manifest: Manifest, mark: str | None) -> Manifest:
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


def _labels_of_the_key(objects: Iterable[Manifest]) -> dict[str, str]:
    labels = next(dict(one["metadata"]["labels"]) for one in objects if one["kind"] == "ConfigMap")
    return labels | {"app.kubernetes.io/component": "secrets"}


def _folder(folder: Path, objects: list[Manifest], kustomization: Manifest) -> dict[Path, str]:
    """A file for each component, and kustomize's list of them."""
    components: dict[str, list[Manifest]] = {}
    for one in objects:
        components.setdefault(one["metadata"]["labels"]["app.kubernetes.io/component"], []).append(one)
    files = {
        folder / f"{name}.yaml": GENERATED + "---\n".join(dump(one) for one in components[name])
        for name in sorted(components)
    }
    files[folder / "kustomization.yaml"] = GENERATED + dump(
        {**kustomization, "resources": [path.name for path in files]}
    )
    return files


def _patches(changed: Iterable[Manifest], common: Mapping[tuple[str, str], Manifest]) -> Manifest:
    """What a component takes from objects of the base: the replicas of what KEDA scales, and nothing else."""
    patches = []
    for one in changed:
        former = copy.deepcopy(common[_identity(one)])
        del former["spec"]["replicas"]
        assert former == one, f"a component would have to change {_identity(one)}"
        target = {"kind": one["kind"], "name": one["metadata"]["name"]}
        patches.append({"target": target, "patch": "- {op: remove, path: /spec/replicas}\n"})
    return {"patches": patches} if patches else {}


def _identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _parametrised(node: Any, parameters: Iterable[Parameter]) -> Any:
    """With parameters in place of stand-ins: ${{NAME}} for a number or null, ${NAME} within a text."""
    if isinstance(node, dict):
        return {_parametrised(key, parameters): _parametrised(value, parameters) for key, value in node.items()}
    if isinstance(node, list):
        return [_parametrised(one, parameters) for one in node]
    for parameter in parameters:
        if (isinstance(node, int) or parameter.may_be_null) and node == parameter.stand_in:
            return f"${{{{{parameter.name}}}}}"
        if isinstance(node, str) and parameter.stand_in is not None:
            node = node.replace(str(parameter.stand_in), f"${{{parameter.name}}}")
    return node


class _Dumper(yaml.SafeDumper):
    """Lists indented below their key, no anchors, and texts of several lines as such."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


if __name__ == "__main__":
    typer.run(manifests)
