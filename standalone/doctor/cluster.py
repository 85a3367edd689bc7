"""`wharf doctor --cluster`: rights, pods, what the cluster has installed, and the volume as two pods see it."""

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress

from broker.kubernetes import COMPONENT, INSTANCE, OURS, Kubernetes, KubernetesError, Object
from custody.errors import StartError
from standalone import kubernetes_job
from standalone.doctor.finding import Finding

RIGHTS = (
    ("list", "pods", "", ""),
    ("list", "deployments", "apps", ""),
    ("list", "cronjobs", "batch", ""),
    ("create", "jobs", "batch", ""),
    ("get", "jobs", "batch", ""),
    ("delete", "jobs", "batch", ""),
    ("get", "pods", "", "log"),
)
GRANT = "Name yourself in cluster.operators of the chart's values, or ask an admin of the namespace."
OPTIONAL = {
    "keda.sh": ("KEDA", "pools scale with autoscaling.enabled", "leave autoscaling off, or have it installed"),
    "monitoring.coreos.com": (
        "the Prometheus operator",
        "monitoring.serviceMonitor, podMonitor and rules may be on",
        "leave these off: scrape the pods' metrics ports by their annotations or a static job",
    ),
}
PARTS = {
    "broker": "They are ready once PostgreSQL lets them in as wharf_api and the volume answers",
    "relay": "They are ready once PostgreSQL lets them in as wharf_relay and RabbitMQ answers",
    "worker": "They are ready once PostgreSQL lets them in as wharf_worker and their model is warm",
}
"""What the readiness of each tells of database, queue and roles."""


def look_at_cluster(kubernetes: Kubernetes, release: str | None) -> Iterator[Finding]:
    """In the order in which a person would look. Raises `KubernetesError` where the API does not answer."""
    missing = [right for right in RIGHTS if not kubernetes.may(right[0], right[1], right[2], right[3])]
    yield from _rights(kubernetes, missing)
    yield from _installed(kubernetes)
    if ("list", "pods", "", "") not in missing:
        yield from _pods(kubernetes, release)
    if missing:
        yield Finding("two pods", "warning", "not tried: it needs all the rights above", GRANT)
    else:
        yield from _two_pods(kubernetes, release)


def _rights(kubernetes: Kubernetes, missing: list[tuple[str, str, str, str]]) -> Iterator[Finding]:
    for verb, resource, _, subresource in missing:
        what = "/".join(filter(None, (resource, subresource)))
        yield Finding("rights", "warning", f"this login may not {verb} {what} in {kubernetes.namespace}", GRANT)
    if not missing:
        yield Finding("rights", "ok", f"this login has all that the commands need in {kubernetes.namespace}")


def _installed(kubernetes: Kubernetes) -> Iterator[Finding]:
    groups = kubernetes.groups()
    for group, (name, then, otherwise) in OPTIONAL.items():
        if group in groups:
            yield Finding("cluster", "ok", f"{name} is there: {then}")
        else:
            yield Finding("cluster", "ok", f"{name} is not there: {otherwise}")


def _pods(kubernetes: Kubernetes, release: str | None) -> Iterator[Finding]:
    pods = kubernetes.pods(OURS + (f",{INSTANCE}={release}" if release else ""))
    for part, means in PARTS.items():
        mine = [pod for pod in pods if pod["metadata"]["labels"].get(COMPONENT) == part]
        ready = [pod for pod in mine if _is_ready(pod)]
        told = f"{len(ready)} of {len(mine)} {part} pods are ready"
        state = "ok" if len(ready) == len(mine) and mine else "warning" if ready or not mine else "fault"
        if not mine:
            advice = "Set its replicas, if there should be some." if part != "broker" else "Install the chart first."
        else:
            unready = ", ".join(pod["metadata"]["name"] for pod in mine if pod not in ready)
            advice = f"{means}. kubectl --namespace {kubernetes.namespace} logs {unready}" if unready else ""
        yield Finding(part, state, told, advice)


def _is_ready(pod: Object) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod.get("status", {}).get("conditions", [])
    )


def _two_pods(kubernetes: Kubernetes, release: str | None) -> Iterator[Finding]:
    """Two Jobs made from the CronJob of the cleanups, whose pods have the volume and a database role."""
    try:
        cron_job = kubernetes_job.cron_job(kubernetes, "cleanup", release)
    except StartError as error:
        yield Finding("two pods", "warning", f"not tried: {error}")
        return
    meeting = secrets.token_hex(6)
    made: list[str] = []
    try:
        for part in ("write", "read"):
            arguments = ["doctor", "--probe", f"{part}:{meeting}"]
            made.append(kubernetes_job.start(kubernetes, cron_job, arguments, instead=True, apart=meeting))
        for name in made:
            yield from _of_job(kubernetes, name)
        yield _nodes(kubernetes, made)
    finally:
        for name in made:
            with suppress(KubernetesError):
                kubernetes.delete_job(name)


def _of_job(kubernetes: Kubernetes, name: str) -> Iterator[Finding]:
    lines: list[str] = []
    told: list[str] = []
    kubernetes_job.follow(kubernetes, name, show=lines.append, tell=told.append)
    found = [line for line in lines if line.startswith('[{"subject"')]
    if not found:
        yield Finding(
            "two pods", "fault", f"the pod of {name} ended without an answer: {' '.join((*told, *lines[-3:]))}"
        )
        return
    for each in json.loads(found[-1]):
        yield Finding(**each)


def _nodes(kubernetes: Kubernetes, jobs: list[str]) -> Finding:
    pods = [pod for name in jobs for pod in kubernetes.pods(f"batch.kubernetes.io/job-name={name}")]
    nodes = sorted({pod["spec"].get("nodeName", "none") for pod in pods})
    if len(nodes) > 1:
        return Finding("two pods", "ok", f"they ran on {' and '.join(nodes)}")
    return Finding(
        "two pods", "warning", f"both ran on {nodes[0] if nodes else 'no node'}: nothing was shown of two machines",
        "Run it again when a second node has room, where there is one.",
    )  # fmt: skip
