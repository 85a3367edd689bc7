"""The pods of `wharf doctor --cluster`, made from the chart's own objects: what lets the service's pods in lets them
in, they reach what those reach, and nothing takes them for pods of the service."""

from typing import Any

import kubernetes_validate
import pytest

from broker.kubernetes import Kubernetes
from standalone import kubernetes_job
from standalone.doctor.cluster import RIGHTS, look_at_cluster
from tests.charts.rendering import VALUES, Pods, objects, pods_of, selects
from tests.support import kubernetes_api as fake
from tests.support.pods import breaches

PLURALS = {"CronJob": "cronjobs", "Deployment": "deployments"}


@pytest.fixture(params=["gpu", "everything", "evaluation"], scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def probes(name: str, tmp_path_factory: pytest.TempPathFactory) -> list[Pods]:
    """Two that meet on the volume, then one for each kind of process."""
    made: dict[str, dict[str, Any]] = {}

    def run(api: fake.KubernetesApi, job: fake.Object) -> None:
        made[job["metadata"]["name"]] = job
        fake.end_job(api, job, "Failed")

    rights = {(right.verb, str(right).partition(" ")[2]) for right in RIGHTS}
    with pytest.MonkeyPatch.context() as patch, fake.kubernetes_api(rights=rights, run=run) as api:
        patch.setattr(kubernetes_job, "POLL_SECONDS", 0.01)
        for found in objects(name):
            if found["kind"] in PLURALS:
                api.put(PLURALS[found["kind"]], found)
        config = api.kubeconfig(tmp_path_factory.mktemp("probes"))
        list(look_at_cluster(Kubernetes.connect(config), None, lambda _: None))
    return sorted(pods_of([*made.values()]), key=lambda pod: pod.component)


def test_there_is_one_for_each_part(probes: list[Pods]) -> None:
    assert [each.component for each in probes] == ["cleanup", "cleanup", "doctor", "doctor", "doctor"]
    accounts = {each.spec["serviceAccountName"].rpartition("-")[2] for each in probes}
    assert accounts == {"cleanup", "broker", "relay", "worker"}


def test_they_are_restricted_valid_and_small(probes: list[Pods]) -> None:
    for each in probes:
        assert breaches(each.spec) == []
        kubernetes_validate.validate(
            {key: each.owner[key] for key in each.owner if key != "status"}, "1.36", strict=True
        )
        assert each.spec["restartPolicy"] == "Never"
        [container] = each.containers
        assert not {"startupProbe", "livenessProbe", "readinessProbe", "ports"} & container.keys()
        assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_they_are_pulled_and_placed_as_the_services_own(name: str, probes: list[Pods]) -> None:
    own = {each.spec["serviceAccountName"]: each for each in pods_of(objects(name))
           if each.owner["kind"] in PLURALS}  # fmt: skip
    for each in probes:
        like = own[each.spec["serviceAccountName"]]
        for key in ("imagePullSecrets", "nodeSelector", "tolerations", "securityContext"):
            assert each.spec.get(key) == like.spec.get(key)
        mounted = {mount["name"] for mount in each.containers[0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in each.spec["volumes"]}
        assert ("files" in mounted) == (each.component == "cleanup")


def test_they_reach_what_the_processes_reach_and_no_request_reaches_them(name: str, probes: list[Pods]) -> None:
    found = objects(name)
    ways = {"cleanup": ("-to-database",), "doctor": ("-to-database", "-to-queue")}
    for each in probes:
        ways_out = {
            policy["metadata"]["name"]
            for policy in found
            if policy["kind"] == "NetworkPolicy"
            and selects(policy["spec"]["podSelector"], each.labels)
            and policy["spec"].get("egress")
        }
        for way in ways[each.component]:
            assert any(policy.endswith(way) for policy in ways_out)
        for one in found:
            if one["kind"] == "Service":
                assert not selects({"matchLabels": one["spec"]["selector"]}, each.labels)
            if one["kind"] in ("Deployment", "PodDisruptionBudget"):
                assert not selects(one["spec"]["selector"], each.labels)


def test_the_values_that_are_looked_at_are_the_ones_that_matter() -> None:
    assert VALUES["everything"]["image"]["pullSecrets"]
    assert VALUES["gpu"]["pools"][1]["gpus"]
