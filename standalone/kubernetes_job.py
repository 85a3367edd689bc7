"""What --in-cluster and `wharf doctor --cluster` start: a Job made from a CronJob, and its log as it comes."""

import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any, TypeAlias

import typer

from broker.kubernetes import COMPONENT, INSTANCE, OURS, Kubernetes, KubernetesError, Object
from custody.errors import StartError
from wharfinger.commands.output import say

IN_CLUSTER = " For a service in Kubernetes add --in-cluster."

InCluster: TypeAlias = Annotated[
    bool, typer.Option("--in-cluster", help="In Kubernetes: a Job made from the CronJob, and its log")
]
Namespace: TypeAlias = Annotated[
    str | None, typer.Option(help="In Kubernetes: where, if not where the login is at home")
]
Release: TypeAlias = Annotated[str | None, typer.Option(help="In Kubernetes: of several releases, this one")]

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
"""With an API that does not answer, as while it is upgraded."""

MOST_NAMES = 3
Say = Callable[[str], None]


def named_cluster(namespace: str | None) -> Kubernetes:
    """The one that somebody means who says --in-cluster, told to that person. Raises `KubernetesError`."""
    kubernetes = Kubernetes.connect(namespace=namespace, usual=True)
    say(f"This goes to {_place(kubernetes)}.")
    return kubernetes


def usual_cluster(component: str) -> Kubernetes | None:
    """The one that somebody means who says nothing, told to that person. None: there is none, or the pod's service
    account may make no Jobs in it, or this pod is one of `component` itself, which would make Jobs that make Jobs.
    Raises `KubernetesError` where the API does not say."""
    try:
        kubernetes = Kubernetes.connect(usual=True)
    except KubernetesError:
        return None
    if kubernetes.context is None:
        if not kubernetes.may("create", "jobs", "batch"):
            return None
        # A host's name ends after 63 characters, a pod's may go on.
        pods = kubernetes.pods(f"{OURS},{COMPONENT}={component}")
        if socket.gethostname() in {pod["metadata"]["name"][:63] for pod in pods}:
            return None
    say(f"No service is set up on this machine: this goes to {_place(kubernetes)}.")
    return kubernetes


def run(kubernetes: Kubernetes, component: str, release: str | None, wishes: Mapping[str, float | None]) -> None:
    """Has the cluster do what its CronJob does, with these options added to the command, and shows the log. `wishes`:
    True, False, a number, or None for one that nobody named. Ends this process with status 1 where the Job failed, or
    goes on unseen, as after Ctrl-C. Raises what `cron_job` and `start` raise."""
    arguments = []
    for option, wish in wishes.items():
        if wish is True:
            arguments.append(option)
        elif wish is not None and wish is not False:
            arguments += [option, str(wish).removesuffix(".0")]
    found = deepcopy(cron_job(kubernetes, component, release))
    if seconds := wishes.get("--max-seconds"):
        # As the chart reckons it: what is in hand by then is finished, and the pod has to start.
        spec = found["spec"]["jobTemplate"]["spec"]
        if "activeDeadlineSeconds" in spec:
            spec["activeDeadlineSeconds"] = max(spec["activeDeadlineSeconds"], int(2 * seconds + 600))
    name = start(kubernetes, found, arguments)
    say(f"The Job {name} runs in {kubernetes.namespace}.")
    try:
        succeeded = follow(kubernetes, name, show=typer.echo, tell=say)
    except (KubernetesError, KeyboardInterrupt) as error:
        said = f"{error} " if isinstance(error, KubernetesError) else ""
        sys.exit(f"{said}The Job goes on: kubectl --namespace {kubernetes.namespace} logs --follow job/{name}")
    if not succeeded:
        sys.exit(1)


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


def start(kubernetes: Kubernetes, cron_job: Object, arguments: Sequence[str]) -> str:
    """The name of a new Job that does what the CronJob does, with `arguments` added to its command's."""
    template = deepcopy(cron_job["spec"]["jobTemplate"])
    container = container_of(template["spec"]["template"]["spec"])
    container["args"] = [*container.get("args", []), *arguments]
    for attempt in range(1, MOST_NAMES + 1):
        name = f"{cron_job['metadata']['name'][:46]}-now-{secrets.token_hex(3)}"
        try:
            create(kubernetes, cron_job, template, name)
        except KubernetesError as error:
            # Somebody else's Job has the name.
            if error.status != 409 or attempt == MOST_NAMES:
                raise
        else:
            return name
    raise AssertionError("unreachable")


def create(kubernetes: Kubernetes, cron_job: Object, template: Object, name: str) -> None:
    """A Job of this template, which goes when the CronJob goes."""
    metadata = template.get("metadata", {})
    # Not as its controller, which kubectl makes it: the CronJob would count it in its history, and could delete it in
    # the moment in which it ends, before its log is read. Deleted it is by its own ttlSecondsAfterFinished.
    owner = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "name": cron_job["metadata"]["name"],
        "uid": cron_job["metadata"]["uid"],
    }
    job = {
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
    kubernetes.create_job(job)


def follow(kubernetes: Kubernetes, job: str, *, show: Say, tell: Say, begin_by: float | None = None) -> bool:
    """Shows the lines of the Job's pods until it has ended, and tells why it waits. True: it succeeded. `begin_by`:
    when, on the monotonic clock, one that has not begun counts as failed. Raises `KubernetesError` where the API
    refuses, or has not answered for `PATIENCE_SECONDS`."""
    following = _Following(kubernetes, job, show, tell)
    answered = time.monotonic()
    while True:
        try:
            succeeded = following.step()
            answered = time.monotonic()
            if succeeded is not None:
                return succeeded
            if begin_by is not None and answered > begin_by and not following.has_begun:
                tell(f"The Job {job} has not begun in time.")
                return False
        except KubernetesError as error:
            if not error.may_pass or time.monotonic() - answered > PATIENCE_SECONDS:
                raise
        time.sleep(POLL_SECONDS)


def container_of(pod: Any) -> Any:
    """Ours is the first; a mesh's sidecars follow it."""
    return pod["containers"][0]


def _place(kubernetes: Kubernetes) -> str:
    login = "this pod's service account" if kubernetes.context is None else f"the context {kubernetes.context}"
    return f"the namespace {kubernetes.namespace}, by {login}"


class _Following:
    def __init__(self, kubernetes: Kubernetes, job: str, show: Say, tell: Say) -> None:
        self._kubernetes = kubernetes
        self._job = job
        self._show = show
        self._tell = tell
        self._shown: dict[str, int] = {}
        self._read: set[str] = set()
        self._told: str | None = None
        self.has_begun = False

    def step(self) -> bool | None:
        """What is new. None: the Job has not ended."""
        # The Job before its pods: what has ended then has no line that is not there yet.
        try:
            conditions = self._kubernetes.job(self._job).get("status", {}).get("conditions", [])
        except KubernetesError as error:
            if error.status != 404:
                raise
            self._tell(f"The Job {self._job} is gone: somebody has deleted it.")
            return False
        pods = self._kubernetes.pods(f"batch.kubernetes.io/job-name={self._job}")
        for pod in pods:
            self._look_at(pod)
        for condition in conditions:
            if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
                if condition["type"] == "Failed":
                    self._tell(f"The Job {self._job} failed: {condition.get('message') or condition.get('reason')}")
                return bool(condition["type"] == "Complete")
        if not pods:
            # A quota, a limit range or a policy that refuses a pod is told to the Job alone.
            self._tell_anew(f"{self._job} has no pod yet", self._complaint("Job", self._job))
        return None

    def _look_at(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        container = container_of(pod["spec"])["name"]
        doing = _doing(pod, container)
        if doing not in ("running", "terminated"):
            self._tell_anew(f"{name} waits: {doing}", self._complaint("Pod", name))
            return
        self.has_begun = True
        if name in self._read:
            return
        try:
            for line in self._kubernetes.log(name, container, skip=self._shown.get(name, 0)):
                self._shown[name] = self._shown.get(name, 0) + 1
                self._show(line)
        except KubernetesError as error:
            # Gone since it was listed, as from a node that is drained, or not as far as it looked.
            if error.status not in (400, 404):
                raise
        else:
            if doing == "terminated":
                self._read.add(name)

    def _tell_anew(self, what: str, why: str) -> None:
        told = f"{what}: {why}" if why else what
        if told != self._told:
            self._told = told
            self._tell(told)

    def _complaint(self, kind: str, name: str) -> str:
        """The cluster's last word about it, if it has one that we may hear."""
        try:
            warnings = self._kubernetes.warnings(kind, name)
        except KubernetesError as error:
            if error.may_pass:
                raise
            return f"kubectl --namespace {self._kubernetes.namespace} describe {kind.lower()} {name} may say why"
        return warnings[-1] if warnings else ""


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
