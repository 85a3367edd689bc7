"""What --in-cluster and `wharf doctor --cluster` start: a Job made from a CronJob, and its log as it comes."""

import secrets
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from broker.kubernetes import COMPONENT, INSTANCE, OURS, Kubernetes, KubernetesError, Object
from custody.errors import StartError

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
"""With an API that does not answer, as while it is upgraded."""

MOST_NAMES = 3
APART = "wharfinger/apart"
Say = Callable[[str], None]


def cron_job(kubernetes: Kubernetes, component: str, release: str | None) -> Object:
    """The CronJob of this release, or the only one in the namespace.

    Raises `StartError` where there is none or more than one, `KubernetesError` where they may not be seen."""
    selector = f"{OURS},{COMPONENT}={component}" + (f",{INSTANCE}={release}" if release else "")
    found = kubernetes.cron_jobs(selector)
    if len(found) == 1:
        return found[0]
    if not found:
        of = f" of the release {release}" if release else ""
        raise StartError(
            f"the namespace {kubernetes.namespace} has no {component} CronJob{of}. Name another with --namespace, or "
            f"set {component}.enabled in the chart's values."
        )
    releases = sorted({each["metadata"]["labels"].get(INSTANCE, "?") for each in found})
    raise StartError(f"the namespace {kubernetes.namespace} has several releases: name one with --release: {releases}")


def start(
    kubernetes: Kubernetes,
    cron_job: Object,
    arguments: Sequence[str],
    *,
    instead: bool = False,
    apart: str | None = None,
) -> str:
    """The name of a new Job that does what the CronJob does, with `arguments` added to its command's, or `instead` of
    them. Jobs of the same `apart` run on different nodes, where there are some."""
    for attempt in range(1, MOST_NAMES + 1):
        job = _job(cron_job, f"{cron_job['metadata']['name'][:46]}-now-{secrets.token_hex(3)}", arguments, instead)
        if apart is not None:
            _keep_apart(job["spec"]["template"], apart)
        try:
            return str(kubernetes.create_job(job)["metadata"]["name"])
        except KubernetesError as error:
            # Somebody else's Job has the name.
            if error.status != 409 or attempt == MOST_NAMES:
                raise
    raise AssertionError("unreachable")


def follow(kubernetes: Kubernetes, job: str, *, show: Say, tell: Say) -> bool:
    """Shows the lines of the Job's pods until it has ended, and tells why it waits. True: it succeeded. Raises
    `KubernetesError` where the API refuses, or has not answered for `PATIENCE_SECONDS`."""
    following = _Following(kubernetes, job, show, tell)
    answered = time.monotonic()
    while True:
        try:
            succeeded = following.step()
            answered = time.monotonic()
            if succeeded is not None:
                return succeeded
        except KubernetesError as error:
            if error.status is not None or time.monotonic() - answered > PATIENCE_SECONDS:
                raise
        time.sleep(POLL_SECONDS)


class _Following:
    def __init__(self, kubernetes: Kubernetes, job: str, show: Say, tell: Say) -> None:
        self._kubernetes = kubernetes
        self._job = job
        self._show = show
        self._tell = tell
        self._shown: dict[str, int] = {}
        self._read: set[str] = set()
        self._told: str | None = None

    def step(self) -> bool | None:
        """What is new. None: the Job has not ended."""
        # The Job before its pods: what has ended then has no line that is not there yet.
        conditions = self._kubernetes.job(self._job).get("status", {}).get("conditions", [])
        for pod in self._kubernetes.pods(f"batch.kubernetes.io/job-name={self._job}"):
            self._look_at(pod)
        for condition in conditions:
            if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
                if condition["type"] == "Failed":
                    self._tell(f"The Job {self._job} failed: {condition.get('message') or condition.get('reason')}")
                return bool(condition["type"] == "Complete")
        return None

    def _look_at(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        container = _container(pod["spec"])["name"]
        doing = _doing(pod, container)
        if doing in ("running", "terminated"):
            if name in self._read:
                return
            for line in self._kubernetes.log(name, container, skip=self._shown.get(name, 0)):
                self._shown[name] = self._shown.get(name, 0) + 1
                self._show(line)
            if doing == "terminated":
                self._read.add(name)
        elif doing != self._told:
            self._told = doing
            self._tell(f"{name} waits: {doing}")


def _job(cron_job: Object, name: str, arguments: Sequence[str], instead: bool) -> Object:
    template = deepcopy(cron_job["spec"]["jobTemplate"])
    container = _container(template["spec"]["template"]["spec"])
    container["args"] = [*([] if instead else container.get("args", [])), *arguments]
    metadata = template.get("metadata", {})
    # As kubectl does: its CronJob takes it away in time, and no right on the CronJob's finalizers is needed.
    owner = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "name": cron_job["metadata"]["name"],
        "uid": cron_job["metadata"]["uid"],
        "controller": True,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": metadata.get("labels", {}),
            "annotations": {**metadata.get("annotations", {}), "cronjob.kubernetes.io/instantiate": "manual"},
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }


def _keep_apart(template: Any, mark: str) -> None:
    template.setdefault("metadata", {}).setdefault("labels", {})[APART] = mark
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {APART: mark}}}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    template["spec"]["affinity"] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _container(pod: Any) -> Any:
    """Ours is the first; a mesh's sidecars follow it."""
    return pod["containers"][0]


def _doing(pod: Object, container: str) -> str:
    """running, terminated, or why it is neither."""
    status = pod.get("status", {})
    for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        state = each.get("state", {})
        if each["name"] == container and ("running" in state or "terminated" in state):
            return str(next(iter(state)))
        waiting = state.get("waiting", {})
        if waiting.get("reason") not in (None, "PodInitializing"):
            return ": ".join(filter(None, (waiting["reason"], waiting.get("message"))))
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason')}: {condition.get('message')}"
    return str(status.get("phase", "Pending"))
