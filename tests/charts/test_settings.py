"""Environment variables that the chart sets are settings of the process that reads them."""

import json

import pytest
from pydantic_settings import BaseSettings

from broker.maintenance.cleanup.settings import CleanupSettings
from broker.maintenance.migrate.settings import MigrateSettings
from broker.maintenance.verify.settings import VerifySettings
from broker.relay.settings import RelaySettings
from broker.settings import BrokerSettings
from contracts import chart
from custody.settings import load
from inference_worker.command import GIVE_BACK_SECONDS, check_consumer_timeout
from inference_worker.settings import WorkerSettings
from standalone.models import AddSettings
from standalone.reach import ReachSettings
from tests.charts.rendering import CHART, VALUES, Pods, objects, pods_of, rendered

PROCESSES: dict[str, tuple[type[BaseSettings], ...]] = {
    "broker": (BrokerSettings,),
    "relay": (RelaySettings,),
    "worker": (WorkerSettings,),
    "cleanup": (CleanupSettings,),
    "verify": (VerifySettings,),
    "migrate": (MigrateSettings,),
    "models": (AddSettings, ReachSettings),
}
ANYWHERE = {"WHARF_INSTANCE", "WHARF_DIRECT_DATABASE_URL"}
"""Given to all alike, and not asked for by each."""
CLIENT = {"WHARF_URL", "WHARF_API_KEY"}
"""What the SDK reads, of which the test's pod is one user."""


def known(process: str) -> set[str]:
    if process == "doctor":
        return CLIENT
    fields = {name for settings in PROCESSES[process] for name in settings.model_fields}
    return {f"WHARF_{name.upper()}" for name in fields} | ANYWHERE


def ours(name: str) -> list[Pods]:
    return [pods for pods in pods_of(objects(name)) if pods.is_ours]


@pytest.mark.parametrize("name", VALUES)
def test_every_variable_is_a_setting_of_its_process(name: str) -> None:
    for pods in ours(name):
        for container in pods.containers:
            process = container["args"][0]
            given = {one["name"] for one in container["env"] if one["name"].startswith("WHARF_")}
            assert given - known(process) == set(), f"{pods.name}, {container['name']}"


@pytest.mark.parametrize("name", VALUES)
def test_what_all_processes_are_given_is_a_setting_of_one_of_them(name: str) -> None:
    everywhere = set().union(*(known(process) for process in PROCESSES))
    for found in objects(name):
        if found["kind"] == "ConfigMap" and found["metadata"]["name"].endswith("-settings"):
            assert found["data"].keys() - everywhere == set()


@pytest.mark.parametrize("name", VALUES)
def test_processes_start_with_what_they_are_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for pods in ours(name):
        for container in pods.containers:
            classes = PROCESSES.get(container["args"][0], ())
            with monkeypatch.context() as patched:
                for variable, value in pods.environment(container, objects(name)).items():
                    patched.setenv(variable, value if isinstance(value, str) else "a-secret")
                for settings in classes:
                    loaded = load(settings)
                    if isinstance(loaded, WorkerSettings):
                        check_consumer_timeout(loaded)


@pytest.mark.parametrize("name", VALUES)
def test_a_pod_may_take_as_long_to_end_as_its_process(name: str) -> None:
    for pods in ours(name):
        if pods.component in ("broker", "worker"):
            [container] = pods.spec["containers"]
            given = pods.environment(container, objects(name))
            longest = float(given["WHARF_DRAIN_SECONDS"]) + float(given.get("WHARF_LEAVE_SECONDS", "0"))
            assert pods.spec["terminationGracePeriodSeconds"] >= longest + GIVE_BACK_SECONDS + 5
            if pods.component == "worker":
                assert float(given["WHARF_DRAIN_SECONDS"]) > float(given["WHARF_TASK_SECONDS"])


@pytest.mark.parametrize("name", VALUES)
def test_a_slow_start_is_ended_by_the_worker_before_the_cluster_does_it(name: str) -> None:
    """So that its log says why."""
    for pods in ours(name):
        for container in pods.containers:
            if container["args"][0] == "worker":
                probe = container["startupProbe"]
                given = float(pods.environment(container, objects(name))["WHARF_START_SECONDS"])
                assert 0 < given <= probe["periodSeconds"] * probe["failureThreshold"]


def test_the_schema_lets_no_secret_and_nothing_of_the_chart_s_own_through() -> None:
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    allowed = {name for key, one in definitions.items() if key.endswith("ettings") for name in one["properties"]}
    assert "MAX_FILE_BYTES" in allowed
    assert not allowed & {"DATABASE_URL", "DIRECT_DATABASE_URL", "AMQP_URL", "INSTANCE", "VOLUME", "HEALTH_PORT"}
    assert chart.schema() == (CHART / "values.schema.json").read_text()


def test_a_value_without_a_description_is_not_forgotten() -> None:
    with pytest.raises(ValueError, match=r"a\.c is not described"):
        list(chart.described("a:\n  # -- One\n  b: 1\n  c: 2\n"))
    assert list(chart.described("# -- All\na:\n  b: 1\nc:\n  # -- One,\n  # and more\n  d: [1]\n")) == [
        ("a", {"b": 1}, "All"),
        ("c.d", [1], "One, and more"),
    ]


@pytest.mark.parametrize("name", VALUES)
def test_with_a_pooler_each_process_is_told_of_the_server_behind_it(name: str) -> None:
    for pods in ours(name):
        for container in pods.containers:
            given = pods.environment(container, objects(name))
            if "WHARF_DATABASE_URL" in given:
                key = given["WHARF_DATABASE_URL"]["secretKeyRef"]["key"]
                direct = given.get("WHARF_DIRECT_DATABASE_URL", {}).get("secretKeyRef", {}).get("key")
                assert direct == (f"{key}-direct" if name == "everything" else None)
    if name == "everything":
        [policy] = [each for each in objects(name) if each["metadata"]["name"].endswith("-to-database")]
        assert [port["port"] for port in policy["spec"]["egress"][0]["ports"]] == [6432, 5432]


def test_a_pool_may_say_all_that_the_defaults_say() -> None:
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    pool, defaults = properties["pools"]["items"]["properties"], properties["poolDefaults"]["properties"]
    assert {name: schema for name, schema in pool.items() if name != "name"} == defaults


def test_what_works_on_pictures_sends_traces_where_the_values_say_so() -> None:
    for pods in ours("everything"):
        for container in pods.containers:
            told = {one["name"]: one for one in container["env"] if one["name"].startswith("OTEL_")}
            if container["args"][0] not in ("broker", "relay", "worker"):
                assert told == {}
                continue
            assert told["OTEL_EXPORTER_OTLP_ENDPOINT"]["value"] == "http://collector.monitoring:4318"
            assert told["OTEL_TRACES_SAMPLER"]["value"] == "parentbased_traceidratio"
            assert told["OTEL_TRACES_SAMPLER_ARG"]["value"] == "0.01"
            key = {"secretKeyRef": {"name": "collector", "key": "headers"}}
            assert told["OTEL_EXPORTER_OTLP_HEADERS"]["valueFrom"] == key
    assert "OTEL_" not in str(objects("external"))
    assert "to-collector" not in str(objects("external"))


def test_a_worker_keeps_what_it_compiles_in_tmp_which_has_room_for_it_unless_the_pool_says_otherwise() -> None:
    for given, expected in ({}, "/tmp/compiled"), ({"COMPILED_FOLDER": "/cache"}, "/cache"):
        pool = {"name": "page", "settings": given}
        made = rendered({"pools": [pool], "database": {"existingSecret": "db"}, "queue": {"existingSecret": "mq"}})
        named = [each for each in made if each["metadata"]["name"].endswith("-worker-page")]
        [worker] = [each for each in named if each["kind"] == "Deployment"]
        pod = worker["spec"]["template"]["spec"]
        environment = pod["containers"][0]["env"]
        assert [each["value"] for each in environment if each["name"] == "WHARF_COMPILED_FOLDER"] == [expected]
        [tmp] = [each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == "tmp"]
        assert int(tmp.removesuffix("Gi")) << 30 > WorkerSettings.model_fields["compiled_bytes"].default
