"""Our engine against ultralytics with the same weights: every box, its class and its confidence.

Runs only where ultralytics is installed: `make test-ultralytics` makes an environment of its own for it."""

import io
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from custody.wire import Parameters
from inference_worker.decode import decode
from inference_worker.engines.openvino import OpenVINOEngine
from inference_worker.engines.yolo import Letterbox, dense, end_to_end
from tests.support.shared import BUS, SHARED, YOLO11N, ZIDANE, needs_shared
from tests.ultralytics.agreement import CONFIDENCE_ERROR, pixels

# First of all: it sets what ultralytics reads as it is imported, so that nothing is looked up or installed.
pytest.importorskip("inference_worker.engines.ultralytics")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import ultralytics
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import scale_boxes

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = [
    (810, 1080),
    (1280, 720),
    (640, 640),
    (641, 479),
    (479, 641),
    (333, 1000),
    (1501, 97),
    (31, 17),
    (1, 1),
    (1, 3000),
]


@dataclass(frozen=True)
class Found:
    class_id: int
    confidence: float
    box: tuple[float, float, float, float]


def photos() -> dict[str, bytes]:
    """The photos as they are, cut, resized and turned."""
    bus, zidane = Image.open(BUS), Image.open(ZIDANE)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "bus": BUS.read_bytes(),
        "zidane": ZIDANE.read_bytes(),
        "bus-crop-odd": encoded(bus.crop((11, 205, 810, 742)), "JPEG"),
        "bus-small": encoded(bus.resize((203, 271)), "JPEG"),
        "bus-large": encoded(bus.resize((2025, 2700)), "JPEG"),
        "zidane-portrait": encoded(zidane.crop((700, 0, 1000, 720)), "JPEG"),
        "zidane-strip": encoded(zidane.crop((0, 300, 1280, 520)), "JPEG"),
        "zidane-png": encoded(zidane.resize((901, 507)), "PNG"),
        "bus-on-its-side": encoded(bus.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned),
        "black": encoded(Image.new("RGB", (100, 50)), "PNG"),
    }


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, image_format, **({"quality": 95} if image_format == "JPEG" else {}), **options)
    return target.getvalue()


@cache
def ours() -> OpenVINOEngine:
    return OpenVINOEngine(YOLO11N, 2, "f32")


@cache
def theirs(weights: str) -> "ultralytics.YOLO":
    return ultralytics.YOLO(str(SHARED / "models" / weights), task="detect")


@needs_shared
@pytest.mark.parametrize("weights", ["yolo11n.onnx", "yolo11n.pt"])
@pytest.mark.parametrize(("conf", "iou", "max_detections"), [(0.25, 0.7, 300), (0.05, 0.45, 300), (0.1, 0.9, 7)])
def test_every_box_agrees(weights: str, conf: float, iou: float, max_detections: int, tmp_path: Path) -> None:
    if weights.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    parameters = Parameters(conf=conf, iou=iou, max_detections=max_detections)
    for name, data in photos().items():
        mine = found_by_us(data, 6 if name == "bus-on-its-side" else 1, parameters)
        other, size = found_by_them(weights, tmp_path / name, data, parameters)
        assert len(mine) == len(other), name
        assert (name == "black") == (not other)
        for box, twin in zip(mine, other, strict=True):
            assert box.class_id == twin.class_id, name
            assert box.confidence == pytest.approx(twin.confidence, abs=CONFIDENCE_ERROR), name
            assert box.box == pytest.approx(twin.box, abs=pixels(*size)), name


def found_by_us(data: bytes, orientation: int, parameters: Parameters) -> list[Found]:
    media_type = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
    detections = ours().infer(decode(data, media_type, orientation), parameters)
    return [
        Found(each.class_id, each.confidence, (each.box.x1, each.box.y1, each.box.x2, each.box.y2))
        for each in detections
    ]


def found_by_them(weights: str, path: Path, data: bytes, parameters: Parameters) -> tuple[list[Found], tuple[int, int]]:
    path = path.with_suffix(".png" if data.startswith(b"\x89PNG") else ".jpg")
    path.write_bytes(data)
    [result] = theirs(weights).predict(
        str(path),
        imgsz=640,
        rect=False,
        conf=parameters.conf,
        iou=parameters.iou,
        max_det=parameters.max_detections,
        device="cpu",
        verbose=False,
    )
    rows = result.boxes.data.tolist()
    return [Found(int(row[5]), row[4], tuple(row[:4])) for row in rows], result.orig_shape


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [(640, 640), (416, 640)])
def test_letterboxed_pixels_are_the_same(size: tuple[int, int], side: tuple[int, int]) -> None:
    width, height = size
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    canvas = np.empty((*side, 3), dtype=np.uint8)
    Letterbox(width, height, side[1], side[0]).draw(pixels, canvas)
    cv2.setNumThreads(1)
    np.testing.assert_array_equal(canvas, LetterBox(side, auto=False)(image=pixels))


@pytest.mark.parametrize("size", SIZES)
def test_boxes_return_to_the_same_place(size: tuple[int, int]) -> None:
    boxes = np.random.default_rng(2).uniform(-20, 660, (50, 4)).astype(np.float32)
    expected = scale_boxes((640, 640), torch.from_numpy(boxes.copy()), size[::-1]).numpy()
    np.testing.assert_allclose(Letterbox(*size, 640, 640).to_picture(boxes), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "parameters",
    [
        Parameters(),
        Parameters(conf=0.0, iou=0.5, max_detections=1000),
        Parameters(conf=0.7, iou=0.0),
        Parameters(conf=0.3, iou=1.0, max_detections=5),
    ],
)
def test_suppression_keeps_the_same_boxes_in_the_same_order(seed: int, parameters: Parameters) -> None:
    output = crowded_output(seed)
    [expected] = non_max_suppression(
        torch.from_numpy(output.copy()), parameters.conf, parameters.iou, max_det=parameters.max_detections
    )
    assert len(expected) > 0
    np.testing.assert_array_equal(dense(output, parameters), expected.numpy())


def crowded_output(seed: int, classes: int = 3, columns: int = 2000) -> NDArray[np.float32]:
    """Boxes that crowd around few places, so that many overlap."""
    random = np.random.default_rng(seed)
    places = random.uniform(50, 590, (2, 12))[:, random.integers(0, 12, columns)]
    centres = places + random.normal(0, 6, (2, columns))
    sizes = random.uniform(40, 80, (2, columns))
    scores = random.uniform(0, 1, (classes, columns)) ** 2
    return np.concatenate([centres, sizes, scores])[np.newaxis].astype(np.float32)


@pytest.mark.parametrize("parameters", [Parameters(), Parameters(conf=0.6, max_detections=20)])
def test_end_to_end_rows_are_read_the_same(parameters: Parameters) -> None:
    random = np.random.default_rng(4)
    output = random.uniform(0, 640, (1, 300, 6)).astype(np.float32)
    output[0, :, 4] = np.sort(random.uniform(0, 1, 300))[::-1]
    output[0, :, 5] = random.integers(0, 80, 300)
    [expected] = non_max_suppression(
        torch.from_numpy(output), parameters.conf, parameters.iou, max_det=parameters.max_detections
    )
    np.testing.assert_array_equal(end_to_end(output, parameters), expected.numpy())
