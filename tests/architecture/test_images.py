"""What the Containerfiles promise, read from them: building them is `make test-images`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "images"
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


def test_the_context_holds_no_data_and_no_tests() -> None:
    lines = [line for line in (ROOT / ".containerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    assert kept.isdisjoint({"data", "tests", "bench", ".venv", ".git", "."})
    assert (ROOT / ".dockerignore").readlink() == Path(".containerignore")
