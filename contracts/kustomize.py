"""The kustomize base and its components, made from the chart's objects."""

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from contracts.openshift import GPU_TOLERATION
from contracts.rendering import (
    CLAIM,
    GENERATED,
    STARTER_MODEL,
    VERSION,
    Manifest,
    chart,
    dump,
    make_authorities_optional,
    mark_settings,
    registering_job,
    without_revision,
)

BASE: Mapping[str, Any] = {
    "database": {
        "existingSecret": "wharfinger-database",
        "caSecret": "wharfinger-database-ca",
        "createLogins": True,
    },
    "queue": {"existingSecret": "wharfinger-queue", "caSecret": "wharfinger-queue-ca"},
    "adminKey": {"existingSecret": "wharfinger-admin-key"},
    "storage": {"claimName": CLAIM},
}
_POOL = {"name": "yolo11n", "model": "yolo11n"}
COMPONENTS: Mapping[str, Mapping[str, Any]] = {
    "autoscaling": {"poolDefaults": {"autoscaling": {"enabled": True}}},
    "digits": {"pools": [_POOL, {"name": "digits", "model": STARTER_MODEL}]},
    "evaluation": {"evaluation": {"enabled": True}},
    "gpu": {
        "pools": [
            _POOL,
            {
                "name": "yolo11n-gpu",
                "model": "yolo11n-gpu",
                "engine": "ultralytics",
                "gpus": 1,
                "tolerations": [GPU_TOLERATION],
                "resources": {"limits": {"memory": "8Gi"}},
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
KEPT_SECONDS = 600
"""Jobs cannot be changed: so long after it is done, one is in the way of another `apply` with other images."""
_EVALUATION_SECRET = re.compile(r"wharfinger-evaluation-(database|queue)")


def kustomize(folder: Path) -> dict[Path, str]:
    """Path -> text of every file below the folder's base/ and components/."""
    objects = chart("wharfinger", BASE)
    files = _base(folder / "base", objects)
    common = {_identity(one): one for one in _in_the_base(objects)}
    component = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
    for name, values in COMPONENTS.items():
        more = _in_the_base(chart("wharfinger", {**BASE, **values}))
        if name == "autoscaling":
            more = _without_authorities_for_keda(more)
        if name == "evaluation":
            more = [_with_the_base_s_secrets(one) for one in more if one["kind"] != "Secret"]
        changed = [one for one in more if common.get(_identity(one), one) != one]
        added = [one for one in more if _identity(one) not in common]
        patches = [_patch(one, common[_identity(one)]) for one in changed]
        files |= _folder(
            folder / "components" / name, added, {**component, **({"patches": patches} if patches else {})}
        )
    pool = {"name": "yolo11n", "model": "/models/yolo11n.onnx", "image": f"wharfinger-model:{VERSION}"}
    job = registering_job(chart("wharfinger", {**BASE, "pools": [pool]}), "wharfinger-model-yolo11n", KEPT_SECONDS)
    make_authorities_optional(job, None)
    return files | _folder(folder / "components" / "model", [job], component)


def _base(folder: Path, objects: list[Manifest]) -> dict[Path, str]:
    """The settings are kustomize's to generate: it names them by what they say, so that pods start anew with others."""
    settings = _settings(objects)
    generator = {
        "name": settings["metadata"]["name"],
        "literals": [f"{name}={value}" for name, value in settings["data"].items()],
        "options": {"labels": settings["metadata"]["labels"]},
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "configMapGenerator": [generator],
    }
    return _folder(folder, _in_the_base(objects), kustomization)


def _in_the_base(objects: Iterable[Manifest]) -> list[Manifest]:
    """Without the settings, which say WHARF_AMQP_CA_FILE where there are private authorities. A Job cannot be changed:
    a release's has its own name, no reference to settings that may change under it, and goes when it is done, so that
    the next `apply` makes a new one, of whatever image."""
    objects = list(objects)
    settings = _settings(objects)
    kept = []
    for one in objects:
        mark_settings(one, None)
        make_authorities_optional(one, None)
        if one["kind"] == "Job":
            job = copy.deepcopy(one)
            job["metadata"]["name"] = f"{without_revision(job['metadata']['name'])}-{VERSION.replace('.', '-')}"
            job["spec"]["ttlSecondsAfterFinished"] = KEPT_SECONDS
            [container] = job["spec"]["template"]["spec"]["containers"]
            del container["envFrom"]
            container["env"].append({"name": "WHARF_VOLUME", "value": settings["data"]["WHARF_VOLUME"]})
            kept.append(job)
        elif one is not settings:
            kept.append(one)
    return kept


def _settings(objects: Iterable[Manifest]) -> Manifest:
    [settings] = [one for one in objects if one["kind"] == "ConfigMap" and "WHARF_VOLUME" in one["data"]]
    return settings


def _without_authorities_for_keda(objects: Iterable[Manifest]) -> list[Manifest]:
    """KEDA takes no Secret that may be missing, and what it is told of TLS holds for amqp:// too."""
    kept = [one for one in objects if one["kind"] != "ConfigMap"]
    for one in kept:
        if one["kind"] == "TriggerAuthentication" and one["spec"].pop("configMapTargetRef", None):
            one["spec"]["secretTargetRef"] = [ref for ref in one["spec"]["secretTargetRef"] if ref["parameter"] != "ca"]
    return kept


def _with_the_base_s_secrets(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _with_the_base_s_secrets(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_the_base_s_secrets(one) for one in node]
    return _EVALUATION_SECRET.sub(r"wharfinger-\1", node) if isinstance(node, str) else node


def _folder(folder: Path, objects: list[Manifest], kustomization: Manifest) -> dict[Path, str]:
    """A file for each component, and kustomize's list of them."""
    components: dict[str, list[Manifest]] = {}
    for one in objects:
        components.setdefault(one["metadata"]["labels"]["app.kubernetes.io/component"], []).append(one)
    files = {
        folder / f"{name}.yaml": GENERATED + "---\n".join(dump(one) for one in components[name])
        for name in sorted(components)
    }
    resources = {"resources": [path.name for path in files]} if files else {}
    files[folder / "kustomization.yaml"] = GENERATED + dump({**kustomization, **resources})
    return files


def _patch(wanted: Manifest, former: Manifest) -> Manifest:
    """Kustomize's strategic merge of what a component changes of an object of the base."""
    head = {
        "apiVersion": wanted["apiVersion"],
        "kind": wanted["kind"],
        "metadata": {"name": wanted["metadata"]["name"]},
    }
    return {"patch": dump({**head, **_difference(wanted, former)})}


def _difference(wanted: Manifest, former: Manifest) -> Manifest:
    """What a strategic merge makes `wanted` of `former` with: null takes a field away. Lists are put in the former
    ones' place, as Kubernetes does it with those of NetworkPolicies."""
    changes: Manifest = dict.fromkeys(former.keys() - wanted.keys())
    for key, value in wanted.items():
        old = former.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if within := _difference(value, old):
                changes[key] = within
        elif value != old:
            changes[key] = value
    return changes


def _identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]
