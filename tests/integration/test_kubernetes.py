"""The Kubernetes API as we ask it: against one over HTTP that keeps objects and refuses as a real one does."""

import asyncio
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kubernetes import config

from broker.cluster import ClusterView
from broker.kubernetes import OURS, Kubernetes, KubernetesError
from custody.errors import StartError
from custody.wire import Cluster, Pool, PoolState, Relay, Worker
from standalone import kubernetes_job
from standalone.cleanup import cleanup
from standalone.verify import verify
from tests.support import kubernetes_api as fake
from tests.support.certificates import Certificates
from tests.support.kubernetes_api import KubernetesApi, kubernetes_api
from wharfinger import discovery

VIEW = {("list", "pods"), ("list", "deployments")}
OPERATE = {
    ("list", "cronjobs"), ("create", "jobs"), ("get", "jobs"),
    ("list", "pods"), ("get", "pods/log"), ("list", "events"),
}  # fmt: skip
NOW = datetime(2026, 11, 30, 8, tzinfo=UTC)
RELAY = Relay(name="wharf-relay-1", started_at=NOW, seen_at=NOW, living=True, fault=None, release="0.1.9")


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with kubernetes_api() as api:
        yield api


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_job, "POLL_SECONDS", 0.02)


def connect(api: KubernetesApi, folder: Path) -> Kubernetes:
    return Kubernetes.connect(api.kubeconfig(folder))


# GET /v1/cluster


def see(kubeconfig: Path | None, *pools: Pool, instance: str = "elsewhere") -> Cluster:
    view = ClusterView(kubeconfig, instance=instance)
    try:
        return asyncio.run(view.look(pools, [RELAY]))
    finally:
        view.close()


def pool(name: str, *workers: str) -> Pool:
    living = [
        Worker(name=each, engine="openvino", model_version=1, slots=1, release="0.2.0", seen_at=NOW) for each in workers
    ]
    return Pool(name=name, state=PoolState.ACTIVE, waiting=7, running=2, workers=living)


def test_pools_show_their_pods_beside_what_waits(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = VIEW
    env = {"WHARF_MODEL": "yolo11n"}
    api.put("pods", fake.pod("w-1", "worker", env=env, gpus=2, restarts=3))
    api.put("pods", fake.pod("w-2", "worker", env=env, state={"waiting": {"reason": "CrashLoopBackOff"}}))
    api.put("pods", fake.pod("wharf-relay-1", "relay", image="wharfinger-broker@sha256:ab"))
    api.put("pods", fake.pod("wharf-broker-1", "broker"))
    api.put("deployments", fake.deployment("wharf-worker-a", 3, env=env))
    seen = see(api.kubeconfig(tmp_path), pool("yolo11n", "w-1"), pool("unserved"))
    assert (seen.source, seen.notice, seen.namespace) == ("kubernetes", None, "ml")
    unserved, served = seen.pools
    assert (unserved.name, unserved.desired_replicas, unserved.pods) == ("unserved", None, [])
    assert (served.name, served.waiting, served.running, served.desired_replicas) == ("yolo11n", 7, 2, 3)
    well, ill = served.pods
    assert (well.name, well.ready, well.restarts, well.gpus, well.version) == ("w-1", True, 3, 2, "0.2.0")
    assert (well.seen_at, well.node, well.phase) == (NOW, "node-1", "Running")
    assert (ill.ready, ill.reason, ill.seen_at) == (False, "CrashLoopBackOff", None)
    [relay], [broker] = seen.relays, seen.brokers
    assert (relay.seen_at, relay.version) == (NOW, "sha256:ab")
    assert (broker.name, broker.seen_at) == ("wharf-broker-1", None)


def test_a_model_from_a_file_is_shown_under_the_pools_label(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = VIEW
    labels = {"wharfinger/pool": "digits"}
    env = {"WHARF_MODEL": "/models/d.onnx"}
    api.put("pods", fake.pod("w-1", "worker", env=env, labels=labels))
    api.put("deployments", fake.deployment("d", 1, env=env, labels=labels))
    [shown] = see(api.kubeconfig(tmp_path)).pools
    assert (shown.name, shown.desired_replicas, len(shown.pods)) == ("digits", 1, 1)


def test_a_broker_shows_its_own_release_alone(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = VIEW
    other = {"app.kubernetes.io/instance": "other"}
    api.put("pods", fake.pod("b-1", "broker"))
    api.put("pods", fake.pod("b-2", "broker", labels=other))
    api.put("deployments", fake.deployment("d", 1, env={"WHARF_MODEL": "m"}, labels=other))
    config = api.kubeconfig(tmp_path)
    mine = see(config, instance="b-1")
    assert ([each.name for each in mine.brokers], mine.pools) == (["b-1"], [])
    assert [each.name for each in see(config).brokers] == ["b-1", "b-2"]


def test_why_a_pod_is_not_at_work_is_told(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = VIEW
    unscheduled = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
    api.put("pods", fake.pod("a", "broker", status={"phase": "Pending", "containerStatuses": [], **unscheduled}))
    leaving = api.put("pods", fake.pod("b", "broker"))
    leaving["metadata"]["deletionTimestamp"] = "2026-11-30T08:00:00Z"
    api.put("pods", fake.pod("c", "broker", status={"phase": "Failed", "reason": "Evicted"}))
    told = [(each.ready, each.reason) for each in see(api.kubeconfig(tmp_path)).brokers]
    assert told == [(False, "Unschedulable"), (True, "Terminating"), (True, "Evicted")]


def test_without_rights_the_heartbeats_are_shown_and_why(api: KubernetesApi, tmp_path: Path) -> None:
    seen = see(api.kubeconfig(tmp_path), pool("yolo11n", "w-1"))
    assert (seen.source, seen.namespace, seen.brokers) == ("heartbeats", None, [])
    assert seen.notice is not None
    assert "403" in seen.notice
    assert "cluster.enabled" in seen.notice
    [shown] = seen.pools
    assert (shown.waiting, shown.desired_replicas) == (7, None)
    assert [(each.name, each.seen_at, each.restarts) for each in shown.pods] == [("w-1", NOW, None)]
    assert [each.seen_at for each in seen.relays] == [NOW]
    # In the middle of an upgrade both are seen.
    assert [each.version for each in (*shown.pods, *seen.relays)] == ["0.2.0", "0.1.9"]


def test_with_rights_on_pods_alone_only_the_replicas_are_missing(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = {("list", "pods")}
    api.put("pods", fake.pod("w-1", "worker", env={"WHARF_MODEL": "m"}))
    seen = see(api.kubeconfig(tmp_path))
    assert (seen.source, seen.pools[0].desired_replicas, len(seen.pools[0].pods)) == ("kubernetes", None, 1)
    assert "deployments is forbidden" in str(seen.notice)


def test_outside_of_a_cluster_nobody_is_asked() -> None:
    seen = see(None, pool("m"))
    assert seen.source == "heartbeats"
    assert "no service account's token" in str(seen.notice)


def test_a_dead_api_costs_the_pods_and_not_the_answer(tmp_path: Path) -> None:
    with kubernetes_api() as api:
        config = api.kubeconfig(tmp_path)
    assert "does not answer" in str(see(config).notice)


def test_many_who_ask_at_once_ask_the_api_once(api: KubernetesApi, tmp_path: Path) -> None:
    api.put("pods", fake.pod("b-1", "broker"))
    view = ClusterView(api.kubeconfig(tmp_path), instance="b-1")

    async def look(many: int) -> list[Cluster]:
        return await asyncio.gather(*(view.look([], []) for _ in range(many)))

    async def look_twice() -> tuple[list[Cluster], list[Cluster]]:
        return await look(20), await look(20)

    try:
        refused, again = asyncio.run(look_twice())
    finally:
        view.close()
    assert {each.source for each in (*refused, *again)} == {"heartbeats"}
    assert len(api.asked) == 1


def test_what_the_api_said_is_asked_anew_after_a_while(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.cluster.GOOD_SECONDS", 0)
    monkeypatch.setattr("broker.cluster.FAULT_SECONDS", 0)
    view = ClusterView(api.kubeconfig(tmp_path), instance="b-1")

    async def look() -> list[str]:
        first = await view.look([], [])
        api.rights = VIEW
        return [first.source, (await view.look([], [])).source]

    try:
        assert asyncio.run(look()) == ["heartbeats", "kubernetes"]
    finally:
        view.close()


def test_a_pod_asks_as_its_service_account_and_trusts_the_clusters_authority_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = Certificates(tmp_path / "ours"), Certificates(tmp_path / "others")
    become_pod(monkeypatch, tmp_path, ours)
    with kubernetes_api(ours.server, rights=VIEW) as api, kubernetes_api(others.server, rights=VIEW) as stranger:
        api.put("pods", fake.pod("b-1", "broker"))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", api.url.rpartition(":")[2])
        seen = see(None)
        assert (seen.source, seen.namespace, [each.name for each in seen.brokers]) == ("kubernetes", "ml", ["b-1"])
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", stranger.url.rpartition(":")[2])
        assert "CERTIFICATE_VERIFY_FAILED" in str(see(None).notice)
        assert stranger.asked == []


# The API's refusals


def test_a_page_that_has_expired_makes_the_list_begin_anew_once(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights, api.page, api.expiring = VIEW, 2, 1
    for number in range(5):
        api.put("pods", fake.pod(f"b-{number}", "broker"))
    kubernetes = connect(api, tmp_path)
    assert [each["metadata"]["name"] for each in kubernetes.pods(OURS)] == [f"b-{number}" for number in range(5)]
    api.expiring = 2
    with pytest.raises(KubernetesError, match="too old") as refused:
        kubernetes.pods(OURS)
    assert refused.value.status == 410


def test_a_wrong_token_is_told(api: KubernetesApi, tmp_path: Path) -> None:
    with pytest.raises(KubernetesError, match="401"):
        Kubernetes.connect(api.kubeconfig(tmp_path, token="wrong")).pods(OURS)


def test_rights_and_groups_are_the_apis_own_answer(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights, api.groups = {("get", "pods/log")}, {"keda.sh"}
    kubernetes = connect(api, tmp_path)
    assert kubernetes.may("get", "pods", subresource="log")
    assert not kubernetes.may("create", "jobs", "batch")
    assert kubernetes.groups() == {"keda.sh"}


# wharf cleanup --in-cluster


def clean(api: KubernetesApi, folder: Path, *arguments: str) -> tuple[bool, list[str], list[str]]:
    kubernetes = connect(api, folder)
    shown: list[str] = []
    told: list[str] = []
    name = kubernetes_job.start(kubernetes, kubernetes_job.cron_job(kubernetes, "cleanup", None), arguments)
    return kubernetes_job.follow(kubernetes, name, show=shown.append, tell=told.append), shown, told


def test_a_cleanup_is_a_job_made_from_the_cron_job_and_its_log_is_shown(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = OPERATE
    owner = api.put("cronjobs", fake.cron_job())
    assert clean(api, tmp_path, "--now")[:2] == (True, ["bytes removed  3 files", "errors         0"])
    [made] = api.objects["jobs"].values()
    [container] = made["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["cleanup", "--max-seconds", "600", "--now"]
    assert container["futureField"] == {"kept": True}  # what we do not know is not lost
    assert made["metadata"]["labels"] == owner["metadata"]["labels"]
    # It goes with its CronJob, in whose history it is not: that one would delete it as soon as it ends.
    [reference] = made["metadata"]["ownerReferences"]
    assert reference["uid"] == owner["metadata"]["uid"]
    assert not reference.get("controller")


def test_a_job_whose_name_is_taken_gets_another(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = OPERATE
    api.put("cronjobs", fake.cron_job())
    api.taken = 2
    assert clean(api, tmp_path, "--now")[0]
    [made] = api.objects["jobs"].values()
    [container] = made["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["cleanup", "--max-seconds", "600", "--now"]
    api.taken = 3
    with pytest.raises(KubernetesError, match="already exists"):
        clean(api, tmp_path)


def test_a_refused_job_is_told_in_the_apis_words(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = OPERATE
    api.put("cronjobs", fake.cron_job())
    api.refusing = "exceeded quota: jobs"
    with pytest.raises(KubernetesError, match=r"422.*exceeded quota: jobs"):
        clean(api, tmp_path)
    api.rights = OPERATE - {("create", "jobs")}
    with pytest.raises(KubernetesError, match=r"403.*cannot create resource"):
        clean(api, tmp_path)
    assert api.objects["jobs"] == {}


def test_a_log_that_breaks_off_goes_on_where_it_was(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights, api.cut_logs = OPERATE, 2
    api.put("cronjobs", fake.cron_job())
    assert clean(api, tmp_path)[:2] == (True, ["bytes removed  3 files", "errors         0"])


def test_a_cleanup_that_fails_twice_shows_both_pods_and_fails(api: KubernetesApi, tmp_path: Path) -> None:
    def fail(api: KubernetesApi, job: fake.Object) -> None:
        for number in range(2):
            pod = fake.start_pod(api, job, number)
            api.logs[pod["metadata"]["name"]] = [f"no database, try {number}"]
            fake.set_state(api, pod, "terminated", exitCode=1)
        fake.end_job(api, job, "Failed", "Job has reached the specified backoff limit")

    api.rights, api.run = OPERATE, fail
    api.put("cronjobs", fake.cron_job())
    succeeded, shown, told = clean(api, tmp_path)
    assert not succeeded
    assert shown == ["no database, try 0", "no database, try 1"]
    assert "backoff limit" in told[-1]


def test_a_pod_that_cannot_start_is_told_with_its_reason(api: KubernetesApi, tmp_path: Path) -> None:
    def pull(api: KubernetesApi, job: fake.Object) -> None:
        pod = fake.start_pod(api, job)
        fake.set_state(api, pod, "waiting", reason="ImagePullBackOff", message="no such image")
        time.sleep(0.3)
        fake.end_job(api, job, "Failed", "deadline")

    api.rights, api.run = OPERATE, pull
    api.put("cronjobs", fake.cron_job())
    succeeded, _, told = clean(api, tmp_path)
    assert not succeeded
    assert any("ImagePullBackOff: no such image" in each for each in told)


def test_a_job_that_gets_no_pod_is_told_why(api: KubernetesApi, tmp_path: Path) -> None:
    refusal = 'pods "x" is forbidden: exceeded quota: compute, requested: limits.memory=512Mi'

    def refuse(api: KubernetesApi, job: fake.Object) -> None:
        name = job["metadata"]["name"]
        api.put("events", fake.warning("Job", name, "an older one", "2026-11-30T06:00:00Z"))
        api.put("events", fake.warning("Job", name, refusal))
        api.put("events", fake.warning("Job", "another", "of another", "2026-11-30T08:00:00Z"))
        time.sleep(0.3)
        fake.end_job(api, job, "Failed", "deadline")

    api.rights, api.run = OPERATE, refuse
    api.put("cronjobs", fake.cron_job())
    succeeded, _, told = clean(api, tmp_path)
    assert not succeeded
    [waiting] = [each for each in told if "has no pod yet" in each and ":" in each]
    assert waiting.endswith(refusal)


def test_a_pod_that_waits_for_its_volume_is_told_so_and_without_the_right_where_to_look(
    api: KubernetesApi, tmp_path: Path
) -> None:
    def mount(api: KubernetesApi, job: fake.Object) -> None:
        pod = fake.start_pod(api, job)
        api.put("events", fake.warning("Pod", pod["metadata"]["name"], "Multi-Attach error for volume"))
        time.sleep(0.3)
        fake.end_job(api, job, "Failed", "deadline")

    api.rights, api.run = OPERATE, mount
    api.put("cronjobs", fake.cron_job())
    assert any(each.endswith("ContainerCreating: Multi-Attach error for volume") for each in clean(api, tmp_path)[2])
    api.rights = OPERATE - {("list", "events")}
    assert any("describe pod" in each for each in clean(api, tmp_path)[2])


def test_a_job_that_somebody_deletes_is_told_and_has_failed(api: KubernetesApi, tmp_path: Path) -> None:
    def run(api: KubernetesApi, job: fake.Object) -> None:
        pod = fake.start_pod(api, job)
        fake.set_state(api, pod, "running")
        time.sleep(0.2)
        api.delete("jobs", job["metadata"]["name"])

    api.rights, api.run = OPERATE, run
    api.put("cronjobs", fake.cron_job())
    succeeded, _, told = clean(api, tmp_path)
    assert (succeeded, "deleted" in told[-1]) == (False, True)


def test_a_pod_that_is_drained_away_is_followed_by_the_next_one(api: KubernetesApi, tmp_path: Path) -> None:
    def run(api: KubernetesApi, job: fake.Object) -> None:
        first = fake.start_pod(api, job)
        api.logs[first["metadata"]["name"]] = ["begun"]
        fake.set_state(api, first, "running")
        time.sleep(0.2)
        api.delete("pods", first["metadata"]["name"])
        second = fake.start_pod(api, job, 1)
        api.logs[second["metadata"]["name"]] = ["begun again"]
        fake.set_state(api, second, "terminated", exitCode=0)
        fake.end_job(api, job, "Complete")

    api.rights, api.run = OPERATE, run
    api.put("cronjobs", fake.cron_job())
    assert clean(api, tmp_path)[:2] == (True, ["begun", "begun again"])


def test_a_node_that_is_not_reached_for_a_moment_costs_no_line(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights, api.broken_logs = OPERATE, 2
    api.put("cronjobs", fake.cron_job())
    assert clean(api, tmp_path)[:2] == (True, ["bytes removed  3 files", "errors         0"])


def test_of_two_releases_one_must_be_named(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = OPERATE
    kubernetes = connect(api, tmp_path)
    with pytest.raises(StartError, match="no cleanup CronJob"):
        kubernetes_job.cron_job(kubernetes, "cleanup", None)
    for release in ("one", "two"):
        api.put("cronjobs", fake.cron_job(f"{release}-cleanup", release))
    with pytest.raises(StartError, match=r"one.*two"):
        kubernetes_job.cron_job(kubernetes, "cleanup", None)
    assert kubernetes_job.cron_job(kubernetes, "cleanup", "two")["metadata"]["name"] == "two-cleanup"


def test_the_command_cleans_in_the_cluster_of_the_kubeconfig(api: KubernetesApi, tmp_path: Path) -> None:
    api.rights = OPERATE
    api.put("cronjobs", fake.cron_job())
    ended = wharf(api, tmp_path, "cleanup", "--in-cluster", "--now", "--max-seconds", "60", "--json")
    assert (ended.returncode, ended.stdout) == (0, "bytes removed  3 files\nerrors         0\n"), ended.stderr
    [made] = api.objects["jobs"].values()
    args = made["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[3:] == ["--now", "--json", "--max-seconds", "60"]
    api.rights = set()
    refused = wharf(api, tmp_path, "cleanup", "--in-cluster")
    assert refused.returncode == 1
    assert "cronjobs is forbidden" in refused.stderr
    mixed = wharf(api, tmp_path, "cleanup", "--in-cluster", "--history")
    assert "--in-cluster goes with" in mixed.stderr


def test_where_nothing_is_set_up_the_cluster_cleans_up_and_is_told_first(
    api: KubernetesApi, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.rights = OPERATE
    api.put("cronjobs", fake.cron_job())
    cleanup(now=True)
    shown = capsys.readouterr()
    assert shown.out == "bytes removed  3 files\nerrors         0\n"
    assert shown.err.startswith(
        "No service is set up on this machine: this goes to the namespace ml, by the context here"
    )
    assert [arguments(job) for job in api.objects["jobs"].values()] == [["cleanup", "--max-seconds", "600", "--now"]]


def test_what_is_set_up_on_this_machine_is_cleaned_and_not_the_cluster(
    api: KubernetesApi, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.rights = OPERATE
    api.put("cronjobs", fake.cron_job())
    mine, roots = discovery.default_data_folder(), discovery.ROOTS_DATA_FOLDER
    for folder in (mine, roots):  # of a `wharf up` that has ended
        folder.mkdir(parents=True)
        with pytest.raises(SystemExit, match=r"no service runs.* add --in-cluster"):
            cleanup(now=True)
        folder.rmdir()
    for name, value in (("WHARF_DATA", str(bare)), ("WHARF_VOLUME", str(bare)), ("WHARF_DATABASE_URL", "nonsense")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(SystemExit):
                cleanup(now=True)
    for here_alone in ({"history": True}, {"data": bare}):
        with pytest.raises(SystemExit, match="no service runs") as refused:
            cleanup(**here_alone)
        assert "--in-cluster" not in str(refused.value)  # which is refused with these
    assert api.asked == []
    mine.mkdir(parents=True)
    cleanup(in_cluster=True)
    cleanup(release="wharf")  # who names one of a cluster's means the cluster's
    assert len(api.objects["jobs"]) == 2


def test_a_job_that_is_given_more_time_is_not_ended_by_its_cron_jobs_deadline(api: KubernetesApi, bare: Path) -> None:
    api.rights = OPERATE
    api.put("cronjobs", fake.cron_job())
    cleanup(max_seconds=7200)
    [job] = api.objects["jobs"].values()
    assert job["spec"]["activeDeadlineSeconds"] == 15000
    assert api.objects["cronjobs"]["wharf-cleanup"]["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 1800


def test_of_several_releases_none_is_guessed(api: KubernetesApi, bare: Path) -> None:
    api.rights = OPERATE
    for release in ("one", "two"):
        api.put("cronjobs", fake.cron_job(f"{release}-cleanup", release))
    with pytest.raises(SystemExit, match=r"--release: \['one', 'two'\]"):
        cleanup(now=True)
    assert api.objects["jobs"] == {}


def test_a_pods_service_account_cleans_up_where_it_may_and_never_from_a_cleanups_own_pod(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates = Certificates(bare / "certificates")
    become_pod(monkeypatch, bare, certificates)
    monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", str(bare / "none"))
    monkeypatch.setattr(socket, "gethostname", lambda: "wharf-cleanup-29404410-x7kq2")
    with kubernetes_api(certificates.server) as api:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", api.url.rpartition(":")[2])
        api.put("cronjobs", fake.cron_job())
        with pytest.raises(SystemExit, match="no service runs"):  # without a right
            cleanup(now=True)
        api.rights = OPERATE
        api.put("pods", fake.pod("wharf-cleanup-29404410-x7kq2", "cleanup"))
        with pytest.raises(SystemExit, match="no service runs"):
            cleanup(now=True)
        assert api.objects["jobs"] == {}
        api.delete("pods", "wharf-cleanup-29404410-x7kq2")
        cleanup(now=True)
        assert len(api.objects["jobs"]) == 1
    assert "by this pod's service account" in capsys.readouterr().err


def test_in_a_pod_with_a_kubeconfig_that_one_holds_as_with_kubectl(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become_pod(monkeypatch, bare, Certificates(bare / "certificates"))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", f"{bare}/none{os.pathsep}{bare}/kubeconfig")
    assert Kubernetes.connect(usual=True).context == "here"
    assert Kubernetes.connect().context is None  # a broker's login is its own

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    # In a pod with any uid: without a name there is no home.
    monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", "~/.kube/config")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    assert Kubernetes.connect(usual=True).context is None


def test_a_verification_is_a_job_made_from_its_cron_job_where_the_cluster_is_named(
    api: KubernetesApi, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.rights = OPERATE
    api.put("cronjobs", fake.cron_job())
    api.put("cronjobs", fake.cron_job("wharf-verify", component="verify"))
    verify(in_cluster=True, quick=True, max_seconds=90.5, rate=1e7)
    assert "This goes to the namespace ml, by the context here" in capsys.readouterr().err
    [job] = api.objects["jobs"].values()
    assert arguments(job) == [
        "verify", "--max-seconds", "600", "--quick", "--max-seconds", "90.5", "--rate", "10000000",
    ]  # fmt: skip
    assert job["spec"]["activeDeadlineSeconds"] == 1800
    # --accept lets a restore pass for good: of what is not named it is not asked.
    with pytest.raises(SystemExit, match="add --in-cluster"):
        verify(accepting=True)
    with pytest.raises(SystemExit, match="--in-cluster goes with"):
        verify(in_cluster=True, history=True)
    assert len(api.objects["jobs"]) == 1


def test_a_laptop_without_the_package_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "kubernetes.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "wharfinger", "cleanup", "--in-cluster"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "wharfinger[cluster]" in ended.stderr
    # Commands that do not ask for it do not miss it.
    fine = subprocess.run([*command[:-1], "--help"], env=environment, capture_output=True, text=True, timeout=60)
    assert fine.returncode == 0


@pytest.fixture
def bare(api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a kubeconfig, and nothing of ours but this empty folder."""
    for name in [name for name in os.environ if name.startswith("WHARF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(discovery, "default_data_folder", lambda *_: tmp_path / "mine")
    monkeypatch.setattr(discovery, "ROOTS_DATA_FOLDER", tmp_path / "root's")
    for module in (config, config.kube_config):
        monkeypatch.setattr(module, "KUBE_CONFIG_DEFAULT_LOCATION", str(api.kubeconfig(tmp_path)))
    return tmp_path


def become_pod(monkeypatch: pytest.MonkeyPatch, folder: Path, certificates: Certificates) -> None:
    """With a service account of the namespace, at a cluster of this authority."""
    account = folder / "account"
    account.mkdir()
    (account / "token").write_text(fake.TOKEN)
    (account / "namespace").write_text("ml\n")
    (account / "ca.crt").write_bytes(certificates.authority.certificate.read_bytes())
    monkeypatch.setattr("broker.kubernetes.SERVICE_ACCOUNT", account)
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(account / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(account / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")


def arguments(job: fake.Object) -> list[str]:
    found: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def wharf(api: KubernetesApi, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig(folder))}
    command = [sys.executable, "-m", "wharfinger", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
