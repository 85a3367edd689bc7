"""The pods of a namespace, from what a user applies: each as a kubelet would start it, probe it and end it."""

import io
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image

import starter_model
from contracts.helm import run
from tests.conftest import ROOT
from tests.e2e.service import until
from tests.images import rendering
from tests.images.node import Manifest, Node, Pod
from tests.images.podman import UID, Podman
from tests.support import kubernetes_api as fake
from tests.support.certificates import Certificates
from tests.support.kubernetes_api import NAMESPACE, KubernetesApi, kubernetes_api
from tests.support.openshift import process
from tests.support.shared import BUS, YOLO11N
from wharfinger import Client, Job

pytestmark = pytest.mark.timeout(2400)

DEPLOY = ROOT / "deploy"
MODEL, PICTURE = (YOLO11N, BUS) if YOLO11N.is_file() else (starter_model.MODEL, starter_model.PAGE)
SERVICE = "http://127.0.0.1:8000"
RIGHTS = {
    *(("list", kind) for kind in ("pods", "deployments", "cronjobs")),
    *(("create", "jobs"), ("get", "jobs"), ("get", "pods/log")),
}


@dataclass(frozen=True)
class Applied:
    """What a user has applied. `adding`: the Job that registers the model, where no pod does it itself."""

    objects: list[Manifest]
    claim: str
    model: str
    admin_key: str
    user: str | None
    adding: Manifest | None = None


@pytest.fixture
def model_image(podman: Podman, images: Mapping[str, str], tmp_path: Path) -> str:
    """As deploy/images/README.md says how to make one."""
    context = tmp_path / "image"
    context.mkdir()
    shutil.copy(MODEL, context / "yolo11n.onnx")
    lines = (f"FROM {images['worker-cpu']}", "COPY --chmod=0444 yolo11n.onnx /models/")
    (context / "Containerfile").write_text("\n".join(lines))
    podman("build", "--pull=never", "--tag", "localhost/wharfinger-model:tested", str(context))
    return "localhost/wharfinger-model:tested"


def chart(images: Mapping[str, str], model_image: str, folder: Path) -> Applied:
    """On Kubernetes, where images have their own users. The model is a file on the volume."""
    values = {
        # One machine has one port 8000, and no proxy of a Service.
        "broker": {"replicas": 1, "service": {"port": 8000}},
        "relay": {"replicas": 1},
        "pools": [{"name": "things", "model": "/srv/wharf/models/brought/yolo11n.onnx"}],
        "cluster": {"enabled": True},
    }
    return Applied(rendering.chart(images, folder, values), rendering.CLAIM, "things", rendering.ADMIN_KEY, None)


def template(images: Mapping[str, str], model_image: str, folder: Path) -> Applied:
    """On OpenShift, which gives each project uids of its own."""
    read = {name: yaml.safe_load((DEPLOY / "openshift" / f"{name}.yaml").read_text()) for name in ("template", "model")}
    wishes = {
        "BROKER_IMAGE": images["broker"],
        "WORKER_IMAGE": images["worker-cpu"],
        "STORAGE_CLASS_NAME": "nfs",
        "BROKER_REPLICAS": "1",
        "RELAY_REPLICAS": "1",
        "MODEL": "parcels",
    }
    [adding] = process(read["model"], {"MODEL": "parcels", "MODEL_FILE": "/models/yolo11n.onnx", "IMAGE": model_image})
    objects = process(read["template"], wishes)
    return Applied(objects, "ml-files-storage", "parcels", "wharfinger-admin-key", UID, adding)


def kustomization(images: Mapping[str, str], model_image: str, folder: Path) -> Applied:
    """With an overlay of the user's own, as deploy/README.md shows one."""
    ours = folder / "overlay"
    ours.mkdir()
    kustomize = Path(os.path.relpath((DEPLOY / "kustomize").resolve(), ours.resolve()))
    given = {f"wharfinger-{name}": image for name, image in images.items()} | {"wharfinger-model": model_image}
    named = [(name, *image.rsplit(":", 1)) for name, image in given.items()]
    overlay = {
        "resources": [str(kustomize / "overlays" / "dev")],
        "components": [str(kustomize / "components" / "model")],
        "images": [{"name": name, "newName": new, "newTag": tag} for name, new, tag in named],
    }
    (ours / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    key = {
        "kind": "Secret",
        "metadata": {"name": "wharfinger-admin-key"},
        "stringData": {"api-key": f"wharf_{'k' * 43}"},
    }
    objects = [*yaml.safe_load_all(run("kubectl", "kustomize", str(ours))), key]
    [adding] = [one for one in objects if one["kind"] == "Job" and "-model-" in one["metadata"]["name"]]
    return Applied(objects, "ml-files-storage", "yolo11n", "wharfinger-admin-key", UID, adding)


@pytest.mark.parametrize("applying", [chart, template, kustomization])
def test_the_pods_of_a_namespace_come_up_answer_clean_up_and_end_in_their_grace(
    podman: Podman,
    images: Mapping[str, str],
    model_image: str,
    secrets: list[Manifest],
    volume: Path,
    tmp_path: Path,
    applying: Callable[[Mapping[str, str], str, Path], Applied],
) -> None:
    applied = applying(images, model_image, tmp_path)
    certificates = Certificates(tmp_path / "certificates")
    pods = tmp_path / "pods"
    pods.mkdir()
    with (
        kubernetes_api(certificates.server, rights=RIGHTS) as api,
        ThreadPoolExecutor() as threads,
        Node(
            podman,
            pods,
            [*applied.objects, *secrets],
            claims={applied.claim: volume},
            user=applied.user,
            api=api,
            authority=certificates.authority.certificate,
        ) as node,
    ):
        api.run = lambda api, job: run_job(node, api, job)
        for kind in ("cleanup", "verify"):
            api.put("cronjobs", deepcopy(node.find("CronJob", kind)))

        # All at once, as they are applied: whoever needs the migration waits for it.
        starts = [threads.submit(node.start, node.find("Deployment", kind)) for kind in ("broker", "relay")]
        worker = node.find("Deployment", "worker", **{"wharfinger/pool": applied.model})
        if applied.adding:
            starts.append(threads.submit(node.start, worker))
        evicted = threads.submit(node.finish, node.find("CronJob", "verify"))
        until_they_wait(podman, node, [*starts, evicted])
        assert {pod.initializing for pod in node.pods} == {"wait-for-migration"}
        assert not any(start.done() for start in starts)
        [pod] = [pod for pod in node.pods if "verify" in pod.name]
        print(f"\n{pod.name} was evicted in {node.evict(pod):.1f} s")  # noqa: T201
        # By SIGTERM; SIGKILL, once the grace is over, would be 137.
        with pytest.raises(AssertionError, match=r"wait-for-migration .* ended with 143"):
            evicted.result()
        node.finish(node.find("Job", "migrate"))
        if applied.adding:
            node.finish(applied.adding)
        else:
            (volume / "models" / "brought").mkdir()
            shutil.copy(MODEL, volume / "models" / "brought")
            starts.append(threads.submit(node.start, worker))
        began = time.monotonic()
        broker, relay, working = (start.result() for start in starts)
        print(f"\n{applying.__name__}: ready {time.monotonic() - began:.1f} s later")  # noqa: T201

        key = node.secret(applied.admin_key)["api-key"].decode()
        with Client(SERVICE, api_key=key) as client:
            look_at(client.predict(PICTURE), volume, applied.user or "10001")
            see_the_cluster(api, node, key, (broker, relay, working), applied.model)
            for pod in (one for one in applied.objects if one["kind"] == "Pod"):
                print(node.finish(pod).logs["test"])  # noqa: T201
            # As in another project, to which the volume has moved: other uids, the same group.
            node.user = "1000680000"
            clean_up(client, node, volume)
        print(node.finish(node.find("CronJob", "verify")).logs["verify"])  # noqa: T201

        assert all(node.alive(pod) for pod in (broker, relay, working))
        for pod in (working, relay, broker):
            print(f"{pod.name} ended after {node.stop(pod):.1f} s")  # noqa: T201


def until_they_wait(podman: Podman, node: Node, starts: Sequence[Future[Pod]]) -> None:
    deadline = time.monotonic() + 60
    while len([pod for pod in node.pods if "waits_for_migration" in podman.log(pod.container)]) < len(starts):
        for start in starts:
            assert not start.done(), start.exception()
        assert time.monotonic() < deadline, [podman.log(pod.container) for pod in node.pods]
        time.sleep(0.2)


def run_job(node: Node, api: KubernetesApi, job: Manifest) -> None:
    """As the Job's controller and the kubelet do."""
    seen = fake.start_pod(api, job)
    fake.set_state(api, seen, "running")
    try:
        log, condition = node.finish(job).logs["cleanup"], "Complete"
    except AssertionError as error:
        log, condition = str(error), "Failed"
    with api.lock:
        api.logs[seen["metadata"]["name"]] = log.splitlines()
    fake.set_state(api, seen, "terminated", exitCode=int(condition == "Failed"))
    fake.end_job(api, job, condition)


def look_at(job: Job, volume: Path, user: str) -> None:
    assert job.results is not None
    [result] = job.results
    found = Counter(detection.label for detection in result.detections)
    print(f"{PICTURE.name}: {dict(found)}")  # noqa: T201
    if PICTURE == BUS:
        assert found["bus"] == 1
        assert found["person"] >= 3
    assert found
    [held] = blobs(volume)
    assert held.name == result.sha256
    assert (held.stat().st_uid, held.stat().st_gid) == (int(user), 0)


def see_the_cluster(api: KubernetesApi, node: Node, key: str, pods: tuple[Pod, ...], model: str) -> None:
    """What the broker sees by its own token, where its pod has one."""
    broker, relay, working = pods
    for pod in pods:
        state = {"name": pod.main["name"], "ready": True, "restartCount": 0, "state": {"running": {}}}
        status = {"phase": "Running", "startTime": "2026-11-30T07:00:00Z", "containerStatuses": [state]}
        labels = dict(pod.labels)
        api.put("pods", {"metadata": {"name": pod.name, "labels": labels}, "spec": pod.spec, "status": status})

    def cluster() -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{SERVICE}/v1/cluster", headers=headers, trust_env=False, timeout=30)

    answer = cluster()
    assert answer.status_code == 200, answer.text
    seen = answer.json()
    if not broker.spec["automountServiceAccountToken"]:
        assert seen["source"] != "kubernetes"
        return
    assert (seen["source"], seen["notice"], seen["namespace"]) == ("kubernetes", None, NAMESPACE)
    [pool] = seen["pools"]
    assert [pod["name"] for pod in pool["pods"]] == [working.name]
    # A worker may answer before its first heartbeat.
    until(lambda: cluster().json()["pools"][0]["pods"][0]["seen_at"], "the worker's heartbeat is told")
    assert [pod["name"] for pod in seen["relays"]] == [relay.name]
    assert [pod["name"] for pod in seen["brokers"]] == [broker.name]


def clean_up(client: Client, node: Node, volume: Path) -> None:
    """An operator's pod makes a Job from the CronJob, which takes an expired file off the volume."""
    before = set(blobs(volume))
    picture = io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(picture, "PNG")
    client.upload(picture.getvalue(), expires_in=1)
    [new] = set(blobs(volume)) - before
    time.sleep(1.5)
    operator = deepcopy(node.find("Deployment", "broker"))
    operator["metadata"]["name"] = "operator"
    spec = operator["spec"]["template"]["spec"]
    spec["automountServiceAccountToken"] = True
    del spec["initContainers"]
    spec["containers"][0]["args"] = ["cleanup", "--in-cluster", "--now"]
    print(node.finish(operator).logs["broker"])  # noqa: T201
    assert not new.exists()
    assert before <= set(blobs(volume))


def blobs(volume: Path) -> list[Path]:
    return [path for path in (volume / "blobs").rglob("*") if path.is_file()]
