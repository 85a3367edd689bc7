"""deploy/compose.yaml as it is shipped, brought up by podman-compose: a picture in, boxes out, down, and up again.

PostgreSQL and RabbitMQ are stand-ins under the official images' names: Debian 12's packages (PostgreSQL 15, RabbitMQ
3.10) with as much of those images' ways as the file relies on (tests/images/stand_ins). So nothing is learnt here of
the official images, of their versions, and of docker. Before 4.6 podman cannot wait until something is healthy: all
start at once, and what came too early comes again by its restart policy. Health checks it leaves to systemd's timers:
here the test runs each."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import starter_model
from tests.conftest import ROOT
from tests.e2e import boxes
from tests.e2e.service import free_port, until
from tests.images.building import build_stand_in
from tests.images.podman import Podman
from wharfinger import Client

pytestmark = pytest.mark.timeout(2400)

CHECKED = ("postgres", "rabbitmq", "broker", "relay", "worker", "cleanup", "verify")
UP_SECONDS = 180
LABEL = "io.podman.compose.service"


@dataclass(frozen=True)
class Host:
    """A folder as deploy/README.md tells to make it. `url`: of its API."""

    podman: Podman
    folder: Path
    url: str

    def compose(self, *arguments: str) -> str:
        podman, *options = self.podman.command
        command = [sys.executable, "-m", "podman_compose", "--podman-path", podman, "--podman-args", " ".join(options)]
        ended = subprocess.run(
            [*command, *arguments],
            cwd=self.folder,
            env=self.podman.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def containers(self) -> dict[str, str]:
        """Podman's id of each service's."""
        listed = json.loads(self.podman("ps", "--all", "--format", "json", "--filter", f"label={LABEL}"))
        return {one["Labels"][LABEL]: one["Id"] for one in listed}

    def up(self) -> None:
        """Returns once every health check passes."""
        self.compose("up", "--detach")
        for service in CHECKED:
            until(partial(self._healthy, service), f"{service} is healthy", UP_SECONDS)

    def _healthy(self, service: str) -> bool:
        container = self.containers()[service]
        command = [*self.podman.command, "healthcheck", "run", container]
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
    host.compose("down")
    assert host.containers() == {}
    host.up()
    with Client(host.url, api_key=key) as client:
        assert list(client.jobs.results(job.id)) == job.results
        [file] = [file for file in client.files.list() if file.sha256 == result.sha256]
        content = io.BytesIO()
        client.files.download(file.id, content)
        assert content.getvalue() == starter_model.PAGE.read_bytes()
        assert client.predict(starter_model.PAGE, model="digits").state == "succeeded"
