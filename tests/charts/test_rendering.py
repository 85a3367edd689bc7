"""helm takes the chart, with every set of values, old and new alike."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from contracts.helm import WHEELS
from standalone.doctor import trial
from tests.charts.rendering import CHART, QUEUED, VALUES, objects, rendered, run


@pytest.mark.parametrize("release", WHEELS)
@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_to_complain_of(name: str, release: str) -> None:
    linted = run(release, "lint", "--strict", str(CHART), values=VALUES[name])
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert objects(name, release) != []


@pytest.mark.parametrize("name", ["external", "everything", "keda-postgresql"])
def test_both_helms_render_the_same(name: str) -> None:
    def without_secrets(release: str) -> list[object]:
        return [found for found in objects(name, release) if found["kind"] != "Secret"]

    assert without_secrets("35") == without_secrets("32")


def test_it_needs_to_be_told_where_the_database_and_the_queue_are() -> None:
    for values, missing in (
        ({}, "database.existingSecret"),
        ({"database": {"existingSecret": "db"}}, "queue.existing"),
    ):
        refused = run("35", "template", "wharf", str(CHART), values=values)
        assert refused.returncode == 1
        assert missing in refused.stderr


def test_a_pool_s_most_workers_are_no_fewer_than_its_least() -> None:
    scaling = {"enabled": True, "minReplicas": 3, "maxReplicas": 2}
    refused = run(
        "35", "template", "wharf", str(CHART), values=QUEUED | {"pools": [{"name": "a", "autoscaling": scaling}]}
    )
    assert "a has fewer autoscaling.maxReplicas than minReplicas" in refused.stderr


def test_two_pools_of_one_name_are_refused() -> None:
    refused = run("35", "template", "wharf", str(CHART), values=QUEUED | {"pools": [{"name": "a"}, {"name": "a"}]})
    assert "two have the name a" in refused.stderr


@pytest.mark.parametrize("release", WHEELS)
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"borker": {"replicas": 3}}, "borker"),
        ({"broker": {"replica": 3}}, "replica"),
        ({"broker": {"replicas": "three"}}, "replicas"),
        ({"broker": {"settings": {"MAX_FILE_BYTE": 1}}}, "MAX_FILE_BYTE"),
        ({"settings": {"DATABASE_URL": "postgresql://somebody:secret@db/wharf"}}, "DATABASE_URL"),
        ({"settings": {"PORT": 80}}, "PORT"),
        ({"settings": {"LOG_LEVEL": "loud"}}, "LOG_LEVEL"),
        ({"settings": {"FILE_RETENTION_DAYS": 0}}, "FILE_RETENTION_DAYS"),
        ({"settings": {"FILE_RETENTION_DAYS": "a week"}}, "FILE_RETENTION_DAYS"),
        ({"podSecurityContext": {"runAsRoot": True}}, "runAsRoot"),
        ({"broker": {"affinity": {"nodeAfinity": {}}}}, "nodeAfinity"),
        ({"networkPolicy": {"clients": [{"cidr": "10.0.0.0/8"}]}}, "cidr"),
        ({"poolDefaults": {"extraEnv": [{"name": "WHARF_MODEL", "value": "a"}]}}, "name"),
        ({"pools": [{"name": "a", "gpu": 1}]}, "gpu"),
        ({"pools": [{"model": "yolo11n"}]}, "name"),
        ({"pools": [{"name": "Yolo"}]}, "name"),
        ({"podLabels": {"app.kubernetes.io/name": "mine"}}, "app.kubernetes.io/name"),
        ({"cleanup": {"schedule": "often"}}, "schedule"),
        ({"telemetry": {"endpoint": "collector:4318"}}, "endpoint"),
        ({"telemetry": {"endpoint": "http://somebody:secret@collector:4318"}}, "endpoint"),
        ({"telemetry": {"sampler": "some"}}, "sampler"),
        ({"storage": {"accessModes": ["ReadWriteOncePod"]}}, "accessModes"),
        ({"cleanup": {"schedule": "@often"}}, "schedule"),
    ],
)
def test_a_value_that_nobody_knows_is_refused(values: dict[str, object], told: str, release: str) -> None:
    refused = run(release, "template", "wharf", str(CHART), values=QUEUED | values)
    assert refused.returncode == 1
    assert "values don't meet the specifications of the schema" in refused.stderr
    assert told in refused.stderr


def test_large_numbers_stay_numbers() -> None:
    [settings] = [o for o in objects("everything") if o["kind"] == "ConfigMap" and "WHARF_VOLUME" in o["data"]]
    assert settings["data"]["WHARF_HEADROOM_BYTES"] == "20000000000"
    assert settings["data"]["WHARF_FILE_RETENTION_DAYS"] == "7"


def test_what_a_value_says_of_ours_wins() -> None:
    found = rendered(
        QUEUED
        | {
            "ingress": {
                "enabled": True,
                "host": "h",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "1m"},
            },
            "podSecurityContext": {"fsGroup": 1000},
            "containerSecurityContext": {"readOnlyRootFilesystem": False},
        }
    )
    [ingress] = [o for o in found if o["kind"] == "Ingress"]
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"] == "1m"
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-request-buffering"] == "off"
    assert ingress["metadata"]["annotations"]["haproxy.router.openshift.io/timeout"] == "3600s"
    [broker] = [o for o in found if o["kind"] == "Deployment" and o["metadata"]["name"].endswith("-broker")]
    spec = broker["spec"]["template"]["spec"]
    assert (spec["securityContext"]["fsGroup"], spec["securityContext"]["runAsNonRoot"]) == (1000, True)
    context = spec["containers"][0]["securityContext"]
    assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (False, False)


def test_no_hook_but_the_tests() -> None:
    for name in VALUES:
        hooks = {
            o["kind"]: value
            for o in objects(name)
            for key, value in o["metadata"].get("annotations", {}).items()
            if key == "helm.sh/hook"
        }
        assert hooks == {"Pod": "test"}


def test_the_notes_warn_of_an_evaluation_and_of_models_to_register(tmp_path: Path) -> None:
    def notes(name: str) -> str:
        """Through a template of the test's own, since only an installation prints them."""
        shutil.copytree(CHART, tmp_path / name)
        templates = tmp_path / name / "templates"
        text = (templates / "NOTES.txt").read_text()
        (templates / "notes.yaml").write_text(
            f'{{{{- define "notes" }}}}{text}{{{{- end }}}}\nnotes: {{{{ include "notes" . | quote }}}}\nkind: Notes\n'
        )
        [found] = [o for o in rendered(VALUES[name], chart=tmp_path / name) if o["kind"] == "Notes"]
        return str(found["notes"])

    tried = notes("evaluation")
    assert "EVALUATION ONLY" in tried
    assert "-model " not in tried  # the only one is meant
    said = notes("gpu")
    assert "EVALUATION ONLY" not in said
    assert "    wharf predict bus.jpg --model yolo11n\n" in said
    assert "-F image=@bus.jpg -F model=yolo11n " in said
    assert "delete the claim wharf-wharfinger-files," in said
    assert "delete the claim" not in notes("little")
    [minutes] = re.findall(r"helm test wharf -n ml --logs --timeout (\d+)m", said)
    assert 60 * int(minutes) > trial.WAIT_SECONDS  # helm's own five minutes are over when the doctor's are
    assert "Workers of yolo11n wait" in said
    assert "Workers of street-scenes wait" not in said
    assert {"WHARF_API_KEY", "WHARF_SERVER"} == set(re.findall(r"export (\w+)=", said)), "as `wharf` reads them"


def test_its_version_is_the_product_s() -> None:
    project = (CHART.parents[1] / "pyproject.toml").read_text()
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert f'version = "{version}"' in project
