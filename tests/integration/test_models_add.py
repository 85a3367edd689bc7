"""`wharf models add` with files that the openvino engine takes, as an operator runs it. A .pt: tests/ultralytics."""

import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from subprocess import PIPE

import psycopg
import pytest

import starter_model
from tests.conftest import Installation
from tests.support.networks import dense_output, write_network

DIGEST = sha256(starter_model.MODEL.read_bytes()).hexdigest()


def add(installation: Installation, *words: object, **settings: str | None) -> "subprocess.CompletedProcess[str]":
    """`settings` with None are unset."""
    return run(installation, "models", "add", *words, **settings)


def run(installation: Installation, *words: object, **settings: str | None) -> "subprocess.CompletedProcess[str]":
    given = {
        "WHARF_DATABASE_URL": installation.url("wharf_worker"),
        "WHARF_VOLUME": str(installation.volume),
        **settings,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHARF_", "XDG_"))}
    command = [sys.executable, "-m", "wharfinger", *map(str, words)]
    return subprocess.run(
        command,
        env=kept | {name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=60,
    )


def registered(installation: Installation) -> list[tuple[object, ...]]:
    with psycopg.connect(installation.url()) as connection:
        return connection.execute(
            "SELECT name, version, encode(digest, 'hex'), task, path FROM wharf.models ORDER BY name, version"
        ).fetchall()


def on_the_volume(installation: Installation) -> list[str]:
    folder = installation.volume / "models"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_model_is_registered_under_its_file_s_name_and_lies_on_the_volume(installation: Installation) -> None:
    ended = add(installation, starter_model.MODEL)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[:2] == [
        "digits version 1: detect, 10 classes, input 320 x 320",
        f"digest {DIGEST}",
    ]
    path = f"models/digits/{DIGEST[:16]}/digits.onnx"
    assert registered(installation) == [("digits", 1, DIGEST, "detect", path)]
    assert (installation.volume / path).read_bytes() == starter_model.MODEL.read_bytes()
    again = add(installation, starter_model.MODEL)
    assert again.stdout == ended.stdout
    assert len(registered(installation)) == len(on_the_volume(installation)) == 1


def test_a_name_of_its_own_is_a_model_of_its_own(installation: Installation) -> None:
    assert add(installation, starter_model.MODEL, "--name", "house-numbers").returncode == 0
    [(name, version, digest, _, path)] = registered(installation)
    assert (name, version, digest) == ("house-numbers", 1, DIGEST)
    assert path == f"models/house-numbers/{DIGEST[:16]}/digits.onnx"


def test_a_file_s_name_alone_makes_no_new_version_of_another_model(installation: Installation, tmp_path: Path) -> None:
    assert add(installation, starter_model.MODEL).returncode == 0
    before = registered(installation), on_the_volume(installation)
    other = write_network(tmp_path / "digits.onnx", dense_output([], classes=3))
    refused = add(installation, other)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "There is a model digits already, with other bytes. Say --name digits" in refused.stderr
    assert (registered(installation), on_the_volume(installation)) == before
    assert "digits version 2: detect, 3 classes, input 96 x 64" in add(installation, other, "--name", "digits").stdout


def test_a_worker_refuses_a_model_that_was_changed_on_the_volume(installation: Installation) -> None:
    assert add(installation, starter_model.MODEL).returncode == 0
    [(_, _, _, _, path)] = registered(installation)
    (installation.volume / str(path)).write_bytes(starter_model.MODEL.read_bytes()[:-1] + b"?")
    refused = run(installation, "worker", "--model", "digits", WHARF_INSTANCE="w", WHARF_HEALTH_PORT="0")
    assert refused.returncode == 1
    assert f"wharf worker: The model digits was changed on the volume: {path}" in refused.stderr


@pytest.mark.parametrize("name", ["Digits", "a b", "-x", "x" * 64, "digits.onnx", "../digits", ""])
def test_a_name_that_no_model_may_have_is_refused(installation: Installation, name: str) -> None:
    refused = add(installation, starter_model.MODEL, f"--name={name}")
    assert refused.returncode == 1
    assert "cannot be a model's name" in refused.stderr
    assert (registered(installation), on_the_volume(installation)) == ([], [])


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("gone.onnx", None, "There is no model file .*gone.onnx"),
        ("text.onnx", b"no model", "text.onnx cannot be read as a model"),
        ("weights.txt", b"no model", "weights.txt is of no known model format"),
        ("alone.xml", b"<net/>", "alone.bin is missing"),
        ("weights.engine", b"for a GPU", "weights.engine is neither .onnx nor .xml"),
        ("gone.pt", None, "There is no model file .*gone.pt"),
        ("cut.onnx", "half", "cut.onnx cannot be read as a model"),
        ("segments.onnx", "segment", "segments.onnx is a model for the task segment.*WHARF_ENGINE=ultralytics"),
    ],
)
def test_what_is_no_model_leaves_nothing_behind(
    installation: Installation, file: str, data: bytes | str | None, message: str, tmp_path: Path
) -> None:
    match data:
        case bytes():
            (tmp_path / file).write_bytes(data)
        case "half":
            (tmp_path / file).write_bytes(starter_model.MODEL.read_bytes()[:100_000])
        case "segment":
            write_network(tmp_path / file, dense_output([], classes=3), metadata={"task": "segment"})
    refused = add(installation, tmp_path / file)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("wharf models add: ")
    assert "Traceback" not in refused.stderr
    assert re.search(message, refused.stderr, re.DOTALL)
    assert (registered(installation), on_the_volume(installation)) == ([], [])


def test_without_a_service_it_says_what_to_set(installation: Installation, tmp_path: Path) -> None:
    nowhere = add(installation, starter_model.MODEL, WHARF_DATABASE_URL=None, WHARF_DATA=str(tmp_path))
    assert nowhere.returncode == 1
    assert f"no service runs in {tmp_path}" in nowhere.stderr
    assert "WHARF_DATABASE_URL" in nowhere.stderr
    half = add(installation, starter_model.MODEL, WHARF_VOLUME=None)
    assert (half.returncode, half.stderr) == (
        1,
        "wharf models add: WHARF_VOLUME is not set; for example WHARF_VOLUME=/srv/wharf\n",
    )


def test_it_refuses_another_role_and_another_installation_s_volume(installation: Installation, tmp_path: Path) -> None:
    refused = add(installation, starter_model.MODEL, WHARF_DATABASE_URL=installation.url("wharf_api"))
    assert refused.returncode == 1
    assert "needs wharf_worker" in refused.stderr
    shutil.copytree(installation.volume / "staging", tmp_path / "staging")
    refused = add(installation, starter_model.MODEL, WHARF_VOLUME=str(tmp_path))
    assert refused.returncode == 1
    assert str(tmp_path) in refused.stderr
    assert registered(installation) == []


def test_a_wait_ends_once_the_model_is_registered_and_not_before(installation: Installation) -> None:
    given = {"WHARF_DATABASE_URL": installation.url("wharf_worker"), "WHARF_VOLUME": str(installation.volume)}
    command = [sys.executable, "-m", "wharfinger", "models", "wait", "digits"]
    with subprocess.Popen(command, env=os.environ | given, stdout=PIPE, stderr=PIPE, text=True) as waiting:
        try:
            assert waiting.stderr is not None
            assert waiting.stderr.readline().startswith("No model digits is registered yet: wharf models add ")
            assert waiting.poll() is None
            added = add(installation, starter_model.MODEL)
            assert added.returncode == 0, added.stderr
            printed, _ = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
    assert (waiting.returncode, printed) == (0, "The model digits is registered.\n")
