"""deploy/kustomize: the base is the chart's, and each overlay builds to what it promises."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts import manifests
from contracts.helm import ToolMissingError
from contracts.manifests import rendered
from tests.deploy.conftest import DEPLOY, OVERLAYS
from tests.support.pods import breaches, containers, pods

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
    found = {name: breaches(pod) for name, pod in pods(built[overlay].values())}
    assert len(found) >= 6
    assert {name: ways for name, ways in found.items() if ways} == {}


def test_an_overlay_lies_in_one_namespace(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    found = {
        overlay: {one["metadata"].get("namespace") for one in objects.values()} for overlay, objects in built.items()
    }
    assert found == {"dev": {"wharfinger-dev"}, "production": {"wharfinger"}, "gpu": {"wharfinger"}}


def test_dev_is_one_of_each_on_a_small_claim(built: dict[str, dict[tuple[str, str], Manifest]]) -> None:
    deployments = [one for (kind, _), one in built["dev"].items() if kind == "Deployment"]
    assert {one["spec"]["replicas"] for one in deployments} == {1}
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
            assert named == (set() if pod_of.startswith("Job/") else {name}), pod_of
        names[overlay] = name
    assert names["dev"] != names["production"]


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


@pytest.mark.parametrize("component", [*manifests.COMPONENTS, "model"])
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
