"""The real Containerfiles, and what is built of them, run as a cluster runs it: any uid, a read-only root, no
capability, and no shell."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import starter_model
from standalone.postgres import Postgres
from tests.e2e.service import free_port
from tests.images.building import BASE
from tests.images.podman import UID, Podman
from tests.support.proxy import Proxy
from tests.support.shared import BUS, YOLO11N
from wharfinger import Client

pytestmark = pytest.mark.timeout(2400)

MEGABYTES = {"broker": 250, "worker-cpu": 600}
READY_SECONDS = 120


@pytest.mark.parametrize("image", MEGABYTES)
def test_an_image_is_no_larger_than_it_may_be(podman: Podman, images: Mapping[str, str], image: str) -> None:
    base, size = podman.megabytes(BASE), podman.megabytes(images[image])
    print(f"\n{images[image]}: {size:.0f} MB of {MEGABYTES[image]}; the stand-in base has {base:.0f}")  # noqa: T201
    assert base < size < MEGABYTES[image]


@pytest.mark.parametrize("image", MEGABYTES)
def test_an_image_says_what_it_is_and_runs_as_nobody(podman: Podman, images: Mapping[str, str], image: str) -> None:
    found = podman.configuration(images[image])
    assert found["User"] == "10001:0"
    assert found["Entrypoint"] == ["wharf"]
    labels = found["Labels"]
    assert isinstance(labels, dict)
    titles = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert titles["title"] == f"wharfinger-{image}"
    assert titles["base.name"] == BASE
    assert titles["version"] not in ("", "unknown")
    assert len(titles["revision"]) == 40


POOR = """
import os, subprocess
print(os.getuid(), os.getgid())
print(next(line for line in open("/proc/self/status") if line.startswith("CapEff")).split()[1])
for path in ("/new", "/opt/wharf/new", "/srv/wharf/new", "/tmp/new"):
    try:
        open(path, "w")
    except OSError as error:
        print(path, error.strerror)
try:
    subprocess.run("true", shell=True)
except OSError as error:
    print(error.filename, error.strerror)
"""


@pytest.mark.parametrize("image", MEGABYTES)
def test_a_container_of_these_tests_has_no_rights(podman: Podman, images: Mapping[str, str], image: str) -> None:
    said = podman.run(images[image], "-c", POOR, options=["--entrypoint=python"]).splitlines()
    refused = [f"{place}/new Read-only file system" for place in ("", "/opt/wharf", "/srv/wharf")]
    assert said == [f"{UID} 0", "0" * 16, *refused, "/bin/sh Permission denied"]


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    name = f"images_{time.time_ns()}"
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield name
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_picture_goes_in_and_its_boxes_come_out_of_containers_without_rights(
    podman: Podman,
    images: Mapping[str, str],
    postgres: Postgres,
    database: str,
    amqp_url: str,
    volume: Path,
    tmp_path: Path,
) -> None:
    model, picture = (YOLO11N, BUS) if YOLO11N.is_file() else (starter_model.MODEL, starter_model.PAGE)
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o770)
    shutil.copy(model, own / "model.onnx")
    (own / "model.onnx").chmod(0o440)
    place = conninfo_to_dict(postgres.url())
    broker, worker = images["broker"], images["worker-cpu"]
    api_port, relay_port, worker_port = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        # Its socket is its user's alone: a container comes in by TCP.
        port = stack.enter_context(Proxy(Path(str(place["host"])) / f".s.PGSQL.{place['port']}")).port

        def environment(role: str, **settings: str) -> dict[str, str]:
            url = f"postgresql://{role}@127.0.0.1:{port}/{database}"
            return {"WHARF_DATABASE_URL": url, "WHARF_INSTANCE": role, **settings}

        everything = f"{volume}:/srv/wharf"
        files = {"WHARF_VOLUME": "/srv/wharf"}
        podman.run(
            broker,
            *("migrate", "--first-key", "/own/key"),
            environment=environment("postgres", **files),
            mounts=[everything, f"{own}:/own"],
        )
        for image, role in ((broker, "wharf_api"), (worker, "wharf_worker")):
            podman.run(image, "migrate", "--wait", "30", environment=environment(role))
        # As the chart mounts it for a worker, and, to register a model, for its init container.
        identity = f"{volume}/volume-id:/srv/wharf/volume-id:ro"
        podman.run(
            worker,
            *("models", "add", "/own/model.onnx", "--name", "things"),
            environment=environment("wharf_worker", **files),
            mounts=[identity, f"{volume}/models:/srv/wharf/models", f"{own}:/own:ro"],
        )
        api = stack.enter_context(
            podman.running(
                broker,
                environment=environment("wharf_api", WHARF_HOST="127.0.0.1", WHARF_PORT=str(api_port), **files),
                mounts=[everything],
            )
        )
        relay = stack.enter_context(
            podman.running(
                broker,
                "relay",
                environment=environment("wharf_relay", WHARF_AMQP_URL=amqp_url, WHARF_HEALTH_PORT=str(relay_port)),
            )
        )
        working = stack.enter_context(
            podman.running(
                worker,
                environment=environment(
                    "wharf_worker",
                    WHARF_AMQP_URL=amqp_url,
                    WHARF_MODEL="things",
                    WHARF_HEALTH_PORT=str(worker_port),
                    **files,
                ),
                mounts=[identity, *(f"{volume}/{name}:/srv/wharf/{name}:ro" for name in ("blobs", "models"))],
            )
        )
        for container, its_port in ((api, api_port), (relay, relay_port), (working, worker_port)):
            _until_ready(podman, container, its_port)

        with Client(f"http://127.0.0.1:{api_port}", api_key=(own / "key").read_text().strip()) as client:
            job = client.predict(picture)
            assert job.results is not None
            [result] = job.results
            assert result.detections, result
            found = Counter(detection.label for detection in result.detections)
            print(f"\n{picture.name}: {dict(found)}")  # noqa: T201
            if picture == BUS:
                assert found["bus"] == 1
                assert found["person"] >= 3
            held = [path for path in (volume / "blobs").rglob("*") if path.is_file()]
            assert [path.name for path in held] == [result.sha256]
            assert {path.stat().st_uid for path in held} == {int(UID)}
            assert {path.stat().st_gid for path in held} == {0}
            [file] = client.files.list()
            client.files.delete(file.id)

        podman.run(broker, "cleanup", "--now", environment=environment("wharf_cleanup", **files), mounts=[everything])
        assert [path for path in held if path.exists()] == []
        podman.run(broker, "verify", environment=environment("wharf_cleanup", **files), mounts=[everything])


def _until_ready(podman: Podman, container: str, port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"A container was not ready in {READY_SECONDS} s:\n{podman.log(container)}")
