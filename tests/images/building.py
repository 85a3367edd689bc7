"""What the images are built on and with where no registry of images can be reached."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.conftest import ROOT
from tests.images.podman import Podman

CONTAINERFILE = ROOT / "deploy" / "images" / "Containerfile.broker"
BASE = next(line for line in CONTAINERFILE.read_text().splitlines() if line.startswith("ARG BASE="))[len("ARG BASE=") :]
"""What the Containerfiles build on. Ours is a stand-in of that name: Debian 12 with Debian's own Python 3.11."""

PACKAGES = "ca-certificates,python3,python3-venv"
# What slim images leave away as well.
REMOVED = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")


def make_base(podman: Podman, folder: Path) -> None:
    """Nothing happens where it is there from a former run."""
    if podman.has(BASE):
        return
    tree = folder / "base"
    shutil.rmtree(tree, ignore_errors=True)
    _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(tree))
    for name in REMOVED:
        shutil.rmtree(tree / name, ignore_errors=True)
        (tree / name).mkdir()
    archive = folder / "base.tar"
    _run("tar", "--create", "--numeric-owner", f"--file={archive}", f"--directory={tree}", ".")
    paths = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    podman("import", "--change", f"ENV {paths}", "--change", 'CMD ["python3"]', str(archive), BASE, seconds=300)
    shutil.rmtree(tree)
    archive.unlink()


def build(podman: Podman, folder: Path, image: str, tag: str) -> str:
    """The image's name, built from the real Containerfile by `make images`."""
    options = ["--pull=never", "--network=host", *(f"--volume={mount}" for mount in _pip_as_here(folder))]
    command = ["make", "--no-print-directory", "-C", str(ROOT), "images"]
    variables = [f"IMAGES={image}", f"TAG={tag}", f"CONTAINERS={' '.join(podman.command)}"]
    print(f"\nBuilding {image}", flush=True)  # noqa: T201
    ended = subprocess.run(
        [*command, *variables, f"BUILD_OPTIONS={' '.join(options)}", "REGISTRY=localhost", "BASE="],
        env=podman.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    return f"localhost/wharfinger-{image}:{tag}"


def build_stand_in(podman: Podman, image: str) -> None:
    """Of an official image, with what stand_ins/ says under its name."""
    folder = Path(__file__).with_name("stand_ins")
    containerfile = folder / f"Containerfile.{image.partition(':')[0]}"
    options = ("--pull=never", "--network=host", f"--build-arg=BASE={BASE}", f"--file={containerfile}")
    print(f"\nBuilding a stand-in of {image}", flush=True)  # noqa: T201
    podman("build", *options, f"--tag=docker.io/library/{image}", str(folder), seconds=900)


def _pip_as_here(folder: Path) -> Iterator[str]:
    """Mounts with which a build's pip is configured as this machine's, and finds the same files at the same places."""
    listed = _run(sys.executable, "-m", "pip", "config", "list")
    settings: dict[str, str] = {}
    # What the environment says comes first, and counts.
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
    configuration = folder / "pip.conf"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    configuration.write_text("\n".join(["[global]", *lines, ""]))
    yield f"{configuration}:/etc/pip.conf:ro"
    for place in dict.fromkeys(place for value in settings.values() for place in _places(value)):
        if place.exists():
            yield f"{place}:{place}:ro"


def _places(value: str) -> Iterator[Path]:
    for word in value.split():
        if word.startswith("file://"):
            # An index's pages refer to files beside it.
            yield Path(unquote(urlsplit(word).path)).parent
        elif word.startswith("/"):
            yield Path(word)


def _run(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(command)}:\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"
    return ended.stdout
