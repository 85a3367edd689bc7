"""The real Containerfiles, and what is built of them, run as a cluster runs it: any uid, a read-only root, no
capability, and no shell."""

from collections.abc import Mapping

import pytest

from tests.images.building import BASE
from tests.images.podman import UID, Podman

pytestmark = pytest.mark.timeout(2400)

MEGABYTES = {"broker": 250, "worker-cpu": 600}


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
