"""deploy/compose.yaml as it is shipped, brought up by podman-compose: a picture in, boxes out, down, and up again.

PostgreSQL and RabbitMQ are stand-ins under the official images' names: Debian 12's packages (PostgreSQL 15, RabbitMQ
3.10) with as much of those images' ways as the file relies on (tests/images/stand_ins). So nothing is learnt here of
the official images, of their versions, and of docker. Two things that docker does are done by the test: it runs each
health check, which podman leaves to systemd's timers, and brings a service up once what `depends_on` says is so: podman
4.3 cannot wait for health, and starts nothing that requires what has ended."""

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import starter_model
from tests.conftest import ROOT
from tests.e2e import boxes
from tests.e2e.service import free_port
from tests.images.building import build_stand_in
from tests.images.podman import Podman
from wharfinger import Client

pytestmark = pytest.mark.timeout(2400)

UP_SECONDS = 180
LABEL = "io.podman.compose.service"


@dataclass(frozen=True)
class Host:
    """A folder as deploy/README.md tells to make it. `url`: of its API."""

    podman: Podman
    folder: Path
    url: str

    def compose(self, *arguments: str) -> None:
        podman, *options = self.podman.command
        ours = ["--podman-path", podman, "--podman-args", " ".join(options)]
        # As docker: a read-only root leaves the image's /run as it is.
        ours.append("--podman-run-args=--read-only-tmpfs=false")
        ended = subprocess.run(
            [sys.executable, "-m", "podman_compose", *ours, *arguments],
            cwd=self.folder,
            env=self.podman.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stdout

    def containers(self) -> dict[str, str]:
        """Podman's id of each service's."""
        listed = json.loads(self.podman("ps", "--all", "--format", "json", "--filter", f"label={LABEL}"))
        return {one["Labels"][LABEL]: one["Id"] for one in listed}

    def up(self) -> None:
        """Returns once every health check passes."""
        services = yaml.safe_load((self.folder / "compose.yaml").read_text())["services"]
        left = {name: service for name, service in services.items() if "profiles" not in service}
        checked = [name for name, service in left.items() if "healthcheck" in service]
        deadline = time.monotonic() + UP_SECONDS
        while left or not all(map(self._healthy, checked)):
            assert time.monotonic() < deadline, self.podman("ps", "--all")
            due = [name for name, service in left.items() if self._fulfilled(service.get("depends_on", {}))]
            if due:
                self.compose("up", "--detach", "--no-deps", *due)
            left = {name: service for name, service in left.items() if name not in due}
            time.sleep(0.5)

    def _fulfilled(self, needs: Mapping[str, Mapping[str, str]]) -> bool:
        return all(self._is(need["condition"], service) for service, need in needs.items())

    def _is(self, condition: str, service: str) -> bool:
        container = self.containers().get(service)
        match condition:
            case _ if container is None:
                return False
            case "service_healthy":
                return self._healthy(service)
            case "service_completed_successfully":
                state = json.loads(self.podman("inspect", "--format", "{{json .State}}", container))
                return (state["Status"], state["ExitCode"]) == ("exited", 0)
            case _:
                raise ValueError(condition)

    def _healthy(self, service: str) -> bool:
        command = [*self.podman.command, "healthcheck", "run", self.containers()[service]]
        return subprocess.run(command, env=self.podman.environment, capture_output=True).returncode == 0


@pytest.fixture
def host(podman: Podman, images: Mapping[str, str], tmp_path: Path) -> Iterator[Host]:
    for name in ("postgres:17", "rabbitmq:4"):
        build_stand_in(podman, name)
    for name in ("compose.yaml", "compose-init"):
        shutil.copy(ROOT / "deploy" / name, tmp_path)
    subprocess.run([tmp_path / "compose-init"], check=True, capture_output=True)
    listening = f"127.0.0.1:{free_port()}"
    given = {
        "WHARF_BROKER_IMAGE": images["broker"],
        "WHARF_WORKER_IMAGE": images["worker-cpu"],
        "WHARF_LISTEN": listening,
    }
    with (tmp_path / ".env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in given.items())
    host = Host(podman, tmp_path, f"http://{listening}")
    try:
        yield host
    finally:
        host.compose("down", "--volumes")


def test_what_one_host_was_given_is_there_after_down_and_up_again(host: Host) -> None:
    host.up()
    key = (host.folder / "secrets" / "admin-key").read_text().strip()
    with Client(host.url, api_key=key) as client:
        job = client.predict(starter_model.PAGE, model="digits")
        assert job.results is not None
        [result] = job.results
        boxes.assert_same(boxes.seen(result.model_dump()), boxes.digits())
    add_a_model(host, "mine")
    host.compose("down")
    assert host.containers() == {}
    host.up()
    with Client(host.url, api_key=key) as client:
        assert list(client.jobs.results(job.id)) == job.results
        [file] = [file for file in client.files.list() if file.sha256 == result.sha256]
        content = io.BytesIO()
        client.files.download(file.id, content)
        assert content.getvalue() == starter_model.PAGE.read_bytes()
        assert client.predict(starter_model.PAGE, model="mine").state == "succeeded"


def add_a_model(host: Host, name: str) -> None:
    """As deploy/README.md tells to (docker needs no `--profile`). Workers serve it once they are brought up again."""
    shutil.copyfile(starter_model.MODEL, host.folder / "file.onnx")
    mount = f"{host.folder}/file.onnx:/model/{name}.onnx:ro"
    run = ("--profile", "models", "run", "--rm", "--no-deps", "-T")
    host.compose(*run, "-v", mount, "models", "add", f"/model/{name}.onnx")
    with (host.folder / ".env").open("a") as file:
        file.write(f"WHARF_MODEL={name}\n")
