"""GET /v1/cluster: the pods of every pool beside what Postgres knows of them, or the latter alone."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from broker.kubernetes import COMPONENT, INSTANCE, OURS, POOL, Kubernetes, KubernetesError, Object
from custody.wire import Cluster, ClusterPod, ClusterPool, Pool, PoolState, Relay, Worker

GPU = "nvidia.com/gpu"
GOOD_SECONDS = 2.0
"""That an answer of the API stands, whoever asks."""

FAULT_SECONDS = 10.0
"""That a refusal stands, or a silence, which takes as long to find out."""

WITHOUT = "Shown is who reports to PostgreSQL. To see pods, set cluster.enabled in the chart's values."


@dataclass(frozen=True)
class Seen:
    """What the cluster holds of this release. `deployments` is None where they may not be seen; `notice` says why."""

    namespace: str
    pods: Sequence[Object]
    deployments: Sequence[Object] | None
    notice: str | None = None


class ClusterView:
    """Asks the Kubernetes API in a thread of its own, once for all who want to know at the same time."""

    def __init__(self, kubeconfig: Path | None, *, instance: str) -> None:
        """`instance`: this process's name, which is its pod's; pods of the same release are shown with it."""
        self._kubeconfig = kubeconfig
        self._instance = instance
        self._thread = ThreadPoolExecutor(1, "kubernetes")
        self._kubernetes: Kubernetes | None = None
        self._asking = asyncio.Lock()
        self._found: Seen | KubernetesError | None = None
        self._good_until = 0.0

    async def look(self, pools: Sequence[Pool], relays: Sequence[Relay]) -> Cluster:
        """Never fails for the cluster's sake: without it, it tells what `pools` and `relays` say, and why."""
        found = await self._lately_found()
        if isinstance(found, Seen):
            return _from_pods(found, pools, relays)
        return _from_heartbeats(pools, relays, f"{found}. {WITHOUT}")

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _lately_found(self) -> Seen | KubernetesError:
        async with self._asking:
            if self._found is None or time.monotonic() > self._good_until:
                try:
                    self._found = await asyncio.get_running_loop().run_in_executor(self._thread, self._see)
                except KubernetesError as error:
                    self._found = error
                good = GOOD_SECONDS if isinstance(self._found, Seen) else FAULT_SECONDS
                self._good_until = time.monotonic() + good
            return self._found

    def _see(self) -> Seen:
        if self._kubernetes is None:
            self._kubernetes = Kubernetes.connect(self._kubeconfig)
        kubernetes = self._kubernetes
        pods = kubernetes.pods(OURS)
        release = next((_labels(pod).get(INSTANCE) for pod in pods if _name(pod) == self._instance), None)
        pods = [pod for pod in pods if release in (None, _labels(pod).get(INSTANCE))]
        try:
            deployments = kubernetes.deployments(f"{OURS},{COMPONENT}=worker")
        except KubernetesError as error:
            return Seen(kubernetes.namespace, pods, None, f"{error}. Without it no desired replicas are known.")
        deployments = [each for each in deployments if release in (None, _labels(each).get(INSTANCE))]
        return Seen(kubernetes.namespace, pods, deployments)


def _from_pods(seen: Seen, pools: Sequence[Pool], relays: Sequence[Relay]) -> Cluster:
    beats = {worker.name: worker.seen_at for pool in pools for worker in pool.workers}
    beats |= {relay.name: relay.seen_at for relay in relays}
    by_component: dict[str, list[Object]] = {}
    for pod in sorted(seen.pods, key=_name):
        by_component.setdefault(_labels(pod).get(COMPONENT, ""), []).append(pod)
    workers: dict[str, list[ClusterPod]] = {}
    for pod in by_component.get("worker", ()):
        workers.setdefault(_pool_of(pod, pod["spec"]), []).append(_pod(pod, beats))
    desired: dict[str, int] = {}
    for deployment in seen.deployments or ():
        pool = _pool_of(deployment, deployment["spec"]["template"]["spec"])
        desired[pool] = desired.get(pool, 0) + deployment["spec"].get("replicas", 1)
    known = {pool.name: pool for pool in pools}
    return Cluster(
        source="kubernetes",
        notice=seen.notice,
        namespace=seen.namespace,
        pools=[
            _pool(known.get(name) or _unregistered(name), desired.get(name), workers.get(name, []))
            for name in sorted({*known, *workers, *desired})
        ],
        brokers=[_pod(pod, beats) for pod in by_component.get("broker", ())],
        relays=[_pod(pod, beats) for pod in by_component.get("relay", ())],
    )


def _from_heartbeats(pools: Sequence[Pool], relays: Sequence[Relay], notice: str) -> Cluster:
    return Cluster(
        source="heartbeats",
        notice=notice,
        namespace=None,
        pools=[_pool(pool, None, [_by_heartbeat(worker) for worker in pool.workers]) for pool in pools],
        brokers=[],
        relays=[_by_heartbeat(relay) for relay in relays],
    )


def _by_heartbeat(process: Worker | Relay) -> ClusterPod:
    return ClusterPod(name=process.name, version=process.release, seen_at=process.seen_at)


def _unregistered(name: str) -> Pool:
    """Of a model whose first worker has not started yet."""
    return Pool(name=name, state=PoolState.ACTIVE, waiting=0, running=0, workers=[])


def _pool(pool: Pool, desired: int | None, pods: list[ClusterPod]) -> ClusterPool:
    return ClusterPool(
        name=pool.name,
        state=pool.state,
        waiting=pool.waiting,
        running=pool.running,
        desired_replicas=desired,
        pods=pods,
    )


def _pod(pod: Object, beats: Mapping[str, datetime]) -> ClusterPod:
    status = pod.get("status", {})
    containers = status.get("containerStatuses", [])
    return ClusterPod(
        name=_name(pod),
        phase=status.get("phase"),
        ready=bool(containers) and all(each["ready"] for each in containers),
        reason=_reason(pod),
        restarts=sum(each["restartCount"] for each in containers),
        node=pod["spec"].get("nodeName"),
        gpus=sum(_gpus(container) for container in pod["spec"]["containers"]),
        version=_version(pod["spec"]["containers"][0]["image"]),
        started_at=status.get("startTime"),
        seen_at=beats.get(_name(pod)),
    )


def _reason(pod: Object) -> str | None:
    """Why it is not at work, in Kubernetes' own word: Terminating, CrashLoopBackOff, Unschedulable, Evicted."""
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    status = pod.get("status", {})
    for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting: str | None = each.get("state", {}).get("waiting", {}).get("reason")
        if waiting and waiting != "PodInitializing":
            return waiting
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("reason", "Unschedulable"))
    reason: str | None = status.get("reason")
    return reason


def _pool_of(object: Object, pod: Object) -> str:
    """The model that its worker serves; where that is a file, the name that the chart registers it under."""
    for container in pod["containers"]:
        for variable in container.get("env", []):
            model = variable.get("value", "")
            if variable["name"] == "WHARF_MODEL" and model and "/" not in model:
                return str(model)
    return str(_labels(object).get(POOL, "unknown"))


def _gpus(container: Mapping[str, Any]) -> int:
    return int(container.get("resources", {}).get("limits", {}).get(GPU, 0))


def _version(image: str) -> str | None:
    """An image's tag, or its digest where it has none."""
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return tag or digest or None


def _name(object: Object) -> str:
    return str(object["metadata"]["name"])


def _labels(object: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = object["metadata"].get("labels", {})
    return labels
