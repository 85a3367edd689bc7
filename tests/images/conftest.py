"""Images take minutes, root and podman: `make test-images` is a target of its own."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.images.building import build, make_base
from tests.images.podman import Podman

collect_ignore = [] if os.environ.get("WHARF_TEST_IMAGES") else ["test_images.py", "test_pods.py"]

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
