"""deploy/compose.yaml and compose-init: the settings that each process gets are ones it knows, and nothing is laxer
than in a cluster."""

import re
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict
from pydantic_settings import BaseSettings

from broker.maintenance.cleanup.settings import CleanupSettings
from broker.maintenance.migrate.settings import MigrateSettings
from broker.maintenance.verify.settings import VerifySettings
from broker.relay.settings import RelaySettings
from broker.settings import BrokerSettings
from contracts.rendering import CHART, ROOT, STARTER_MODEL, VERSION
from custody.settings import load
from inference_worker.settings import WorkerSettings
from tests.deploy.conftest import DEPLOY
from tests.support.pods import pods

SETTINGS: Mapping[str, type[BaseSettings]] = {
    "migrate": MigrateSettings,
    "broker": BrokerSettings,
    "relay": RelaySettings,
    "worker": WorkerSettings,
    "cleanup": CleanupSettings,
    "verify": VerifySettings,
}
ROLES = {"broker": "wharf_api", "relay": "wharf_relay", "worker": "wharf_worker", "cleanup": "wharf_cleanup"}
REFERENCE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@dataclass(frozen=True)
class Host:
    """A folder with compose.yaml, where compose-init has been run."""

    folder: Path
    services: Mapping[str, Any]

    def environment(self, service: str) -> dict[str, str]:
        found = {}
        for file in self.services[service].get("env_file", []):
            found |= variables(self.folder / file)
        return found | self.services[service].get("environment", {})


def variables(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def interpolated(node: Any, given: Mapping[str, str]) -> Any:
    """As compose does it once the file is read: ${A:-default} and ${A:?complaint}."""
    if isinstance(node, dict):
        return {key: interpolated(value, given) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolated(one, given) for one in node]

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if kind == "?":
            assert given.get(name), f"{name}: {rest}"
        return given.get(name) or (rest if kind == "-" else "")

    return REFERENCE.sub(value, node) if isinstance(node, str) else node


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp("host")
    for name in ("compose.yaml", "compose-init"):
        shutil.copy(DEPLOY / name, folder)
    subprocess.run([folder / "compose-init"], check=True, capture_output=True)
    document = yaml.safe_load((folder / "compose.yaml").read_text())
    return Host(folder, interpolated(document["services"], variables(folder / ".env")))


def test_its_services_are_the_whole_service(host: Host) -> None:
    assert set(host.services) == {"postgres", "rabbitmq", "starter-model", "models", *SETTINGS}
    assert {name for name, service in host.services.items() if "profiles" in service} == {"models"}


@pytest.mark.parametrize("service", sorted(SETTINGS))
def test_a_process_knows_every_setting_that_it_gets_and_starts_with_them(
    service: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, environment = SETTINGS[service], host.environment(service)
    known = {f"WHARF_{name.upper()}" for name in settings.model_fields}
    assert set(environment) <= known
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    load(settings)


def test_each_process_has_a_login_of_its_own_that_the_migration_makes(host: Host) -> None:
    users = set()
    secrets = {
        secret["source"]: secret["target"] for secret in host.services["migrate"]["secrets"] if isinstance(secret, dict)
    }
    command = host.services["migrate"]["command"]
    folder = command[command.index("--logins") + 1]
    assert secrets == {role: f"{folder}/{role}" for role in ROLES.values()}
    for service, role in ROLES.items():
        url = host.environment(service)["WHARF_DATABASE_URL"]
        assert (host.folder / "secrets" / "logins" / role).read_text().strip() == url
        users.add((conninfo_to_dict(url)["user"], conninfo_to_dict(url)["password"]))
    assert len({user for user, _ in users}) == len({password for _, password in users}) == len(ROLES)
    owner = conninfo_to_dict(host.environment("migrate")["WHARF_DATABASE_URL"])
    assert owner["password"] == host.environment("postgres")["POSTGRES_PASSWORD"]
    assert owner["dbname"] == host.environment("postgres")["POSTGRES_DB"]


def test_rabbitmq_takes_the_user_of_relay_and_worker(host: Host) -> None:
    queue = host.environment("rabbitmq")
    wanted = f"amqp://{queue['RABBITMQ_DEFAULT_USER']}:{queue['RABBITMQ_DEFAULT_PASS']}@rabbitmq:5672/%2F"
    assert {host.environment(service)["WHARF_AMQP_URL"] for service in ("relay", "worker")} == {wanted}


def test_the_admins_key_has_the_form_of_a_key(host: Host) -> None:
    assert re.fullmatch(r"wharf_[A-Za-z0-9]{43}\n", (host.folder / "secrets" / "admin-key").read_text())


def test_the_secrets_are_for_nobody_else_to_read(host: Host) -> None:
    files = [path for path in (host.folder / "secrets").rglob("*") if path.is_file()]
    assert len(files) == 12
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((host.folder / "secrets").stat().st_mode) == 0o700


def test_a_second_run_changes_nothing(host: Host) -> None:
    before = {path: path.read_bytes() for path in host.folder.rglob("*") if path.is_file()}
    subprocess.run([host.folder / "compose-init"], check=True, capture_output=True)
    assert {path: path.read_bytes() for path in host.folder.rglob("*") if path.is_file()} == before


def test_every_service_is_as_narrow_as_in_a_cluster(host: Host) -> None:
    for name, service in host.services.items():
        user, _, group = service["user"].partition(":")
        assert int(user) > 0, name
        assert name in ("postgres", "rabbitmq") or group == "0"
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "/tmp" in service["tmpfs"], name
        assert "mem_limit" in service, name
        assert "privileged" not in service, name


def test_only_the_broker_listens_on_the_host_and_there_on_loopback(host: Host) -> None:
    assert {name: service["ports"] for name, service in host.services.items() if "ports" in service} == {
        "broker": ["127.0.0.1:8000:8000"]
    }
    assert {name for name, service in host.services.items() if "outside" in service["networks"]} == {"broker"}


def test_a_process_has_longer_to_end_than_it_takes_to_drain(host: Host) -> None:
    for service in ("broker", "worker"):
        drain = float(host.environment(service)["WHARF_DRAIN_SECONDS"])
        assert int(host.services[service]["stop_grace_period"].removesuffix("s")) >= drain + 10


def test_every_process_is_asked_for_its_health_where_it_answers(host: Host) -> None:
    for service in ("broker", "relay", "worker", "cleanup", "verify"):
        [url] = re.findall(r'urlopen\("([^"]+)"', host.services[service]["healthcheck"]["test"][-1])
        port = "port" if service == "broker" else "health_port"
        listens = host.environment(service).get(f"WHARF_{port.upper()}", SETTINGS[service].model_fields[port].default)
        assert re.fullmatch(rf"http://127\.0\.0\.1:{listens}/(livez|readyz)", url), service


def test_the_worker_starts_with_a_model_that_its_image_has(host: Host) -> None:
    command = host.services["starter-model"]["command"]
    assert command == ["models", "add", STARTER_MODEL, "--name", host.environment("worker")["WHARF_MODEL"]]
    assert host.services["worker"]["depends_on"]["starter-model"] == {"condition": "service_completed_successfully"}
    assert (ROOT / "starter_model" / Path(STARTER_MODEL).name).exists()


def test_a_worker_has_memory_for_a_slot_on_each_of_its_cpus_as_the_chart_s(host: Host) -> None:
    """Without a limit it would have one for each CPU of the host."""
    limits = yaml.safe_load((CHART / "values.yaml").read_text())["poolDefaults"]["resources"]["limits"]
    worker = host.services["worker"]
    assert (str(worker["cpus"]), worker["mem_limit"]) == (limits["cpu"], limits["memory"].replace("Gi", "g"))


def test_postgres_has_as_many_connections_as_in_a_cluster(host: Host) -> None:
    evaluation = yaml.safe_load((DEPLOY / "openshift" / "evaluation.yaml").read_text())
    [postgres] = [pod for name, pod in pods(evaluation["objects"]) if name.endswith("-postgres")]
    assert host.services["postgres"]["command"] == postgres["containers"][0]["args"]


def test_what_needs_another_waits_for_it(host: Host) -> None:
    needs = {name: set(service.get("depends_on", ())) for name, service in host.services.items()}
    assert needs.pop("postgres") == needs.pop("rabbitmq") == set()
    assert needs.pop("migrate") == {"postgres"}
    assert all("migrate" in needed for needed in needs.values())
    assert {name for name, needed in needs.items() if "rabbitmq" in needed} == {"relay", "worker"}


def test_what_ends_well_is_not_started_again_and_everything_else_is(host: Host) -> None:
    restarts = {name: service["restart"] for name, service in host.services.items()}
    assert {name for name, when in restarts.items() if when != "unless-stopped"} == {
        "migrate",
        "starter-model",
        "models",
    }


def test_the_worker_reads_the_volume_and_never_writes(host: Host) -> None:
    volumes = {
        name: service["volumes"] for name, service in host.services.items() if name in SETTINGS and name != "relay"
    }
    assert {name for name, mounts in volumes.items() if mounts[0].get("read_only")} == {"worker"}
    assert {mounts[0]["target"] for mounts in volumes.values()} == {"/srv/wharf"}


def test_the_migration_is_asked_for_what_the_cluster_asks_it_for(host: Host, template: Mapping[str, Any]) -> None:
    [job] = [one for one in template["objects"] if one["kind"] == "Job"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    options = [word for word in container["args"] if not word.startswith("/")]
    assert [word for word in host.services["migrate"]["command"] if not word.startswith("/")] == options


def test_its_images_are_those_of_the_chart(host: Host) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    broker, worker = f"{values['image']['broker']}:{VERSION}", f"{values['image']['workerCpu']}:{VERSION}"
    assert {name: service["image"] for name, service in host.services.items()} == {
        "postgres": values["evaluation"]["postgres"]["image"],
        "rabbitmq": values["evaluation"]["rabbitmq"]["image"],
        **dict.fromkeys(("migrate", "broker", "relay", "cleanup", "verify"), broker),
        **dict.fromkeys(("worker", "starter-model", "models"), worker),
    }


def test_no_secret_is_in_the_file() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert not re.search(r"://[^/\s]*:[^/\s]*@|PASSWORD|_PASS\b|wharf_[A-Za-z0-9]{20}", text)
