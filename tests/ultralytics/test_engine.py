"""The ultralytics engine: against the openvino engine with the same weights, against ultralytics' own predict for every
task, and on what is no model."""

import asyncio
import io
import os
import pickle
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from custody.ids import new_id
from custody.wire import Detection, Parameters, Point
from inference_worker.decode import Picture, decode
from inference_worker.engines import EngineError, ModelDescription
from inference_worker.engines.openvino import OpenVINOEngine
from inference_worker.lines import read_answer, write_answer
from inference_worker.outcomes import Done, Retry, Work
from inference_worker.pipeline import Pipeline
from inference_worker.slots import Slots
from tests.support.shared import SHARED, YOLO11N, needs_shared
from tests.ultralytics.agreement import CONFIDENCE_ERROR, assert_same_boxes, pixels, sides
from tests.ultralytics.networks import MAKERS, NAMES, SIDE, scene, write_pt
from tests.ultralytics.test_same_boxes import photos

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import ultralytics
    from ultralytics.nn.tasks import DepthModel

    from inference_worker.engines.ultralytics import LIKELIEST, MASK_POINTS, UltralyticsEngine, _mask
    from inference_worker.engines.yolo import Letterbox

pytestmark = pytest.mark.filterwarnings("ignore")

LIVELY = Parameters(conf=0.5, iou=0.2, max_detections=20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A .pt of each task."""
    folder = tmp_path_factory.mktemp("weights")
    return {task: write_pt(folder / f"{task}.pt", task) for task in MAKERS}


def picture(width: int = 810, height: int = 1080) -> Picture:
    return Picture(np.array(scene(width, height)), width, height)


def jpeg(image: Image.Image) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=95)
    return target.getvalue()


# Against the openvino engine


@cache
def openvino() -> OpenVINOEngine:
    return OpenVINOEngine(YOLO11N, 2, "f32")


@needs_shared
@pytest.mark.parametrize("name", ["yolo11n.pt", "yolo11n.onnx"])
@pytest.mark.parametrize(
    ("fit", "parameters"),
    [
        (None, Parameters()),
        (None, Parameters(conf=0.1, iou=0.9, max_detections=7)),
        ((640, 640), Parameters(conf=0.05)),
    ],
    ids=["whole", "whole, other parameters", "decoded smaller"],
)
def test_it_finds_the_boxes_that_the_openvino_engine_finds(
    name: str, fit: tuple[int, int] | None, parameters: Parameters
) -> None:
    engine = UltralyticsEngine(SHARED / "models" / name, 2, "f32")
    assert engine.description == openvino().description
    for photo, data in photos().items():
        media_type = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        seen = decode(data, media_type, 6 if photo == "bus-on-its-side" else 1, fit=fit)
        found, others = engine.infer(seen, parameters), openvino().infer(seen, parameters)
        assert bool(others) == (photo != "black")
        assert_same_boxes(found, others, pixels(seen.width, seen.height), photo)


# Against ultralytics' own predict


def own_predict(path: Path, pixels: NDArray[np.uint8], parameters: Parameters) -> Any:
    """As its users call it, with the whole input letterboxed."""
    [result] = ultralytics.YOLO(str(path)).predict(
        cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
        imgsz=SIDE,
        rect=False,
        conf=parameters.conf,
        iou=parameters.iou,
        max_det=parameters.max_detections,
        device="cpu",
        verbose=False,
    )
    return result.numpy()


@pytest.mark.parametrize("scale", [1, 2, 4], ids=["whole", "decoded at a half", "decoded at a quarter"])
@pytest.mark.parametrize("task", MAKERS)
def test_it_sees_what_ultralytics_sees(task: str, scale: int, weights: dict[str, Path]) -> None:
    engine = UltralyticsEngine(weights[task], 2, "f32")
    assert engine.description == ModelDescription(task, tuple(NAMES.values()), SIDE, SIDE)
    seen = picture()
    whole = Picture(seen.pixels, seen.width * scale, seen.height * scale)
    engine.warm_up()
    found = engine.infer(whole, LIVELY)
    own = own_predict(weights[task], seen.pixels, LIVELY)
    error = pixels(whole.width, whole.height, SIDE)
    if task == "classify":
        assert_same_classes(found, own, whole)
        return
    boxes = own.obb if task == "obb" else own.boxes
    assert len(found) == len(boxes) > 3
    for index, detection in enumerate(found):
        assert detection.class_id == boxes.cls[index]
        assert detection.label == NAMES[detection.class_id]
        assert detection.confidence == pytest.approx(boxes.conf[index], abs=CONFIDENCE_ERROR)
        assert 0 <= detection.box.x1 <= detection.box.x2 <= whole.width
        assert 0 <= detection.box.y1 <= detection.box.y2 <= whole.height
        if task != "obb":
            assert sides(detection.box) == pytest.approx(boxes.xyxy[index] * scale, abs=error)
    added = {
        name
        for detection in found
        for name in detection.model_dump()
        if name not in ("class_id", "label", "confidence", "box")
    }
    match task:
        case "detect":
            assert added == set()
        case "segment":
            assert added == {"mask"}
            assert_same_masks(found, own, scale)
        case "pose":
            assert added == {"keypoints"}
            for detection, points in zip(found, own.keypoints.data, strict=True):
                assert detection.keypoints is not None
                there = [(point.x, point.y) for point in detection.keypoints]
                np.testing.assert_allclose(there, points[:, :2] * scale, atol=error)
                sure = [point.confidence for point in detection.keypoints]
                np.testing.assert_allclose(sure, points[:, 2], atol=CONFIDENCE_ERROR)
        case "obb":
            assert added == {"rotated_box"}
            assert_same_corners(found, own, scale, error)


def assert_same_classes(found: list[Detection], own: Any, seen: Picture) -> None:
    [detection] = found
    assert sides(detection.box) == (0, 0, seen.width, seen.height)
    assert detection.probabilities is not None
    assert len(detection.probabilities) == min(LIKELIEST, len(NAMES))
    assert [each.class_id for each in detection.probabilities] == list(own.probs.top5)
    assert [each.confidence for each in detection.probabilities] == pytest.approx(own.probs.top5conf, abs=0.0005)
    assert detection.confidence == detection.probabilities[0].confidence > detection.probabilities[1].confidence
    assert (detection.class_id, detection.label) == (own.probs.top1, NAMES[own.probs.top1])


def assert_same_masks(found: list[Detection], own: Any, scale: int) -> None:
    """Polygons cover what the mask covers with its holes filled, but for its edge: compared as areas."""
    height, width = own.orig_shape
    letterbox = Letterbox(width, height, SIDE, SIDE)
    inner = np.s_[letterbox.top : letterbox.top + letterbox.height, letterbox.left : letterbox.left + letterbox.width]
    compared = 0
    for detection, mask in zip(found, own.masks.data, strict=True):
        assert detection.mask is not None
        assert sum(map(len, detection.mask.polygons)) <= MASK_POINTS
        if len(detection.mask.polygons) > 5 or mask[inner].sum() < 500:
            continue  # Shreds, of which the bound leaves the largest, and specks, which are all edge.
        compared += 1
        theirs = without_holes(cv2.resize(mask[inner].astype(np.uint8), (width, height)))
        ours = filled(detection.mask.polygons, scale, width, height)
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95
    assert compared >= 3


def without_holes(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    outside = np.pad(mask, 1)
    cv2.floodFill(outside, None, (0, 0), 2)
    return outside[1:-1, 1:-1] != 2


def filled(polygons: list[list[Point]], scale: int, width: int, height: int) -> NDArray[np.bool_]:
    area = np.zeros((height, width), dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(area, [(np.array(polygon) / scale).round().astype(np.int32)], 1)
    return area.astype(bool)


def assert_same_corners(found: list[Detection], own: Any, scale: int, error: float) -> None:
    for detection, theirs in zip(found, own.obb.xyxyxyxy, strict=True):
        assert detection.rotated_box is not None
        corners = np.array(detection.rotated_box.corners)
        # ultralytics scales a turned box's own sides by the picture's: off by what letterboxing rounds.
        size = np.ptp(corners, axis=0).max()
        for corner in theirs * scale:
            assert np.abs(corners - corner).max(axis=1).min() < error + 0.004 * size
        sides_ = np.roll(corners, -1, axis=0) - corners
        turns = np.cross(sides_, np.roll(sides_, -1, axis=0))
        assert (turns > 0).all(), "clockwise, where y points down"
        hull = (*corners.min(axis=0), *corners.max(axis=0))
        limits = np.array([own.orig_shape[1], own.orig_shape[0]] * 2) * scale
        np.testing.assert_allclose(sides(detection.box), np.clip(hull, 0, limits), atol=error + 0.004 * size)


def test_a_mask_of_a_thousand_specks_is_told_in_few_points() -> None:
    random = np.random.default_rng(1)
    mask = (random.uniform(size=(SIDE, SIDE)) > 0.6).astype(np.uint8)
    mask[40:90, 60:120] = 1
    told = _mask(mask, Letterbox(1000, 1000, SIDE, SIDE))
    assert 3 <= sum(map(len, told.polygons)) <= MASK_POINTS
    block = filled(told.polygons, 1, 1000, 1000)[180:330, 260:440]
    assert block.mean() > 0.8


def test_a_mask_that_reaches_into_the_margin_ends_at_the_picture() -> None:
    told = _mask(np.ones((SIDE, SIDE), np.uint8), Letterbox(2000, 1000, SIDE, SIDE))
    [polygon] = told.polygons
    assert polygon == pytest.approx(np.array([(0, 0), (0, 992.2), (1992.2, 992.2), (1992.2, 0)]), abs=0.1)
    assert _mask(np.zeros((SIDE, SIDE), np.uint8), Letterbox(2000, 1000, SIDE, SIDE)).polygons == []


@pytest.mark.parametrize("task", MAKERS)
def test_each_result_crosses_the_slot_s_line_and_the_api(task: str, weights: dict[str, Path]) -> None:
    found = UltralyticsEngine(weights[task], 2, "f32").infer(
        picture(), Parameters(conf=0.1, iou=1, max_detections=1000)
    )
    line = write_answer(Done(found, 810, 1080, read_ms=1, decode_ms=2, infer_ms=3))
    assert line.count(b"\n") == 1
    answer = read_answer(line)
    assert isinstance(answer, Done)
    assert answer.detections == found
    assert [Detection.model_validate_json(each.model_dump_json()) for each in found] == found


# Other formats, other names


@pytest.mark.parametrize("made", ["torchscript", "onnx", "openvino"])
def test_what_ultralytics_exports_gives_the_same_boxes(made: str, weights: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "detect.pt"
    source.write_bytes(weights["detect"].read_bytes())
    options = {"simplify": False} if made == "onnx" else {}
    exported = Path(ultralytics.YOLO(str(source)).export(format=made, device="cpu", verbose=False, **options))
    found = UltralyticsEngine(exported, 2, "f32").infer(picture(), LIVELY)
    expected = UltralyticsEngine(source, 2, "f32").infer(picture(), LIVELY)
    # The openvino of ultralytics computes in bf16 where the CPU has it: the openvino engine is for exactness.
    if made == "openvino":
        assert len(found) == pytest.approx(len(expected), abs=3)
    else:
        assert_same_boxes(found, expected, pixels(810, 1080, SIDE), made)


@pytest.mark.parametrize("name", ["yolov5n.pt", "yolo26n.pt", "it's.pt", "a b_seg.pt", "http:.pt"])
def test_no_name_makes_it_look_elsewhere(name: str, weights: dict[str, Path], tmp_path: Path) -> None:
    """ultralytics reads meaning into names, and asks the network for what it does not find."""
    path = tmp_path / name
    path.write_bytes(weights["detect"].read_bytes())
    assert UltralyticsEngine(path, 1, "f32").description.task == "detect"


NO_NETWORK = """
import os, sys
tried = []
def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        tried.append((event, arguments))
        raise OSError(f"this process has no network: {event} {arguments}")
    if event in ("subprocess.Popen", "os.system") and "pip" in str(arguments):
        tried.append((event, arguments))
sys.addaudithook(forbid)
from pathlib import Path
import numpy as np
from custody.wire import Parameters
from inference_worker.decode import Picture
from inference_worker.engines.ultralytics import UltralyticsEngine
from inference_worker.engines.export import export
engine = UltralyticsEngine(Path(sys.argv[1]), 1, "auto")
engine.infer(Picture(np.zeros((90, 160, 3), np.uint8), 160, 90), Parameters())
export(Path(sys.argv[1]), Path(sys.argv[2]))
print("tried:", tried, os.environ["YOLO_CONFIG_DIR"])
"""


def test_it_loads_infers_and_exports_without_network_and_writes_nothing_at_home(
    weights: dict[str, Path], tmp_path: Path
) -> None:
    home, target = tmp_path / "home", tmp_path / "target"
    home.mkdir()
    target.mkdir()
    command = [sys.executable, "-c", NO_NETWORK, str(weights["segment"]), str(target)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO_", "ULTRALYTICS_"))}
    ended = subprocess.run(
        command,
        cwd=home,
        env=environment | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "tried: [] " in ended.stdout
    assert {path.name for path in target.iterdir()} == {"segment.onnx", "segment_openvino_model"}
    assert [path for path in home.rglob("*") if path.is_file() and "ltralytics" in str(path)] == []
    [scratch] = ended.stdout.split()[-1:]
    assert not Path(scratch).exists()


# What is no model


class Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_of_somebody_s_code_is_refused_and_never_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"model": Malice(ran)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malice(ran)))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(EngineError, match=rf"{name} cannot be read as a model"):
            UltralyticsEngine(tmp_path / name, 1, "f32")
    assert not ran.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert ran.exists(), "the file does nothing, so this test proves nothing"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.pt", "half"),
        ("empty.pt", b""),
        ("text.pt", b"this is no model"),
        ("text.torchscript", b"this is no model"),
        ("text.tflite", b"this is no model"),
        ("text.engine", b"this is no model"),
        ("text.gguf", b"of no known format"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_its_name(
    name: str, data: bytes | str, weights: dict[str, Path], tmp_path: Path
) -> None:
    whole = weights["detect"].read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if isinstance(data, str) else data)
    with pytest.raises(EngineError, match=rf"{name} cannot be read as a model"):
        UltralyticsEngine(tmp_path / name, 1, "f32")


def test_a_model_for_another_task_is_refused_with_the_tasks_there_are(tmp_path: Path) -> None:
    network = DepthModel("yolo26n-depth.yaml", verbose=False)
    torch.save({"model": network.half(), "train_args": {"imgsz": SIDE, "task": "depth"}}, tmp_path / "depth.pt")
    with pytest.raises(EngineError, match=r"depth\.pt is a model for the task depth.*detect, segment, pose"):
        UltralyticsEngine(tmp_path / "depth.pt", 1, "f32")


# In the pipeline, in a slot


def test_a_panorama_is_classified_as_ultralytics_does(weights: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "panorama.jpg").write_bytes(jpeg(scene(4000, 500)))
    engine = UltralyticsEngine(weights["classify"], 1, "auto")
    work = Work(new_id(), "panorama.jpg", "image/jpeg", 1, Parameters(), "", verify=False)
    outcome = Pipeline(tmp_path, engine, max_pixels=10_000_000).run(work)
    assert isinstance(outcome, Done)
    whole = decode((tmp_path / "panorama.jpg").read_bytes(), "image/jpeg", 1)
    assert_same_classes(outcome.detections, own_predict(weights["classify"], whole.pixels, Parameters()), whole)


# What a device may do


@pytest.mark.parametrize(
    "fault", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_a_picture_without_memory_is_tried_again(
    fault: Exception, weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = UltralyticsEngine(weights["detect"], 1, "f32")
    (tmp_path / "scene.jpg").write_bytes(jpeg(scene(64, 64)))
    work = Work(new_id(), "scene.jpg", "image/jpeg", 1, Parameters(), "", verify=False)
    pipeline = Pipeline(tmp_path, engine, max_pixels=10_000)
    with monkeypatch.context() as patched:
        patched.setattr(engine._predictor, "inference", raising(fault))
        outcome = pipeline.run(work)
    assert isinstance(outcome, Retry)
    assert "memory" in outcome.detail
    assert isinstance(pipeline.run(work), Done)


def test_a_broken_device_ends_the_slot(weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = UltralyticsEngine(weights["detect"], 1, "f32")
    monkeypatch.setattr(engine._predictor, "inference", raising(torch.AcceleratorError("an illegal memory access", 0)))
    with pytest.raises(SystemExit, match="illegal memory access"):
        engine.infer(picture(), Parameters())


def raising(fault: Exception) -> Any:
    def inference(*_: object) -> None:
        raise fault

    return inference


# In a batch


@pytest.mark.parametrize("task", MAKERS)
def test_each_of_a_batch_is_answered_as_it_is_alone_by_its_own_parameters(task: str, weights: dict[str, Path]) -> None:
    engine = UltralyticsEngine(weights[task], 2, "f32")
    assert not engine.gains_from_batches
    seen = [picture(), picture(640, 480), Picture(np.zeros((90, 160, 3), np.uint8), 160, 90), picture(300, 900)]
    wanted = [LIVELY, Parameters(conf=0.7, iou=0.1, max_detections=3), LIVELY, Parameters(conf=0.3, max_detections=40)]
    alone = [engine.infer(each, parameters) for each, parameters in zip(seen, wanted, strict=True)]
    prepared = [engine.prepare(each) for each in seen]
    answers = engine.infer_batch(prepared, wanted)
    together = [engine.detections(each, answer) for each, answer in zip(prepared, answers, strict=True)]
    assert len({len(each) for each in alone}) > 2 or task == "classify"
    for one, other, each in zip(alone, together, seen, strict=True):
        # Untrained networks make more of float32's order: 0.054 pixels were seen.
        assert_same_boxes(one, other, 4 * pixels(each.width, each.height, SIDE), task)


# In a slot


async def test_a_slot_answers_for_every_task(weights: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "scene.jpg").write_bytes(jpeg(scene(3240, 4320)))
    work = Work(new_id(), "scene.jpg", "image/jpeg", 1, LIVELY, "", verify=False)
    for task in ("segment", "classify"):
        slots = Slots(
            2,
            engine="ultralytics",
            model_path=weights[task],
            volume_root=tmp_path,
            threads=1,
            precision="auto",
            max_pixels=20_000_000,
            read_patience_seconds=0.1,
            time_limit_seconds=30.0,
        )
        try:
            assert (await slots.start()).model == ModelDescription(task, tuple(NAMES.values()), SIDE, SIDE)
            first, second = await asyncio.gather(slots.run(work), slots.run(work))
            assert isinstance(first, Done)
            assert isinstance(second, Done)
            assert first.detections == second.detections != []
            assert (first.width, first.height) == (3240, 4320)
            assert max(each.box.x2 for each in first.detections) > 2000
            [added] = {"segment": ["mask"], "classify": ["probabilities"]}[task]
            assert all(getattr(each, added) is not None for each in first.detections)
        finally:
            await slots.close()
