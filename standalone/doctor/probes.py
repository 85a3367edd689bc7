"""Jobs that look from inside the cluster: what a Job's template must be so that the namespace's own rules for a pod of
ours hold for it, and nothing of it stays behind."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from broker.kubernetes import COMPONENT, POOL, Object
from standalone.kubernetes_job import container_of

APART = "wharfinger/apart"
DOCTOR = "doctor"
"""Its component: no Service sends it requests, and the chart's network policies let it reach what processes do."""

LONGEST_SECONDS = 900
"""After which the cluster ends a probe whose doctor was killed."""

KEPT_SECONDS = 300
OF_ONE_THAT_SERVES = ("ports", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle")
OF_ONE_THAT_STAYS = (
    "initContainers", "topologySpreadConstraints", "terminationGracePeriodSeconds", "runtimeClassName",
)  # fmt: skip


def of_volume(cron_job: Object, arguments: Sequence[str], *, apart: str) -> Any:
    """As a run of the CronJob, on another node than the other pods of the same `apart`, where there is one."""
    template = deepcopy(cron_job["spec"]["jobTemplate"])
    pod = template["spec"]["template"]
    # What it would wait for is among what it is to find out.
    pod["spec"].pop("initContainers", None)
    container_of(pod["spec"])["args"] = [*arguments]
    pod.setdefault("metadata", {}).setdefault("labels", {})[APART] = apart
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {APART: apart}}}
    affinity = pod["spec"].setdefault("affinity", {}).setdefault("podAntiAffinity", {})
    wished = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
    wished.append({"weight": 100, "podAffinityTerm": term})
    return _ending(template)


def of_process(cron_job: Object, deployment: Object, arguments: Sequence[str]) -> Any:
    """As a pod of the Deployment, with its account, its URLs and where it may run, but without the volume, with the
    CronJob's image and resources, and for nobody to send requests to."""
    template = deepcopy(cron_job["spec"]["jobTemplate"])
    small = container_of(template["spec"]["template"]["spec"])
    pod = deepcopy(deployment["spec"]["template"])
    labels = pod["metadata"]["labels"]
    labels[COMPONENT] = DOCTOR
    labels.pop(POOL, None)
    spec = pod["spec"]
    for key in OF_ONE_THAT_STAYS:
        spec.pop(key, None)
    container = container_of(spec)
    for key in OF_ONE_THAT_SERVES:
        container.pop(key, None)
    container["args"] = [*arguments]
    container |= {key: small[key] for key in ("image", "imagePullPolicy", "resources") if key in small}
    claims = {volume["name"] for volume in spec.get("volumes", []) if "persistentVolumeClaim" in volume}
    spec["volumes"] = [volume for volume in spec.get("volumes", []) if volume["name"] not in claims]
    container["volumeMounts"] = [mount for mount in container.get("volumeMounts", []) if mount["name"] not in claims]
    spec["containers"] = [container]
    spec["restartPolicy"] = "Never"
    template["spec"]["template"] = pod
    return _ending(template)


def _ending(template: Any) -> Any:
    template["spec"] |= {
        "backoffLimit": 0,
        "activeDeadlineSeconds": LONGEST_SECONDS,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
    }
    return template
