"""What a cluster with restricted rules asks of objects, read from the objects."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

Manifest = dict[str, Any]

RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def pods(objects: Iterable[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(kind/name, pod spec) of everything that makes pods."""
    for one in objects:
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, one["spec"]["template"]["spec"]
        elif one["kind"] == "CronJob":
            yield name, one["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        elif one["kind"] == "Pod":
            yield name, one["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def breaches(pod: Manifest) -> list[str]:
    """Where a pod asks for more than OpenShift's restricted-v2 and the restricted Pod Security Standard give: both
    give a uid and a group of their own choice, and writing nowhere but in volumes."""
    found = []
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        found.append("runAsNonRoot")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("seccompProfile")
    found += [
        key
        for key in ("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups", "seLinuxOptions", "sysctls")
        if key in security
    ]
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [
        f"volume {volume['name']}"
        for volume in pod.get("volumes", [])
        if not set(volume) - {"name"} <= RESTRICTED_VOLUMES
    ]
    if pod.get("automountServiceAccountToken") is not False:
        found.append("automountServiceAccountToken")
    for container in containers(pod):
        own = container.get("securityContext", {})
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        found += [f"{container['name']}: {key}" for key, value in wanted.items() if own.get(key) != value]
        found += [f"{container['name']}: {key}" for key in ("runAsUser", "privileged", "procMount") if key in own]
        found += [f"{container['name']}: hostPort" for port in container.get("ports", []) if "hostPort" in port]
        if not {"requests", "limits"} <= set(container.get("resources", {})):
            found.append(f"{container['name']}: resources")
    return found


def environment(container: Manifest) -> dict[str, Manifest]:
    """Name -> entry; a name that stands twice is a mistake."""
    entries = {entry["name"]: entry for entry in container.get("env", [])}
    assert len(entries) == len(container.get("env", [])), f"{container['name']} has a variable twice"
    return entries


def quantity(text: str | int) -> float:
    """CPUs or bytes, as Kubernetes writes them."""
    found = re.fullmatch(r"([0-9.]+)(m|[KMGT]i)?", str(text))
    assert found is not None, text
    number, unit = found.groups()
    return float(number) * {None: 1.0, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]
