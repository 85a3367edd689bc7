"""The chart takes the values that `wharf plan` tells."""

import pytest

from standalone.plan.capacity import Load, plan
from standalone.plan.command import chart_values
from tests.charts.rendering import rendered


@pytest.mark.parametrize(("device", "queue"), [("cpu", True), ("l4", False)])
def test_the_values_of_a_plan_render_as_many_pods_as_it_has(device: str, queue: bool) -> None:
    load = Load(50.0, 5.0, 2e6, 86400.0, 86400.0, device=device, queue=queue)
    found = plan(load)
    values = chart_values(load, found) | {
        "database": {"existingSecret": "db"},
        "pools": [{"name": "page"}],
    }
    values["queue"] = {"existingSecret": "mq"} | values.get("queue", {})
    replicas = {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"]["replicas"]
        for each in rendered(values)
        if each["kind"] == "Deployment"
    }
    expected = {"broker": found.brokers, "relay": found.relays, "worker": found.workers}
    assert replicas == {name: count for name, count in expected.items() if count}
