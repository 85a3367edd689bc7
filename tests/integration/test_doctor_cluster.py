"""`wharf doctor --cluster`: what it finds in a namespace, and what two pods find on a volume."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from broker.kubernetes import Kubernetes
from standalone import kubernetes_job
from standalone.doctor import two_pods
from standalone.doctor.cluster import RIGHTS, look_at_cluster
from standalone.doctor.finding import Finding
from tests.conftest import Installation
from tests.e2e.service import clean_environment
from tests.support import kubernetes_api as fake
from tests.support.kubernetes_api import KubernetesApi, kubernetes_api

ALL = {(verb, "/".join(filter(None, (resource, sub)))) for verb, resource, _, sub in RIGHTS}


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with kubernetes_api(rights=set(ALL)) as api:
        yield api


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_job, "POLL_SECONDS", 0.02)


def look(api: KubernetesApi, folder: Path) -> list[Finding]:
    return list(look_at_cluster(Kubernetes.connect(api.kubeconfig(folder)), None, lambda _: None))


def of(findings: list[Finding], subject: str) -> list[Finding]:
    return [finding for finding in findings if finding.subject == subject]


def test_missing_rights_are_named_with_who_can_give_them(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights -= {("create", "jobs"), ("get", "pods/log")}
    found = look(api, tmp_path)
    assert [finding.detail for finding in of(found, "rights")] == [
        "this login may not create jobs in ml",
        "this login may not get pods/log in ml",
    ]
    assert "cluster.operators" in of(found, "rights")[0].advice
    [untried] = of(found, "two pods")
    assert untried.state == "warning"
    assert api.objects["jobs"] == {}


def test_keda_and_prometheus_are_found_by_the_kinds_that_they_bring(api: KubernetesApi, tmp_path: Path) -> None:
    api.groups = {"apps", "keda.sh"}
    api.rights |= {("create", "scaledobjects"), ("create", "triggerauthentications")}
    keda, prometheus = of(look(api, tmp_path), "cluster")
    assert "KEDA is there: autoscaling.enabled may be set" in keda.detail
    assert "the Prometheus operator is not there" in prometheus.detail


def test_kinds_that_a_projects_admin_may_not_make_are_told_before_helm_is_refused(
    api: KubernetesApi, tmp_path: Path
) -> None:
    api.groups = {"keda.sh", "monitoring.coreos.com"}
    api.rights |= {("create", "scaledobjects"), ("create", "servicemonitors")}
    keda, prometheus = of(look(api, tmp_path), "cluster")
    assert (keda.state, keda.detail.rpartition(" ")[2]) == ("warning", "triggerauthentications")
    assert "may not create podmonitors, prometheusrules" in prometheus.detail


def test_pods_that_are_not_ready_are_named(api: KubernetesApi, tmp_path: Path) -> None:
    api.put("pods", fake.pod("b-1", "broker"))
    api.put("pods", fake.pod("r-1", "relay", state={"waiting": {"reason": "CrashLoopBackOff"}}))
    api.put("pods", fake.pod("w-1", "worker"))
    api.put("pods", fake.pod("w-2", "worker", state={"waiting": {}}))
    found = look(api, tmp_path)
    [broker], [relay], [worker] = of(found, "broker"), of(found, "relay"), of(found, "worker")
    assert (broker.state, broker.advice) == ("ok", "")
    assert (relay.state, relay.detail) == ("fault", "0 of 1 relay pods are ready")
    assert "RabbitMQ answers" in relay.advice
    assert (worker.state, worker.advice.split()[-1]) == ("warning", "w-2")


class Cluster:
    """Runs Jobs as processes here, each on a node of its own, with the URL that its kind of pod has."""

    def __init__(self, installation: Installation, **roles: str) -> None:
        self._installation = installation
        self._roles = roles
        self.started: list[fake.Object] = []

    def run(self, api: KubernetesApi, job: fake.Object) -> None:
        self.started.append(job)
        pod = fake.start_pod(api, job)
        pod["spec"]["nodeName"] = f"node-{len(self.started)}"
        fake.set_state(api, pod, "running")
        [container] = job["spec"]["template"]["spec"]["containers"]
        part = container["args"][-1].partition(":")[0]
        reach = {"WHARF_DATABASE_URL": self._installation.url(self._roles.get(part, "wharf_cleanup"))}
        if part in ("write", "read"):
            reach["WHARF_VOLUME"] = str(self._installation.volume)
        command = [sys.executable, "-m", "wharfinger", *container["args"]]
        ended = subprocess.run(command, env=clean_environment(reach), capture_output=True, text=True, timeout=60)
        with api.lock:
            api.logs[pod["metadata"]["name"]] = (ended.stdout + ended.stderr).splitlines()
        fake.set_state(api, pod, "terminated", exitCode=ended.returncode)
        fake.end_job(api, job, "Complete" if ended.returncode == 0 else "Failed")


def test_two_jobs_try_the_volume_and_are_taken_away(
    api: KubernetesApi, installation: Installation, tmp_path: Path
) -> None:
    cluster = Cluster(installation)
    api.run = cluster.run
    api.put("cronjobs", fake.cron_job())
    found = look(api, tmp_path)
    tried = of(found, "two pods")
    assert [finding.state for finding in tried] == ["ok"] * 3, tried
    assert "seen by the other pod" in tried[0].detail
    assert "had all their bytes" in tried[1].detail
    assert tried[2].detail == "they ran on node-1 and node-2"
    [answered] = of(found, "database")  # what both found is told once
    assert "answers wharf_cleanup" in answered.detail
    assert len(of(found, "clock")) == 2  # the database's and the file server's
    assert api.objects["jobs"] == api.objects["pods"] == {}
    assert list((installation.volume / "staging").glob("doctor*")) == []
    [mark] = {each["spec"]["template"]["metadata"]["labels"]["wharfinger/apart"] for each in cluster.started}
    for job in cluster.started:
        assert job["spec"]["backoffLimit"] == 0
        # Where the doctor is killed, the cluster takes them away.
        assert job["spec"]["activeDeadlineSeconds"] + job["spec"]["ttlSecondsAfterFinished"] <= 1800
        assert not any(owner.get("controller") for owner in job["metadata"]["ownerReferences"])
        [term] = job["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"][
            "preferredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == {"wharfinger/apart": mark}


def test_each_process_is_tried_from_a_pod_of_its_own_kind(
    api: KubernetesApi, installation: Installation, tmp_path: Path
) -> None:
    cluster = Cluster(installation, broker="wharf_api", relay="wharf_relay", worker="wharf_api")
    api.run = cluster.run
    api.put("cronjobs", fake.cron_job())
    for component in ("broker", "relay", "worker"):
        api.put("deployments", fake.deployment(f"wharf-{component}", 1, component, env={"OF": component}))
    api.put("deployments", fake.deployment("wharf-worker-2", 1))
    other = {"app.kubernetes.io/instance": "other"}
    api.put("deployments", fake.deployment("a-relay", 1, "relay", env={"OF": "other"}, labels=other))
    found = look(api, tmp_path)
    databases = {finding.detail.partition(":")[0]: finding for finding in of(found, "database")}
    assert (databases["from a broker's pod"].state, databases["from a relay's pod"].state) == ("ok", "ok")
    assert "answers wharf_relay" in databases["from a relay's pod"].detail
    wrong = databases["from a worker's pod"]
    assert (wrong.state, "needs wharf_worker and no other" in wrong.detail) == ("fault", True)
    assert "from a broker's pod: no token" in " ".join(finding.detail for finding in of(found, "rights"))
    pods = [job["spec"]["template"] for job in cluster.started]
    doctors = [pod for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "doctor"]
    given = [variable["value"] for pod in doctors for variable in pod["spec"]["containers"][0]["env"]]
    assert sorted(given) == ["broker", "relay", "worker"]
    assert api.objects["jobs"] == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_doctor_that_is_asked_to_end_takes_its_jobs_away(
    api: KubernetesApi, tmp_path: Path, number: signal.Signals
) -> None:
    begun = threading.Event()
    api.run = lambda _api, _job: begun.set()
    api.put("cronjobs", fake.cron_job())
    command = [sys.executable, "-m", "wharfinger", "doctor", "--cluster"]
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig(tmp_path))}
    # What a shell runs in the background ignores SIGINT, and hands that on.
    heeding = partial(signal.signal, number, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    doctor = subprocess.Popen(command, env=environment, preexec_fn=heeding, **pipes)
    try:
        assert begun.wait(30)
        while len(api.objects["jobs"]) < 2:
            time.sleep(0.02)
        doctor.send_signal(number)
        assert doctor.wait(30) != 0
    finally:
        doctor.kill()
        doctor.communicate()
    assert api.objects["jobs"] == {}


def test_a_pod_that_says_nothing_is_a_fault_and_its_job_goes_too(api: KubernetesApi, tmp_path: Path) -> None:
    def run(api: KubernetesApi, job: fake.Object) -> None:
        pod = fake.start_pod(api, job)
        api.logs[pod["metadata"]["name"]] = ["no such command: doctor"]
        fake.set_state(api, pod, "terminated", exitCode=2)
        fake.end_job(api, job, "Failed", "backoff limit")

    api.run = run
    api.put("cronjobs", fake.cron_job())
    silent, again, nodes = of(look(api, tmp_path), "two pods")
    assert [silent.state, again.state] == ["fault", "fault"]
    assert "no such command: doctor" in silent.detail
    assert (nodes.state, nodes.detail.split(":")[0]) == ("warning", "both ran on node-1")
    assert api.objects["jobs"] == {}


def test_a_pod_that_never_begins_is_waited_for_no_longer_than_two_pods_wait_for_each_other(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(api: KubernetesApi, job: fake.Object) -> None:
        api.put("events", fake.warning("Job", job["metadata"]["name"], "violates PodSecurity"))

    monkeypatch.setattr(two_pods, "MEET_SECONDS", 0.5)
    api.run = refuse
    api.put("cronjobs", fake.cron_job())
    silent, *_ = of(look(api, tmp_path), "two pods")
    assert silent.state == "fault"
    assert "has no pod yet: violates PodSecurity" in silent.detail
    assert api.objects["jobs"] == {}


def test_the_command_says_so_where_the_api_does_not_answer(tmp_path: Path) -> None:
    with kubernetes_api() as api:
        config = api.kubeconfig(tmp_path)
    command = [sys.executable, "-m", "wharfinger", "doctor", "--cluster", "--json"]
    environment = {**os.environ, "KUBECONFIG": str(config)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    [finding] = json.loads(ended.stdout)
    assert (finding["subject"], finding["state"]) == ("cluster", "fault")


# Two pods on one volume


def test_a_reader_that_gets_other_bytes_than_were_synced_says_so(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    place = two_pods._Place(tmp_path, "m")

    def write_badly() -> None:
        for number in range(two_pods.ROUNDS):
            whole = two_pods._content("m", number)
            place.publish(f"{number}", whole[:100] if number == 2 else whole)
            while not place.name(f"{number}.seen").exists():
                time.sleep(0.01)

    writer = threading.Thread(target=write_badly)
    writer.start()
    [finding] = two_pods.read(tmp_path, "m")
    writer.join()
    assert (finding.state, finding.detail[:6]) == ("fault", "1 of 5")


def test_a_pod_that_never_comes_is_a_fault_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    [alone] = two_pods.write(tmp_path, "m", meet_seconds=0.1)
    assert alone.state == "fault"
    assert "ReadWriteMany" in alone.advice
    assert list((tmp_path / "staging").iterdir()) == []


def test_files_that_the_other_pod_never_sees_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_pods, "SEEN_SECONDS", 0.1)
    (tmp_path / "staging").mkdir()
    two_pods._Place(tmp_path, "m").publish("reader", b"here")
    [unseen] = two_pods.write(tmp_path, "m")
    assert (unseen.state, "lookupcache" in unseen.advice) == ("fault", True)
    assert list((tmp_path / "staging").iterdir()) == []
