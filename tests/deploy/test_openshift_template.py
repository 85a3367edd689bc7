"""deploy/openshift/template.yaml: what it makes is what the chart makes, and what its parameters say is true."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.relay.settings import RelaySettings
from contracts.openshift import template_values
from contracts.rendering import QUEUE_CA, chart, pod_templates
from custody.settings import load
from inference_worker.settings import WorkerSettings
from tests.deploy.conftest import DEPLOY
from tests.support.openshift import ProcessError, process, references
from tests.support.pods import breaches, containers, environment, pods, quantity

Manifest = dict[str, Any]

NEEDED = {
    "BROKER_IMAGE": "registry.example.com/ml/wharfinger-broker:7",
    "WORKER_IMAGE": "registry.example.com/ml/wharfinger-worker-cpu@sha256:" + "0" * 64,
    "STORAGE_CLASS_NAME": "cephfs",
}
OTHERWISE = {
    **NEEDED,
    "NAME": "wharfinger-two",
    "GPU_WORKER_IMAGE": "registry.example.com/ml/wharfinger-worker-gpu:7",
    "PULL_SECRETS": '[{"name": "registry"}, {"name": "mirror"}]',
    "STORAGE_CLASS_NAME": "null",
    "STORAGE_SIZE": "2Ti",
    "DATABASE_SECRET": "postgres-urls",
    "DATABASE_CA_SECRET": "postgres-ca",
    "DATABASE_PORT": "6432",
    "QUEUE_SECRET": "rabbitmq-urls",
    "QUEUE_CA_SECRET": "rabbitmq-ca",
    "QUEUE_CA_FILE": QUEUE_CA,
    "QUEUE_PORT": "5672",
    "HOST": "wharfinger.apps.example.com",
    "ROUTE_TIMEOUT": "600s",
    "BROKER_REPLICAS": "5",
    "RELAY_REPLICAS": "1",
    "MODEL": "parcels",
    "WORKER_REPLICAS": "7",
    "WORKER_CPUS": "6",
    "WORKER_MEMORY": "2Gi",
    "GPU_MODEL": "parcels-large",
    "GPU_WORKER_REPLICAS": "3",
    "GPUS": "2",
    "GPU_WORKER_CPUS": "1",
    "GPU_WORKER_MEMORY": "16Gi",
    "FILE_RETENTION_DAYS": "0.5",
    "JOB_RETENTION_DAYS": "7",
    "CLEANUP_SCHEDULE": "0 * * * *",
}


@pytest.mark.parametrize("given", [NEEDED, OTHERWISE], ids=["the defaults", "everything else"])
def test_its_objects_are_the_charts(tools: Callable[..., str], template: Manifest, given: dict[str, str]) -> None:
    defaults = {parameter["name"]: parameter.get("value", "") for parameter in template["parameters"]}
    whole = set(re.findall(r"\$\{\{(\w+)\}\}", yaml.safe_dump(template["objects"])))
    nothing: dict[str, Any] = {"HOST": "", "STORAGE_CLASS_NAME": "", "PULL_SECRETS": []}

    def of(name: str) -> Any:
        value = given.get(name, defaults[name])
        if value == "null":
            return nothing[name]
        if name == "PULL_SECRETS":
            return [secret["name"] for secret in json.loads(value)]
        return int(value) if name in whole - set(nothing) else value

    wanted = chart(str(of("NAME")), template_values(of))
    found = process(template, {**given, "REVISION": "r1"})
    [key] = [one for one in found if one["kind"] == "Secret"]
    found.remove(key)
    settings = f"{of('FILE_RETENTION_DAYS')} {of('JOB_RETENTION_DAYS')}"
    assert _by_identity(found) == _by_identity(
        _as_the_template_has_it(wanted, settings, given.get("QUEUE_CA_FILE", ""))
    )


def _as_the_template_has_it(objects: list[Manifest], settings: str, queue_ca: str) -> list[Manifest]:
    """helm numbers its revisions, takes a former one's Job away, can make a digest of the settings, and mounts private
    authorities only where it is told of them."""
    for one in objects:
        for pod in pod_templates(one):
            assert re.fullmatch(r"[0-9a-f]{16}", pod["metadata"]["annotations"]["wharfinger/settings"])
            pod["metadata"]["annotations"]["wharfinger/settings"] = settings
            for volume in pod["spec"]["volumes"]:
                if volume["name"].endswith("-ca"):
                    volume["secret"]["optional"] = True
            for container in containers(pod["spec"]):
                if authorities := environment(container).get("WHARF_AMQP_CA_FILE"):
                    authorities["value"] = queue_ca
        if one["kind"] == "Job":
            one["metadata"]["name"], numbered = re.subn(r"-1-[0-9a-f]{8}$", "-r1", one["metadata"]["name"])
            assert numbered == 1
            one["spec"].setdefault("ttlSecondsAfterFinished", 86400)
    return objects


def _by_identity(objects: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found


def test_it_has_everything_that_the_service_is_made_of(template: Manifest) -> None:
    names = {(one["kind"], one["metadata"]["name"]) for one in process(template, {**NEEDED, "REVISION": "r1"})}
    assert names >= {
        ("PersistentVolumeClaim", "ml-files-storage"),
        ("Secret", "wharfinger-admin-key"),
        ("ConfigMap", "wharfinger-settings"),
        ("Deployment", "wharfinger-broker"),
        ("Deployment", "wharfinger-relay"),
        ("Deployment", "wharfinger-worker-yolo11n"),
        ("Deployment", "wharfinger-worker-yolo11n-gpu"),
        ("CronJob", "wharfinger-cleanup"),
        ("CronJob", "wharfinger-verify"),
        ("Job", "wharfinger-migrate-r1"),
        ("Service", "wharfinger"),
        ("Route", "wharfinger"),
    }


def test_every_parameter_is_described_and_used_and_every_reference_is_one(template: Manifest) -> None:
    parameters = template["parameters"]
    assert all(parameter["description"] for parameter in parameters)
    assert {parameter["name"] for parameter in parameters} == references(template["objects"])
    assert references(template["message"]) <= references(template["objects"])


def test_only_images_and_the_storage_class_must_be_given(template: Manifest) -> None:
    without = {
        parameter["name"]
        for parameter in template["parameters"]
        if parameter.get("required") and not parameter.get("value") and "generate" not in parameter
    }
    assert without == set(NEEDED)


def test_the_admin_key_is_a_new_secret_of_the_right_form_each_time(template: Manifest) -> None:
    keys = set()
    for _ in range(2):
        [secret] = [one for one in process(template, NEEDED) if one["kind"] == "Secret"]
        keys.add(secret["stringData"]["api-key"])
    assert len(keys) == 2
    assert all(re.fullmatch(r"wharf_[A-Za-z0-9]{43}", key) for key in keys)
    [secret] = [one for one in process(template, {**NEEDED, "ADMIN_API_KEY": "wharf_mine"}) if one["kind"] == "Secret"]
    assert secret["stringData"] == {"api-key": "wharf_mine"}


def test_the_migration_admits_the_key_of_the_secret_that_the_template_makes(template: Manifest) -> None:
    objects = process(template, NEEDED)
    [secret] = [one for one in objects if one["kind"] == "Secret"]
    [job] = [one for one in objects if one["kind"] == "Job"]
    pod = job["spec"]["template"]["spec"]
    [volume] = [one for one in pod["volumes"] if one.get("secret", {}).get("secretName") == secret["metadata"]["name"]]
    [container] = pod["containers"]
    [mount] = [one for one in container["volumeMounts"] if one["name"] == volume["name"]]
    admitted = container["args"][container["args"].index("--admit-key") + 1]
    assert admitted == f"{mount['mountPath']}/{next(iter(secret['stringData']))}"


def test_a_new_revision_has_a_migration_of_its_own(template: Manifest) -> None:
    names = {
        one["metadata"]["name"] for _ in range(2) for one in process(template, NEEDED) if one["kind"] == "Job"
    }  # fmt: skip
    assert len(names) == 2
    assert all(re.fullmatch(r"wharfinger-migrate-[a-z0-9]{8}", name) for name in names)


def test_the_route_ends_tls_at_the_edge_and_lets_long_requests_through(template: Manifest) -> None:
    [route] = [one for one in process(template, NEEDED) if one["kind"] == "Route"]
    assert route["spec"]["tls"] == {"termination": "edge", "insecureEdgeTerminationPolicy": "Redirect"}
    assert route["metadata"]["annotations"]["haproxy.router.openshift.io/timeout"] == "3600s"


def test_openshift_chooses_the_route_s_host_unless_it_is_given(template: Manifest) -> None:
    hosts = [
        one["spec"].get("host")
        for given in (NEEDED, {**NEEDED, "HOST": "wharf.example.com"})
        for one in process(template, given)
        if one["kind"] == "Route"
    ]
    assert hosts == [None, "wharf.example.com"]


def test_the_claim_is_shared_by_many_and_every_volume_of_files_is_it(template: Manifest) -> None:
    objects = process(template, NEEDED)
    [claim] = [one for one in objects if one["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == "cephfs"
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for _, pod in pods(objects)
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert len(claims) >= 5
    assert set(claims) == {"ml-files-storage"}


def test_gpus_are_asked_for_by_the_gpu_workers_alone(template: Manifest) -> None:
    limits = {
        name: containers(pod)[-1]["resources"]["limits"].get("nvidia.com/gpu")
        for name, pod in pods(process(template, {**NEEDED, "GPUS": "2"}))
    }
    assert {name for name, gpus in limits.items() if gpus} == {"Deployment/wharfinger-worker-yolo11n-gpu"}
    assert limits["Deployment/wharfinger-worker-yolo11n-gpu"] == 2


def test_no_container_asks_for_more_than_it_may_have(template: Manifest) -> None:
    """Kubernetes refuses such a pod."""
    for given in (NEEDED, OTHERWISE, {**NEEDED, "WORKER_CPUS": "8", "GPU_WORKER_CPUS": "500m"}):
        for name, pod in pods(process(template, given)):
            for container in containers(pod):
                resources = container["resources"]
                for kind in resources["requests"].keys() & resources["limits"].keys():
                    assert quantity(resources["requests"][kind]) <= quantity(resources["limits"][kind]), (name, kind)


def test_the_claim_takes_the_cluster_s_class_where_none_is_named(template: Manifest) -> None:
    """A class of the name "" would be no class, and bind to nothing that a cluster makes."""
    [claim] = [
        one
        for one in process(template, {**NEEDED, "STORAGE_CLASS_NAME": "null"})
        if one["kind"] == "PersistentVolumeClaim"
    ]
    assert "storageClassName" not in claim["spec"]
    with pytest.raises(ProcessError, match="STORAGE_CLASS_NAME is required"):
        process(template, {**NEEDED, "STORAGE_CLASS_NAME": ""})


def test_pods_start_without_the_secrets_of_private_authorities_and_look_for_both(template: Manifest) -> None:
    for name, pod in pods(process(template, NEEDED)):
        secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if volume["name"].endswith("-ca")}
        assert all(secret["optional"] for secret in secrets.values()), name
        for container in containers(pod):
            known = environment(container)
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert known["PGSSLROOTCERT"]["value"] == f"{mounts['database-ca']}/ca.crt"
            assert ("WHARF_AMQP_URL" in known) == ("queue-ca" in mounts)
            if "queue-ca" in mounts:
                assert known["WHARF_AMQP_CA_FILE"]["value"] == ""
                assert f"{mounts['queue-ca']}/ca.crt" == QUEUE_CA


@pytest.mark.parametrize("file", ["", QUEUE_CA])
def test_rabbitmq_is_known_by_the_image_s_authorities_unless_a_file_is_named(
    template: Manifest, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods_of = dict(pods(process(template, {**NEEDED, "QUEUE_CA_FILE": file})))
    for name, settings in (("relay", RelaySettings), ("worker-yolo11n", WorkerSettings)):
        [container] = pods_of[f"Deployment/wharfinger-{name}"]["containers"]
        monkeypatch.setenv("WHARF_VOLUME", "/srv/wharf")
        for variable, entry in environment(container).items():
            monkeypatch.setenv(variable, entry.get("value", "wharfinger-0"))
        assert load(settings).amqp_ca_file == (Path(file) if file else None)


def test_its_pods_need_no_more_than_restricted_v2_gives(template: Manifest) -> None:
    found = {name: breaches(pod) for name, pod in pods(process(template, NEEDED))}
    assert len(found) >= 7
    assert {name: ways for name, ways in found.items() if ways} == {}


def test_secrets_reach_the_processes_by_reference_alone(template: Manifest) -> None:
    for name, pod in pods(process(template, NEEDED)):
        for container in containers(pod):
            for variable, entry in environment(container).items():
                if variable.endswith("_URL"):
                    assert set(entry["valueFrom"]) == {"secretKeyRef"}, (name, variable)


def test_the_file_is_a_template_of_openshift() -> None:
    text = (DEPLOY / "openshift" / "template.yaml").read_text()
    document = yaml.safe_load(text)
    assert (document["apiVersion"], document["kind"]) == ("template.openshift.io/v1", "Template")
    assert "p-name" not in text
    assert not re.search(r"\b410\d\d", text)
