"""What the Containerfiles promise, read from them: building them is `make test-images`."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import uvloop

from tests.conftest import ROOT
from tests.support.collector import Collector
from tests.support.kubernetes_api import kubernetes_api

FOLDER = ROOT / "deploy" / "images"
pack = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("pack", FOLDER / "pack.py"))
spec.loader.exec_module(pack)
CONTAINERFILES = sorted(FOLDER.glob("Containerfile.*"))
REGISTRY = re.compile(r"\b[\w-]+(?:\.[\w-]+)*\.(?:io|com|org|net|dev)/[\w./-]+:[\w.-]+")


def test_there_is_a_containerfile_for_each_image() -> None:
    assert [path.suffix for path in CONTAINERFILES] == [".broker", ".worker-cpu", ".worker-gpu"]


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.suffix[1:])
def test_an_image_is_built_on_the_base_that_was_asked_for_and_runs_as_nobody_without_a_shell(path: Path) -> None:
    text = path.read_text()
    [base] = REGISTRY.findall(text)
    assert base.endswith("/library/python:3.11-slim-bookworm")
    assert f"\nARG BASE={base}\n" in text
    final = text.split("\nFROM ")[-1]
    assert final.startswith("${BASE}\n")
    # Nothing is done in the last stage that a shell would be needed for.
    assert "\nRUN " not in final
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE)[-1] == "10001:0"
    assert re.findall(r"^(?:ENTRYPOINT|CMD) (.+)$", final, re.MULTILINE)[0] == '["wharf"]'
    assert f'org.opencontainers.image.title="wharfinger-{path.suffix[1:]}"' in final


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.suffix[1:])
def test_every_package_of_an_image_is_pinned(path: Path) -> None:
    installs = [line for line in path.read_text().replace("\\\n", " ").splitlines() if "/pip" in line]
    asked = [part for line in installs for part in line.split("&&") if " install " in part and "--no-index" not in part]
    assert asked
    assert [part for part in asked if "-c constraints.txt" not in part] == []


@pytest.mark.parametrize("path", CONTAINERFILES, ids=lambda path: path.suffix[1:])
def test_an_image_brings_the_extras_of_what_it_runs(path: Path) -> None:
    [extras] = re.findall(r"requirements\.py (.+) >packages\.txt", path.read_text())
    wanted = {
        ".broker": "broker cluster telemetry",
        ".worker-cpu": "telemetry worker",
        ".worker-gpu": "telemetry worker ultralytics",
    }
    assert extras == wanted[path.suffix]


def test_the_broker_has_no_model_library_and_the_cpu_worker_no_torch() -> None:
    broker, cpu, gpu = (requirements(*extras) for extras in (["broker"], ["worker"], ["worker", "ultralytics"]))
    assert {"numpy", "openvino", "opencv-python-headless", "torch", "wharfinger"} & broker == set()
    assert {"fastapi", "psycopg", "pika", "httpx"} <= broker
    assert {"openvino", "psycopg", "pika"} <= cpu
    assert {"torch", "fastapi", "wharfinger"} & cpu == set()
    assert cpu | {"torch", "ultralytics"} <= gpu


def requirements(*extras: str) -> set[str]:
    """Names of the packages that an image's extras bring, as its build asks for them."""
    command = [sys.executable, str(FOLDER / "requirements.py"), *extras]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {re.match(r"[\w.-]+", line)[0] for line in lines}


OPENED = """
import sys
from importlib.metadata import entry_points
from pathlib import Path

from broker.kubernetes import Kubernetes
from custody.spans import tracing

for command in entry_points(group="wharf.commands"):
    command.load()
Kubernetes.connect(Path(sys.argv[1])).pods("app=wharf")
with tracing("test", instance="test", release="1") as traced:
    traced.begin("work", "server", parent=None, at_ns=1).end(at_ns=2)
opened = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
print(*sorted(filter(None, opened)), sep="\\n")
"""


def test_no_process_opens_what_the_images_leave_out(tmp_path: Path) -> None:
    packages = Path(sysconfig.get_path("purelib"))
    out = {found for patterns in pack.UNUSED.values() for pattern in patterns for found in packages.glob(pattern)}
    assert {packages / "kubernetes" / "aio", packages / "pygments" / "lexers" / "python.py"} <= out
    assert packages / "google" / "api" in out
    with kubernetes_api(rights={("list", "pods")}) as api, Collector() as collector:
        command = [sys.executable, "-c", OPENED, str(api.kubeconfig(tmp_path))]
        environment = {**os.environ, **collector.environment}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        assert [span.name for span in collector.spans] == ["work"]
    opened = [Path(line) for line in ended.stdout.splitlines()]
    assert packages / "kubernetes" / "client" / "rest.py" in opened
    assert packages / "opentelemetry" / "sdk" / "trace" / "__init__.py" in opened
    assert [path for path in opened if out & {path, *path.parents}] == []


def test_a_library_works_without_what_stands_behind_its_last_segment(tmp_path: Path) -> None:
    shutil.copytree(Path(uvloop.__file__).parent, tmp_path / "uvloop")
    [library] = (tmp_path / "uvloop").glob("loop.*.so")
    whole = library.stat().st_size
    pack.cut_symbols(library)
    cut = library.read_bytes()
    assert len(cut) < whole / 2
    code = "import asyncio, uvloop; print(uvloop.__file__, uvloop.run(asyncio.sleep(0, 7)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(tmp_path / "uvloop" / "__init__.py"), "7"]
    pack.cut_symbols(library)
    assert library.read_bytes() == cut


def test_the_context_holds_no_data_and_no_tests() -> None:
    lines = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    assert kept.isdisjoint({"data", "tests", "bench", ".venv", ".git", "."})
    assert (ROOT / ".dockerignore").readlink() == Path(".containerignore")
