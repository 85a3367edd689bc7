"""`wharf doctor --cluster`: what it finds in a namespace, and what two pods find on a volume."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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
    return list(look_at_cluster(Kubernetes.connect(api.kubeconfig(folder)), None))


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
    keda, prometheus = of(look(api, tmp_path), "cluster")
    assert "KEDA is there" in keda.detail
    assert "the Prometheus operator is not there" in prometheus.detail


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


def test_two_jobs_try_the_volume_and_are_taken_away(
    api: KubernetesApi, installation: Installation, tmp_path: Path
) -> None:
    started: list[fake.Object] = []

    def run(api: KubernetesApi, job: fake.Object) -> None:
        started.append(job)
        number = len(started)
        pod = fake.start_pod(api, job)
        pod["spec"]["nodeName"] = f"node-{number}"
        fake.set_state(api, pod, "running")
        [container] = job["spec"]["template"]["spec"]["containers"]
        reach = {"WHARF_DATABASE_URL": installation.url("wharf_cleanup"), "WHARF_VOLUME": str(installation.volume)}
        command = [sys.executable, "-m", "wharfinger", *container["args"]]
        ended = subprocess.run(command, env=clean_environment(reach), capture_output=True, text=True, timeout=60)
        with api.lock:
            api.logs[pod["metadata"]["name"]] = (ended.stdout + ended.stderr).splitlines()
        fake.set_state(api, pod, "terminated", exitCode=ended.returncode)
        fake.end_job(api, job, "Complete" if ended.returncode == 0 else "Failed")

    api.run = run
    api.put("cronjobs", fake.cron_job())
    found = look(api, tmp_path)
    tried = of(found, "two pods")
    assert [finding.state for finding in tried] == ["ok"] * 3, tried
    assert "seen by the other pod" in tried[0].detail
    assert "had all their bytes" in tried[1].detail
    assert tried[2].detail == "they ran on node-1 and node-2"
    assert {finding.detail for finding in of(found, "database")} == {
        finding.detail for finding in of(found, "database") if "answers wharf_cleanup" in finding.detail
    }
    assert len(of(found, "clock")) == 4  # the database's and the file server's, from both
    assert api.objects["jobs"] == {}
    assert list((installation.volume / "staging").glob("doctor*")) == []
    marks = {each["spec"]["template"]["metadata"]["labels"]["wharfinger/apart"] for each in started}
    assert len(marks) == 1


def test_a_pod_that_says_nothing_is_a_fault_and_its_job_goes_too(api: KubernetesApi, tmp_path: Path) -> None:
    def run(api: KubernetesApi, job: fake.Object) -> None:
        pod = fake.start_pod(api, job)
        api.logs[pod["metadata"]["name"]] = ["no such command: doctor"]
        fake.set_state(api, pod, "terminated", exitCode=2)
        fake.end_job(api, job, "Failed", "backoff limit")

    api.run = run
    api.put("cronjobs", fake.cron_job())
    *silent, nodes = of(look(api, tmp_path), "two pods")
    assert [finding.state for finding in silent] == ["fault", "fault"]
    assert "no such command: doctor" in silent[0].detail
    assert (nodes.state, nodes.detail.split(":")[0]) == ("warning", "both ran on node-1")
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
