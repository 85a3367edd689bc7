"""`wharf doctor --cluster`: rights, pods, what the cluster has installed, and what is seen from inside: database and
queue as each process reaches them, and the volume as two pods see it."""

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from broker.kubernetes import COMPONENT, INSTANCE, OURS, Kubernetes, KubernetesError, Object
from custody.errors import StartError
from standalone import kubernetes_job
from standalone.doctor import probes, two_pods
from standalone.doctor.finding import Finding


class Right(NamedTuple):
    verb: str
    resource: str
    group: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {'/'.join(filter(None, (self.resource, self.subresource)))}"


EVENTS = Right("list", "events")
"""Without it all works, but why a pod does not come is not told."""

RIGHTS = (
    Right("list", "pods"),
    Right("list", "deployments", "apps"),
    Right("list", "cronjobs", "batch"),
    Right("create", "jobs", "batch"),
    Right("get", "jobs", "batch"),
    Right("delete", "jobs", "batch"),
    Right("get", "pods", "", "log"),
    EVENTS,
)
SHOWN = (Right("list", "pods"), Right("list", "deployments", "apps"))
"""What a broker needs for GET /v1/cluster."""

GRANT = "Name yourself in cluster.operators of the chart's values, or ask an admin of the namespace."


class Extra(NamedTuple):
    """What a cluster may have: the chart makes `kinds` of it where the values say so."""

    name: str
    kinds: tuple[str, ...]
    values: str
    otherwise: str


EXTRAS = {
    "keda.sh": Extra(
        "KEDA",
        ("scaledobjects", "triggerauthentications"),
        "autoscaling.enabled",
        "leave it off, or have KEDA installed",
    ),
    "monitoring.coreos.com": Extra(
        "the Prometheus operator",
        ("servicemonitors", "podmonitors", "prometheusrules"),
        "monitoring.serviceMonitor, podMonitor and rules",
        "leave these off, and scrape the pods' metrics ports by a job of yours",
    ),
}
PARTS = {
    "broker": "They are ready once PostgreSQL lets them in as wharf_api and the volume answers",
    "relay": "They are ready once PostgreSQL lets them in as wharf_relay and RabbitMQ answers",
    "worker": "They are ready once PostgreSQL lets them in as wharf_worker and their model is warm",
}
"""What the readiness of each tells of database, queue and roles."""


def look_at_cluster(kubernetes: Kubernetes, release: str | None, tell: kubernetes_job.Say) -> Iterator[Finding]:
    """In the order in which a person would look; `tell` hears what is waited for. Raises `KubernetesError` where the
    API does not answer."""
    missing = [right for right in RIGHTS if not kubernetes.may(*right)]
    yield from _rights(kubernetes, missing)
    yield from _installed(kubernetes)
    if RIGHTS[0] not in missing:
        yield from _pods(kubernetes, release)
    if {*missing} - {EVENTS}:
        yield Finding("two pods", "warning", "not tried: it needs the rights above", GRANT)
    else:
        yield from _from_inside(kubernetes, release, tell)


def _rights(kubernetes: Kubernetes, missing: list[Right]) -> Iterator[Finding]:
    for right in missing:
        yield Finding("rights", "warning", f"this login may not {right} in {kubernetes.namespace}", GRANT)
    if not missing:
        yield Finding("rights", "ok", f"this login has all that the commands need in {kubernetes.namespace}")


def _installed(kubernetes: Kubernetes) -> Iterator[Finding]:
    groups = kubernetes.groups()
    for group, extra in EXTRAS.items():
        if group not in groups:
            yield Finding("cluster", "ok", f"{extra.name} is not there: {extra.values}: {extra.otherwise}")
        elif forbidden := [kind for kind in extra.kinds if not kubernetes.may("create", kind, group)]:
            yield Finding(
                "cluster",
                "warning",
                f"{extra.name} is there, and this login may not create {', '.join(forbidden)}",
                f"Before you set {extra.values}, ask the cluster's admin for these rights in {kubernetes.namespace}.",
            )
        else:
            yield Finding("cluster", "ok", f"{extra.name} is there: {extra.values} may be set")


def _pods(kubernetes: Kubernetes, release: str | None) -> Iterator[Finding]:
    pods = kubernetes.pods(_ours(release))
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


def _from_inside(kubernetes: Kubernetes, release: str | None, tell: kubernetes_job.Say) -> Iterator[Finding]:
    """Jobs made from the CronJob of the cleanups, whose pods have the volume and a database role, and from Deployments,
    whose pods have the other roles and the queue. All at once; each is taken away again."""
    try:
        cron_job = kubernetes_job.cron_job(kubernetes, "cleanup", release)
    except StartError as error:
        yield Finding("two pods", "warning", f"not tried: {error}")
        return
    meeting = secrets.token_hex(6)
    wanted = {
        part: ("two pods", probes.of_volume(cron_job, ["doctor", "--probe", f"{part}:{meeting}"], apart=meeting))
        for part in ("write", "read")
    }
    for part, deployment in _processes(kubernetes, cron_job).items():
        wanted[part] = (part, probes.of_process(cron_job, deployment, ["doctor", "--probe", part]))
    begin_by = time.monotonic() + two_pods.MEET_SECONDS
    names = {part: f"{cron_job['metadata']['name'][:36]}-{part}-{meeting}" for part in wanted}
    try:
        for part, (_, template) in wanted.items():
            kubernetes_job.create(kubernetes, cron_job, template, names[part])
        told = set()
        for part, (subject, _) in wanted.items():
            for finding in _of_job(kubernetes, names[part], subject, tell, begin_by):
                if finding not in told:
                    told.add(finding)
                    yield finding
        yield _nodes(kubernetes, [names["write"], names["read"]])
    finally:
        # Also the one whose making was cut off: the API may have heard of it.
        for name in names.values():
            with suppress(KubernetesError):
                kubernetes.delete_job(name)


def _processes(kubernetes: Kubernetes, cron_job: Object) -> dict[str, Object]:
    """By part of the CronJob's release; of several pools, which have the same URLs, one."""
    found: dict[str, Object] = {}
    for deployment in kubernetes.deployments(_ours(cron_job["metadata"]["labels"].get(INSTANCE))):
        part = deployment["metadata"]["labels"].get(COMPONENT)
        if part in PARTS:
            found.setdefault(part, deployment)
    return {part: found[part] for part in PARTS if part in found}


def _of_job(
    kubernetes: Kubernetes, name: str, subject: str, tell: kubernetes_job.Say, begin_by: float
) -> Iterator[Finding]:
    lines: list[str] = []
    told: list[str] = []

    def hear(what: str) -> None:
        told.append(what)
        tell(what)

    kubernetes_job.follow(kubernetes, name, show=lines.append, tell=hear, begin_by=begin_by)
    found = [line for line in lines if line.startswith('[{"subject"')]
    if not found:
        yield Finding(
            subject, "fault", f"the pod of {name} ended without an answer: {' '.join((*told[-2:], *lines[-3:]))}",
            "What keeps it from starting keeps the service's own pods from it, too: they are made alike.",
        )  # fmt: skip
        return
    for each in json.loads(found[-1]):
        finding = Finding(**each)
        yield finding if subject == "two pods" else replace(finding, detail=f"from a {subject}'s pod: {finding.detail}")


def _nodes(kubernetes: Kubernetes, jobs: list[str]) -> Finding:
    pods = [pod for name in jobs for pod in kubernetes.pods(f"batch.kubernetes.io/job-name={name}")]
    nodes = sorted({pod["spec"].get("nodeName", "none") for pod in pods})
    if len(nodes) > 1:
        return Finding("two pods", "ok", f"they ran on {' and '.join(nodes)}")
    return Finding(
        "two pods", "warning", f"both ran on {nodes[0] if nodes else 'no node'}: nothing was shown of two machines",
        "Run it again when a second node has room, where there is one.",
    )  # fmt: skip


def _ours(release: str | None) -> str:
    return OURS + (f",{INSTANCE}={release}" if release else "")
