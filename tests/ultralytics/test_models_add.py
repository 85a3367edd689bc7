"""`wharf models add` with a .pt, and workers that serve a .pt: the real processes on a real database."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import httpx
import numpy as np
import psycopg
import pytest

from custody.models import name_of
from custody.wire import Detection, Parameters
from inference_worker.decode import decode
from inference_worker.engines.openvino import OpenVINOEngine
from tests.conftest import Installation
from tests.e2e import service
from tests.support.shared import BUS, SHARED, ZIDANE, needs_shared
from tests.ultralytics.agreement import assert_same_boxes, pixels
from tests.ultralytics.networks import NAMES, SIDE, scene, write_pt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from inference_worker.engines.ultralytics import UltralyticsEngine

pytestmark = pytest.mark.filterwarnings("ignore")


def add(installation: Installation, *words: object) -> "subprocess.CompletedProcess[str]":
    settings = {"WHARF_DATABASE_URL": installation.url("wharf_worker"), "WHARF_VOLUME": str(installation.volume)}
    command = [sys.executable, "-m", "wharfinger", "models", "add", *map(str, words)]
    environment = service.clean_environment(settings)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def registered(installation: Installation) -> list[tuple[object, ...]]:
    with psycopg.connect(installation.url()) as connection:
        return connection.execute("SELECT name, version, task, path FROM wharf.models ORDER BY version").fetchall()


def on_the_volume(installation: Installation) -> list[Path]:
    return sorted(path for path in (installation.volume / "models").rglob("*") if path.is_file())


@needs_shared
def test_the_forms_of_a_pt_give_the_boxes_of_the_pt(installation: Installation) -> None:
    source = SHARED / "models" / "yolo11n.pt"
    ended = add(installation, source)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("yolo11n version 1: detect, 80 classes, input 640 x 640\ndigest ")
    [(_, _, _, path)] = registered(installation)
    onnx = installation.volume / str(path)
    ir = onnx.parent / "yolo11n_openvino_model" / "yolo11n.xml"
    theirs = UltralyticsEngine(source, 2, "f32")
    for form in (onnx, ir):
        ours = OpenVINOEngine(form, 2, "f32")
        assert ours.description == theirs.description
        for photo in (BUS, ZIDANE):
            seen = decode(photo.read_bytes(), "image/jpeg", 1)
            found, expected = ours.infer(seen, Parameters(conf=0.1)), theirs.infer(seen, Parameters(conf=0.1))
            assert len(expected) > 3
            assert_same_boxes(found, expected, pixels(seen.width, seen.height), f"{form.name} {photo.name}")


def test_the_digests_are_recorded_and_the_same_pt_is_the_same_version(
    installation: Installation, tmp_path: Path
) -> None:
    source = write_pt(tmp_path / "Shapes of ours.pt", "detect")
    first, second = add(installation, source), add(installation, source)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout == second.stdout
    [(name, version, task, path)] = registered(installation)
    assert (name, version, task) == ("shapes-of-ours", 1, "detect")
    folder = (installation.volume / str(path)).parent
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr
    assert check.stdout.count(": OK") == 4
    digest = first.stdout.splitlines()[1].removeprefix("digest ")
    assert f"{digest}  Shapes of ours.onnx" in (folder / "SHA256SUMS").read_text()
    assert not [path for path in on_the_volume(installation) if path.suffix == ".pt"]


def test_other_tasks_are_added_for_the_ultralytics_engine(installation: Installation, tmp_path: Path) -> None:
    source = write_pt(tmp_path / "parts.pt", "segment")
    refused = add(installation, source)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{source} is a model for the task segment" in refused.stderr
    assert "WHARF_ENGINE=ultralytics" in refused.stderr
    assert (registered(installation), on_the_volume(installation)) == ([], [])
    ended = add(installation, source, "--engine", "ultralytics")
    assert ended.returncode == 0, ended.stderr
    [(name, _, task, path)] = registered(installation)
    assert (name, task) == ("parts", "segment")
    seen = decode(jpeg(), "image/jpeg", 1)
    wanted = Parameters(conf=0.5, iou=0.2, max_detections=10)
    theirs = UltralyticsEngine(source, 2, "f32").infer(seen, wanted)
    ours = UltralyticsEngine(installation.volume / str(path), 2, "f32").infer(seen, wanted)
    assert_same_boxes(ours, theirs, pixels(810, 1080, SIDE), "onnx")
    assert all(each.mask is not None for each in ours)


@pytest.mark.parametrize("kind", ["malicious", "cut", "text"])
def test_what_cannot_be_exported_leaves_nothing_behind(kind: str, installation: Installation, tmp_path: Path) -> None:
    import torch

    class Malice:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    source = tmp_path / "bad.pt"
    match kind:
        case "malicious":
            torch.save({"model": Malice()}, source)
        case "cut":
            whole = write_pt(tmp_path / "whole.pt", "detect").read_bytes()
            source.write_bytes(whole[: len(whole) // 2])
        case "text":
            source.write_text("no model")
    refused = add(installation, source)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"wharf models add: {source} cannot be exported")
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "ran").exists()
    assert (registered(installation), on_the_volume(installation)) == ([], [])


def jpeg() -> bytes:
    target = io.BytesIO()
    scene(810, 1080).save(target, "JPEG", quality=95)
    return target.getvalue()


def test_a_worker_serves_a_pt_and_the_api_answers_with_what_its_task_adds(
    installation: Installation, tmp_path: Path
) -> None:
    source = write_pt(tmp_path / "joints.pt", "pose")
    processes = service.Installation(tmp_path, installation.url)
    processes.volume = installation.volume
    try:
        running = processes.migrate()
        processes.broker()
        worker = processes.worker("w1", WHARF_MODEL=str(source), WHARF_ENGINE="ultralytics", WHARF_SLOTS="1")
        service.start_worker(worker)
        [(name, version, task, path)] = registered(installation)
        assert (name, version, task) == (name_of(str(source)), 1, "pose")
        assert str(path).endswith("/joints.pt")
        with running.client() as client:
            fields = {"conf": "0.5", "iou": "0.2", "max_detections": "5"}
            answer = client.post(
                "/v1/predict", files={"image": ("a.jpg", jpeg())}, data=fields, headers={"Prefer": "wait=30"}
            )
        assert answer.status_code == httpx.codes.OK, answer.text
        [result] = answer.json()["results"]
    finally:
        processes.stop()
    assert result["error"] is None
    assert len(result["detections"]) == 5
    assert {frozenset(each) for each in result["detections"]} == {
        frozenset({"class_id", "label", "confidence", "box", "keypoints"})
    }
    expected = UltralyticsEngine(source, 1, "f32").infer(
        decode(jpeg(), "image/jpeg", 1, fit=(SIDE, SIDE)), Parameters(conf=0.5, iou=0.2, max_detections=5)
    )
    found = [Detection(**each) for each in result["detections"]]
    assert_same_boxes(found, expected, pixels(810, 1080, SIDE), "through the API")
    assert {each.label for each in found} <= set(NAMES.values())
    for each, other in zip(found, expected, strict=True):
        assert each.keypoints is not None
        assert other.keypoints is not None
        places = [[(point.x, point.y) for point in points] for points in (each.keypoints, other.keypoints)]
        np.testing.assert_allclose(*places, atol=pixels(810, 1080, SIDE))


def test_a_worker_without_ultralytics_advises_to_add_a_pt(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "joints.pt").write_bytes(b"a pickle")
    processes = service.Installation(tmp_path, installation.url)
    processes.volume = installation.volume
    try:
        worker = processes.worker("w1", WHARF_MODEL=str(tmp_path / "joints.pt"))
        worker.start()
        assert worker.ended() == 1
        assert f"wharf models add {tmp_path / 'joints.pt'}" in worker.output()
    finally:
        processes.stop()
    assert on_the_volume(installation) == []
