"""Images take minutes, root and podman: `make test-images` is a target of its own."""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from standalone.postgres import Postgres
from tests.conftest import ROOT
from tests.images.building import build, make_base
from tests.images.node import Manifest
from tests.images.podman import Podman
from tests.support.openshift import process
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ

collect_ignore_glob = [] if os.environ.get("WHARF_TEST_IMAGES") else ["test_*.py"]

FOLDER = ROOT / ".venv-images"


@pytest.fixture(scope="session")
def podman() -> Podman:
    return Podman(FOLDER)


@pytest.fixture(scope="session")
def images(podman: Podman) -> Mapping[str, str]:
    """The names of those that are built here: the GPU's takes CUDA's wheels, of several gigabytes."""
    make_base(podman, FOLDER)
    return {image: build(podman, FOLDER, image, "tested") for image in ("broker", "worker-cpu")}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """As a claim is handed out: it belongs to root and to group 0, which may write."""
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o770)
    return folder


@pytest.fixture
def secrets(postgres: Postgres, rabbitmq: RabbitMQ, vhost: str) -> Iterator[list[Manifest]]:
    """With the URLs of an empty database and of a virtual host."""
    place = conninfo_to_dict(postgres.url())
    name = f"images_{time.time_ns()}"
    # Its socket is its user's alone: a container comes in by TCP.
    socket = Path(str(place["host"])) / f".s.PGSQL.{place['port']}"
    with psycopg.connect(postgres.url("postgres", "postgres"), autocommit=True) as connection, Proxy(socket) as proxy:
        connection.execute(f"CREATE DATABASE {name}")
        wishes = {
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(proxy.port),
            "DATABASE_NAME": name,
            "DATABASE_OPTIONS": "sslmode=disable",
            "DATABASE_PASSWORD": "any",
            "QUEUE_SCHEME": "amqp",
            "QUEUE_HOST": "127.0.0.1",
            "QUEUE_PORT": str(rabbitmq.port),
            "QUEUE_VHOST": quote(vhost, safe=""),
            "QUEUE_USER": rabbitmq.user,
            "QUEUE_PASSWORD": rabbitmq.password,
        }
        yield process(yaml.safe_load((ROOT / "deploy" / "openshift" / "secrets.yaml").read_text()), wishes)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
