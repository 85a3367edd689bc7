"""deploy/kustomize: the base is the chart's, and each overlay builds to what it promises."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from contracts import manifests
from contracts.helm import ToolMissingError
from contracts.kustomize import COMPONENTS
from contracts.manifests import rendered
from contracts.rendering import QUEUE_CA
from tests.deploy.conftest import DEPLOY, OVERLAYS
from tests.support.pods import breaches, containers, environment, pods, quantity

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def of_the_chart(tools: Callable[..., str]) -> dict[Path, str]:
    return rendered()


def test_what_is_committed_is_what_the_chart_gives(of_the_chart: dict[Path, str]) -> None:
    assert [path for path, text in of_the_chart.items() if path.read_text() != text] == []


def test_what_was_changed_by_hand_is_found(
    of_the_chart: dict[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = DEPLOY / "kustomize" / "base" / "relay.yaml"
    changed = {**of_the_chart, path: of_the_chart[path].replace("replicas: 2", "replicas: 3")}
    monkeypatch.setattr(manifests, "rendered", lambda: changed)
    with pytest.raises(SystemExit, match="differs from the chart"):
        manifests.manifests(check=True)
    assert "-  replicas: 2\n+  replicas: 3\n" in capsys.readouterr().out


def test_what_the_chart_no_longer_has_is_found(
    of_the_chart: dict[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = DEPLOY / "kustomize" / "base" / "relay.yaml"
    fewer = {there: text for there, text in of_the_chart.items() if there != path}
    monkeypatch.setattr(manifests, "rendered", lambda: fewer)
    with pytest.raises(SystemExit, match="differs from the chart"):
        manifests.manifests(check=True)
    assert "relay.yaml: no longer rendered" in capsys.readouterr().out
    assert path.exists()


def test_without_helm_the_check_says_so_and_fails_in_ci_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> dict[Path, str]:
        raise ToolMissingError("no helm here")

    monkeypatch.setattr(manifests, "rendered", missing)
    monkeypatch.delenv("CI", raising=False)
    manifests.manifests(check=True)
    assert "was not compared with the chart: no helm here" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="no helm here"):
        manifests.manifests(check=True)


def test_no_object_has_helms_marks_or_a_secret_in_it() -> None:
    files = [path for path in (DEPLOY / "kustomize").rglob("*.yaml") if path.name != "kustomization.yaml"]
    assert len(files) > 5
    for path in files:
        for one in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            assert one["kind"] != "Secret"
            assert "helm" not in yaml.safe_dump({**one, "data": None}).lower(), path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pods_of_an_overlay_need_no_more_than_restricted_rules_give(
    overlay: str, built: dict[str, dict[tuple[str, str], Manifest]]
) -> None:
    """The two servers of a first try run as the users that their images have."""
    found = {name: breaches(pod) for name, pod in pods(built[overlay].values())}
    assert len(found) >= 6
    ids = ["runAsUser", "runAsGroup", "fsGroup"]
    servers = {"StatefulSet/wharfinger-postgres": ids, "StatefulSet/wharfinger-rabbitmq": ids}
    assert {name: ways for name, ways in found.items() if ways} == (servers if overlay == "dev" else {})


def test_an_overlay_lies_in_one_namespace(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    found = {
        overlay: {one["metadata"].get("namespace") for one in objects.values()} for overlay, objects in built.items()
    }
    assert found == {"dev": {"wharfinger-dev"}, "production": {"wharfinger"}, "gpu": {"wharfinger"}}


def test_dev_is_one_of_each_on_a_small_claim(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    replicas = {name: one["spec"]["replicas"] for (kind, name), one in built["dev"].items() if kind == "Deployment"}
    assert replicas == {
        "wharfinger-broker": 1,
        "wharfinger-relay": 1,
        "wharfinger-worker-digits": 1,
        "wharfinger-worker-yolo11n": 0,
    }
    claim = built["dev"]["PersistentVolumeClaim", "ml-files-storage"]["spec"]
    assert (claim["accessModes"], claim["resources"]["requests"]["storage"]) == (["ReadWriteOnce"], "5Gi")


def test_other_settings_are_other_pods(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    """Their name says what they are; the migration, which cannot be changed, does not name them."""
    names = {}
    for overlay in ("dev", "production"):
        [(name, settings)] = [(name, one) for (kind, name), one in built[overlay].items() if kind == "ConfigMap"]
        assert settings["data"]["WHARF_VOLUME"] == "/srv/wharf"
        for pod_of, pod in pods(built[overlay].values()):
            named = {source["configMapRef"]["name"] for one in pod["containers"] for source in one.get("envFrom", [])}
            assert named == ({name} if pod_of.startswith(("Deployment/", "CronJob/")) else set()), pod_of
        names[overlay] = name
    assert names["dev"] != names["production"]


def test_dev_needs_nothing_but_the_secrets_that_are_made_for_it(
    built: dict[str, dict[tuple[str, str], Manifest]],
) -> None:
    """Every Secret that is not optional, every key, every host, and a port that the policies open."""
    made = _secrets("wharfinger-dev")
    needed: dict[str, set[str]] = {}
    for _, pod in pods(built["dev"].values()):
        for container in containers(pod):
            for entry in environment(container).values():
                if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                    needed.setdefault(reference["name"], set()).add(reference["key"])
        for volume in pod["volumes"]:
            secret = volume.get("secret", {"optional": True})
            if not secret.get("optional"):
                needed.setdefault(secret["secretName"], set()).update(item["key"] for item in secret.get("items", ()))
    needed["wharfinger-admin-key"].add("api-key")
    assert {name: set(one["stringData"]) for name, one in made.items()} == needed
    for name, policy in (("wharfinger-database", "to-database"), ("wharfinger-queue", "to-queue")):
        for key, url in made[name]["stringData"].items():
            if key.endswith("-url"):
                parts = urlsplit(url)
                service, namespace, svc = str(parts.hostname).split(".")
                assert (namespace, svc) == ("wharfinger-dev", "svc")
                [port] = built["dev"]["Service", service]["spec"]["ports"]
                [rule] = built["dev"]["NetworkPolicy", f"wharfinger-{policy}"]["spec"]["egress"]
                assert port["port"] == parts.port == rule["ports"][0]["port"]
                if key == "owner-url" or name == "wharfinger-queue":
                    assert parts.password == made[name]["stringData"]["password"]


def test_the_secrets_of_a_first_try_are_new_each_time_and_cannot_be_changed() -> None:
    first, second = _secrets("one"), _secrets("one")
    for name, one in first.items():
        kubernetes_validate.validate(one, "1.37", strict=True)
        assert one["immutable"] is True
        assert not set(one["stringData"].values()) & set(second[name]["stringData"].values())
    passwords = [urlsplit(url).password for url in first["wharfinger-database"]["stringData"].values() if "://" in url]
    assert len(set(passwords)) == 5
    assert re.fullmatch(r"wharf_[A-Za-z0-9]{43}", first["wharfinger-admin-key"]["stringData"]["api-key"])
    ended = subprocess.run([DEPLOY / "kustomize" / "evaluation-secrets"], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "namespace" in ended.stderr


def _secrets(namespace: str) -> dict[str, Manifest]:
    printed = subprocess.run(
        [DEPLOY / "kustomize" / "evaluation-secrets", namespace], check=True, capture_output=True, text=True
    ).stdout
    found = list(yaml.safe_load_all(printed))
    assert {one["metadata"]["namespace"] for one in found} == {namespace}
    return {one["metadata"]["name"]: one for one in found}


def test_no_container_asks_for_more_than_it_may_have(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    for objects in built.values():
        for name, pod in pods(objects.values()):
            for container in containers(pod):
                requests, limits = container["resources"]["requests"], container["resources"]["limits"]
                for kind in requests.keys() & limits.keys():
                    assert quantity(requests[kind]) <= quantity(limits[kind]), (name, kind)


def test_dev_fits_on_a_node_of_two_cpus(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    """Beside what a small cluster's own pods ask for. A pod asks for what the greediest of its containers does, which
    start one after the other."""
    asked = {}
    for (kind, name), one in built["dev"].items():
        if kind in ("Deployment", "StatefulSet", "Job"):
            [(_, pod)] = pods([one])
            most = max(quantity(container["resources"]["requests"]["cpu"]) for container in containers(pod))
            asked[name] = most * one["spec"].get("replicas", 1)
    assert len(asked) == 7
    assert sum(asked.values()) <= 1.5, asked


def test_every_worker_has_a_limit_of_cpus(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    """It has a slot, with a copy of the model, for each: without, one for each CPU of the node."""
    for objects in built.values():
        workers = [pod for name, pod in pods(objects.values()) if name.startswith("Deployment/wharfinger-worker-")]
        assert workers
        assert all("cpu" in pod["containers"][0]["resources"]["limits"] for pod in workers)


def test_a_job_leaves_soon_so_that_the_next_apply_is_not_refused(
    built: dict[str, dict[tuple[str, str], Manifest]],
) -> None:
    """A Job's pods cannot be changed, and another tag changes them."""
    model = yaml.safe_load((DEPLOY / "kustomize" / "components" / "model" / "worker.yaml").read_text())
    jobs = [model, *(one for objects in built.values() for (kind, _), one in objects.items() if kind == "Job")]
    assert len(jobs) == 4
    assert all(one["spec"]["ttlSecondsAfterFinished"] <= 600 for one in jobs)


def test_every_process_looks_for_private_authorities_and_starts_without(
    built: dict[str, dict[tuple[str, str], Manifest]],
) -> None:
    """Those of RabbitMQ are named in the settings, which all processes have."""
    model = yaml.safe_load((DEPLOY / "kustomize" / "components" / "model" / "worker.yaml").read_text())
    for objects in (*built.values(), {("Job", "model"): model}):
        for name, pod in pods(objects.values()):
            if name.startswith("StatefulSet/"):
                continue
            optional = {volume["name"] for volume in pod["volumes"] if volume.get("secret", {}).get("optional")}
            for container in containers(pod):
                known = environment(container)
                mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
                assert known["PGSSLROOTCERT"]["value"] == f"{mounts['database-ca']}/ca.crt"
                assert "WHARF_AMQP_CA_FILE" not in known
                if "WHARF_AMQP_URL" in known:
                    assert f"{mounts['queue-ca']}/ca.crt" == QUEUE_CA
                    assert "envFrom" in container
                assert optional >= {"database-ca", "queue-ca"} & set(mounts), name


def test_keda_is_told_of_no_secret_that_may_be_missing() -> None:
    text = (DEPLOY / "kustomize" / "components" / "autoscaling" / "worker.yaml").read_text()
    logins = [one for one in yaml.safe_load_all(text) if one["kind"] == "TriggerAuthentication"]
    assert len(logins) == 2
    read = {ref["name"] for one in logins for ref in one["spec"]["secretTargetRef"]}
    assert read == {"wharfinger-database", "wharfinger-queue"}
    assert all("configMapTargetRef" not in one["spec"] for one in logins)


def test_production_outlives_a_node_and_has_an_ingress(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    deployments = [one for (kind, _), one in built["production"].items() if kind == "Deployment"]
    assert all(one["spec"]["replicas"] >= 2 for one in deployments)
    assert all("topologySpreadConstraints" in one["spec"]["template"]["spec"] for one in deployments)
    ingress = built["production"]["Ingress", "wharfinger"]["spec"]
    [rule] = ingress["rules"]
    assert [host for tls in ingress["tls"] for host in tls["hosts"]] == [rule["host"]]
    service = rule["http"]["paths"][0]["backend"]["service"]["name"]
    assert ("Service", service) in built["production"]


def test_gpu_is_production_and_workers_on_gpus(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    more = set(built["gpu"]) - set(built["production"])
    assert {identity: built["gpu"][identity] for identity in built["production"]} == built["production"]
    assert ("Deployment", "wharfinger-worker-yolo11n-gpu") in more
    pod = built["gpu"]["Deployment", "wharfinger-worker-yolo11n-gpu"]["spec"]["template"]["spec"]
    worker = containers(pod)[-1]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "WHARF_ENGINE", "value": "ultralytics"} in worker["env"]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


@pytest.mark.parametrize("component", [*COMPONENTS, "model"])
def test_each_component_builds_on_the_base(component: str, tools: Callable[..., str], tmp_path: Path) -> None:
    """kustomize takes no absolute paths: the folders are copied to where the overlay is."""
    for folder in ("base", "components"):
        shutil.copytree(DEPLOY / "kustomize" / folder, tmp_path / folder)
    overlay = tmp_path / "mine"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        f"resources: [../base]\ncomponents: [../components/{component}]\nnamespace: mine\n"
    )
    printed = tools("kubectl", "kustomize", str(overlay))
    made = {(one["kind"], one["metadata"]["name"]) for one in yaml.load_all(printed, yaml.CSafeLoader)}
    lists = [tmp_path / "components" / component, tmp_path / "base"]
    named = {
        (one["kind"], one["metadata"]["name"])
        for folder in lists
        for path in folder.glob("*.yaml")
        if path.name != "kustomization.yaml"
        for one in yaml.load_all(path.read_text(), yaml.CSafeLoader)
    }
    assert {identity for identity in made if identity[0] != "ConfigMap" or identity in named} == named


def test_what_keda_scales_has_no_replicas_of_its_own(tools: Callable[..., str], tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
    overlay = tmp_path / "kustomize" / "mine"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        "resources: [../overlays/production]\ncomponents: [../components/autoscaling]\nnamespace: wharfinger\n"
    )
    objects = list(yaml.load_all(tools("kubectl", "kustomize", str(overlay)), yaml.CSafeLoader))
    [scaled] = [one["spec"]["scaleTargetRef"]["name"] for one in objects if one["kind"] == "ScaledObject"]
    without = [
        one["metadata"]["name"] for one in objects if one["kind"] == "Deployment" and "replicas" not in one["spec"]
    ]
    assert without == [scaled]
