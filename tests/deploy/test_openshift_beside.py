"""deploy/openshift/model.yaml and secrets.yaml, the Templates beside the service's."""

import re
from typing import Any

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from tests.deploy.conftest import DEPLOY
from tests.support.openshift import process, references
from tests.support.pods import breaches, containers, environment, pods

Manifest = dict[str, Any]

MODEL = {"MODEL": "parcels", "MODEL_FILE": "/models/parcels.onnx", "IMAGE": "registry.example.com/ml/parcels:3"}
NEEDED = {"BROKER_IMAGE": "b:1", "WORKER_IMAGE": "w:1", "STORAGE_CLASS_NAME": "nfs"}
SECRETS = {"DATABASE_HOST": "db", "DATABASE_PASSWORD": "p%40ss", "QUEUE_HOST": "mq", "QUEUE_PASSWORD": "word"}


@pytest.fixture(scope="module")
def model_template() -> Manifest:
    return yaml.safe_load((DEPLOY / "openshift" / "model.yaml").read_text())


@pytest.fixture(scope="module")
def evaluation_template() -> Manifest:
    return yaml.safe_load((DEPLOY / "openshift" / "evaluation.yaml").read_text())


@pytest.fixture(scope="module")
def secrets_template() -> Manifest:
    return yaml.safe_load((DEPLOY / "openshift" / "secrets.yaml").read_text())


def test_the_job_registers_the_file_of_the_image_under_its_name(model_template: Manifest) -> None:
    [job] = process(model_template, MODEL)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == MODEL["IMAGE"]
    assert container["args"] == ["models", "add", "/models/parcels.onnx", "--name", "parcels", "--engine", "openvino"]
    assert {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {
        "/srv/wharf/models",
        "/tmp",
    }


def test_the_job_runs_as_the_template_s_workers_do(model_template: Manifest, template: Manifest) -> None:
    [job] = process(model_template, MODEL)
    service = process(template, NEEDED)
    worker = next(pod for name, pod in pods(service) if name == "Deployment/wharfinger-worker-yolo11n")
    [(_, pod)] = pods([job])
    assert breaches(pod) == []
    for key in ("serviceAccountName", "securityContext"):
        assert pod[key] == worker[key]
    assert pod["volumes"] == [volume for volume in worker["volumes"] if volume["name"] != "queue-ca"]
    database = environment(pod["containers"][0])["WHARF_DATABASE_URL"]
    assert database == environment(worker["containers"][0])["WHARF_DATABASE_URL"]


def test_no_disruption_budget_and_no_deployment_takes_the_job_s_pods_for_its_own(
    model_template: Manifest, template: Manifest
) -> None:
    [job] = process(model_template, MODEL)
    labels = job["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one["spec"]["selector"]["matchLabels"]
        for one in process(template, NEEDED)
        if one["kind"] in ("Deployment", "PodDisruptionBudget")
    ]
    assert len(selectors) >= 8
    assert not [selector for selector in selectors if selector.items() <= labels.items()]


def test_the_secrets_have_the_keys_that_the_service_s_template_reads(
    secrets_template: Manifest, template: Manifest
) -> None:
    made = {one["metadata"]["name"]: set(one["stringData"]) for one in process(secrets_template, SECRETS)}
    read: dict[str, set[str]] = {}
    for _, pod in pods(process(template, NEEDED)):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            for entry in environment(container).values():
                if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                    read.setdefault(reference["name"], set()).add(reference["key"])
    assert made == read


@pytest.mark.parametrize("name", ["secrets", "evaluation"])
def test_no_apply_can_change_the_passwords_of_a_running_service(name: str) -> None:
    """They are drawn anew each time that the Template is processed."""
    found = yaml.safe_load((DEPLOY / "openshift" / f"{name}.yaml").read_text())
    secrets = [one for one in process(found, SECRETS if name == "secrets" else {}) if one["kind"] == "Secret"]
    assert len(secrets) == 2
    assert all(secret["immutable"] is True for secret in secrets)


class TestEvaluation:
    def test_its_secrets_have_the_keys_that_the_service_s_template_reads(
        self, evaluation_template: Manifest, secrets_template: Manifest
    ) -> None:
        needed = {one["metadata"]["name"]: set(one["stringData"]) for one in process(secrets_template, SECRETS)}
        made = {
            one["metadata"]["name"]: set(one["stringData"])
            for one in process(evaluation_template, {})
            if one["kind"] == "Secret"
        }
        assert {name: keys - {"password"} for name, keys in made.items()} == needed

    def test_its_urls_lead_to_its_services_with_the_passwords_that_its_servers_get(
        self, evaluation_template: Manifest
    ) -> None:
        objects = process(evaluation_template, {"NAME": "two"})
        ports = {
            one["metadata"]["name"]: one["spec"]["ports"][0]["port"] for one in objects if one["kind"] == "Service"
        }
        database, queue = (one["stringData"] for one in objects if one["kind"] == "Secret")
        owner = conninfo_to_dict(database["owner-url"])
        assert (owner["user"], owner["password"], owner["dbname"]) == ("postgres", database["password"], "wharf")
        parts = [conninfo_to_dict(url) for key, url in database.items() if key != "password"]
        assert {(part["host"], int(part["port"])) for part in parts} == {("two-postgres", ports["two-postgres"])}
        assert len({part["user"] for part in parts}) == len({part["password"] for part in parts}) == 5
        assert queue["relay-url"] == f"amqp://wharf:{queue['password']}@two-rabbitmq:{ports['two-rabbitmq']}/%2F"
        servers = {
            variable: entry["valueFrom"]["secretKeyRef"]
            for _, pod in pods(objects)
            for variable, entry in environment(pod["containers"][0]).items()
            if "valueFrom" in entry
        }
        assert servers == {
            "POSTGRES_PASSWORD": {"name": "wharfinger-database", "key": "password"},
            "RABBITMQ_DEFAULT_PASS": {"name": "wharfinger-queue", "key": "password"},
        }

    def test_its_pods_need_no_more_than_restricted_v2_gives(self, evaluation_template: Manifest) -> None:
        found = {name: breaches(pod) for name, pod in pods(process(evaluation_template, {}))}
        assert found == {"StatefulSet/wharfinger-postgres": [], "StatefulSet/wharfinger-rabbitmq": []}

    def test_the_service_s_pods_reach_its_servers_whatever_port_template_yaml_opens(
        self, evaluation_template: Manifest, template: Manifest
    ) -> None:
        service = process(template, NEEDED)
        policies = {
            one["metadata"]["name"]: one["spec"]
            for one in process(evaluation_template, {})
            if one["kind"] == "NetworkPolicy"
        }
        assert set(policies) == {
            f"wharfinger-{name}" for name in ("postgres", "rabbitmq", "to-postgres", "to-rabbitmq")
        }
        for server, variable in (("postgres", "WHARF_DATABASE_URL"), ("rabbitmq", "WHARF_AMQP_URL")):
            clients = {
                one["metadata"]["labels"]["app.kubernetes.io/component"]
                for one in service
                for _, pod in pods([one])
                if any(variable in environment(container) for container in containers(pod))
            }
            [reach] = policies[f"wharfinger-to-{server}"]["egress"]
            [entry] = policies[f"wharfinger-{server}"]["ingress"]
            [target] = reach["to"]
            assert target["podSelector"] == policies[f"wharfinger-{server}"]["podSelector"]
            assert reach["ports"] == entry["ports"]
            for allowed in (policies[f"wharfinger-to-{server}"], entry["from"][0]):
                [matching] = allowed["podSelector"]["matchExpressions"]
                assert set(matching["values"]) == clients | {"doctor"}

    def test_none_of_its_objects_is_one_of_the_service_s(
        self, evaluation_template: Manifest, template: Manifest
    ) -> None:
        own, others = (
            {(one["kind"], one["metadata"]["name"]) for one in objects}
            for objects in (process(evaluation_template, {}), process(template, NEEDED))
        )
        assert not own & others


def test_each_login_has_a_user_and_a_new_password_of_its_own(secrets_template: Manifest) -> None:
    passwords = set()
    for _ in range(2):
        urls = process(secrets_template, SECRETS)[0]["stringData"]
        parts = {key: conninfo_to_dict(url) for key, url in urls.items()}
        assert {part["host"] for part in parts.values()} == {"db"}
        assert {part["sslmode"] for part in parts.values()} == {"require"}
        assert parts["owner-url"]["password"] == "p@ss"
        assert len({part["user"] for part in parts.values()}) == 5
        passwords |= {part["password"] for key, part in parts.items() if key != "owner-url"}
    assert len(passwords) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9]{40}", password) for password in passwords)


def test_the_queue_s_url_is_one_of_rabbitmq_over_tls(secrets_template: Manifest) -> None:
    urls = process(secrets_template, SECRETS)[1]["stringData"]
    assert set(urls.values()) == {"amqps://wharf:word@mq:5671/%2F"}


@pytest.mark.parametrize("name", ["model", "secrets", "evaluation"])
def test_every_parameter_is_described_and_used(name: str) -> None:
    found = yaml.safe_load((DEPLOY / "openshift" / f"{name}.yaml").read_text())
    assert all(parameter["description"] for parameter in found["parameters"])
    assert {parameter["name"] for parameter in found["parameters"]} == references(found["objects"])
