"""Alerts and dashboards ask for metrics that there are, and lead to runbooks that there are."""

import json
import re

import pytest
from prometheus_client import CollectorRegistry

from broker.maintenance.cleanup.metrics import CleanupMetrics
from broker.maintenance.verify.metrics import VerifyMetrics
from broker.metrics import BrokerMetrics
from broker.relay.metrics import RelayMetrics
from broker.room import Room
from custody.pressure import Watermarks
from custody.volume import Volume
from inference_worker.metrics import WorkerMetrics
from tests.charts.rendering import CHART, QUEUED, objects, rendered, selects
from tests.conftest import ROOT

METRIC = re.compile(r"\bwharf_[a-z_]+\b")


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names as Prometheus stores them, of processes that it reads: not of those that come and go."""
    broker = BrokerMetrics()
    broker.watch(Room(Volume(ROOT, instance="charts"), Watermarks(0.95, 0.9, 1)))
    names: set[str] = set()
    for registry in (broker.registry, RelayMetrics().registry, WorkerMetrics().registry):
        names |= _names(registry)
    assert not names & _names(VerifyMetrics().registry)
    assert "wharf_cleanup_runs_total" in _names(CleanupMetrics().registry) - names
    return names


def _names(registry: CollectorRegistry) -> set[str]:
    found: set[str] = set()
    for metric in registry.collect():
        match metric.type:
            case "counter":
                found.add(f"{metric.name}_total")
            case "histogram":
                found |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
            case _:
                found.add(metric.name)
    return found


def rules() -> list[dict[str, object]]:
    [found] = [o for o in objects("everything") if o["kind"] == "PrometheusRule"]
    [group] = found["spec"]["groups"]
    return list(group["rules"])


def test_alerts_ask_for_metrics_that_are_exported(exported: set[str]) -> None:
    for rule in rules():
        asked = set(METRIC.findall(str(rule["expr"])))
        assert asked
        assert asked - exported == set(), rule["alert"]
        assert str(rule["expr"]).count('namespace="ml"') == len(METRIC.findall(str(rule["expr"])))


def test_dashboards_ask_for_metrics_that_are_exported(exported: set[str]) -> None:
    dashboards = sorted((CHART / "dashboards").glob("*.json"))
    assert len(dashboards) == 2
    for path in dashboards:
        board = json.loads(path.read_text())
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            for target in panel["targets"]:
                asked = set(METRIC.findall(target["expr"]))
                assert asked
                assert asked - exported == set(), panel["title"]


def test_dashboards_come_whole_in_their_config_maps() -> None:
    found = [o for o in objects("everything") if o["metadata"]["name"].startswith("wharf-wharfinger-dashboard-")]
    assert len(found) == 2
    for config in found:
        assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
        [(file, text)] = config["data"].items()
        assert json.loads(text) == json.loads((CHART / "dashboards" / file).read_text())


def test_each_alert_has_a_runbook() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    chapter = page.partition("## Alerts and their runbooks")[2].partition("\n## ")[0]
    sections = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-"): text
        for title, text in re.findall(r"^### ([^\n]+)\n\n(.+?)(?=^### |\Z)", chapter, re.DOTALL | re.MULTILINE)
    }
    led_to = set()
    for rule in rules():
        annotations = rule["annotations"]
        assert isinstance(annotations, dict)
        before, _, anchor = annotations["runbook_url"].partition("#")
        assert before == "docs/operations.md"
        assert f"`{rule['alert']}`" in sections[anchor]
        led_to.add(anchor)
    assert led_to == sections.keys()


def test_alerts_name_their_own_namespace_and_the_page_that_is_wanted() -> None:
    values = QUEUED | {"monitoring": {"rules": {"enabled": True, "runbookUrl": "https://wiki.example.com/wharf"}}}
    [found] = [o for o in rendered(values) if o["kind"] == "PrometheusRule"]
    text = json.dumps(found)
    assert "NAMESPACE" not in text
    assert "https://wiki.example.com/wharf#a-pool-is-stuck" in text
    values["queue"] = {"enabled": False}
    [found] = [o for o in rendered(values) if o["kind"] == "PrometheusRule"]
    assert "wharf_relay" not in json.dumps(found)


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [
        ("*/15 * * * *", 900),
        ("7 * * * *", 3600),
        ("0 */6 * * *", 6 * 3600),
        ("30 3 * * *", 86400),
        ("0 3 * * 0", 7 * 86400),
        ("0 3 1 * *", 31 * 86400),
        ("0 3 */2 * *", 2 * 86400),
        ("@weekly", 7 * 86400),
    ],
)
def test_a_cleanup_is_overdue_by_its_own_schedule(schedule: str, seconds: int) -> None:
    values = QUEUED | {"monitoring": {"rules": {"enabled": True}}, "cleanup": {"schedule": schedule, "maxSeconds": 100}}
    found = rendered(values)
    [job] = [o for o in found if o["kind"] == "CronJob" and o["metadata"]["name"].endswith("-cleanup")]
    [group] = next(o for o in found if o["kind"] == "PrometheusRule")["spec"]["groups"]
    late, never = [rule for rule in group["rules"] if rule["alert"] == "WharfCleanupOverdue"]
    wanted = 2 * seconds + job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert late["expr"].endswith(f"> {wanted}")
    assert never["for"] == f"{wanted}s"


def test_no_cleanup_is_overdue_where_none_is_wanted() -> None:
    values = QUEUED | {"monitoring": {"rules": {"enabled": True}}, "cleanup": {"enabled": False}}
    assert "WharfCleanupOverdue" not in json.dumps(rendered(values))


def test_monitors_find_the_port_of_the_metrics() -> None:
    found = {o["kind"]: o for o in objects("everything") if o["kind"] in ("ServiceMonitor", "PodMonitor")}
    [service] = [
        o
        for o in objects("everything")
        if o["kind"] == "Service" and selects(found["ServiceMonitor"]["spec"]["selector"], o["metadata"]["labels"])
    ]
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert found["ServiceMonitor"]["spec"]["endpoints"][0]["port"] in ports
    assert found["ServiceMonitor"]["metadata"]["labels"]["release"] == "prometheus"
    wanted = found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"]
    for deployment in objects("everything"):
        if deployment["kind"] == "Deployment":
            [container] = deployment["spec"]["template"]["spec"]["containers"]
            assert wanted in {port["name"] for port in container["ports"]}


def test_metrics_are_not_where_the_api_is() -> None:
    [service] = [o for o in objects("external") if o["kind"] == "Service"]
    assert [port["name"] for port in service["spec"]["ports"]] == ["http"]
