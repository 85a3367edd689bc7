"""The ultralytics engine: every task of YOLO, from .pt and the other formats that ultralytics loads; on CUDA where
there is one.

The network and what its output means are ultralytics' own. The picture goes in letterboxed by us, into the whole of the
network's input, so that its boxes agree with those of the openvino engine, also where it was decoded smaller.
"""

import atexit
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from custody.wire import Box, Detection, Keypoint, Mask, Parameters, Point, Probability, RotatedBox
from inference_worker.decode import Picture, Pixels
from inference_worker.engines import EngineError, ModelDescription
from inference_worker.engines.yolo import GREY, Letterbox, UnknownHeadError, choose_head, label_of, to_detections

_scratch = tempfile.mkdtemp(prefix="wharf-ultralytics-")
atexit.register(shutil.rmtree, _scratch, ignore_errors=True)
# Read as ultralytics is imported. Nothing is looked up or installed, settings stay in a folder of this process, and a
# .pt is unpickled with the classes of networks alone.
os.environ |= {
    "YOLO_OFFLINE": "1",
    "YOLO_AUTOINSTALL": "0",
    "YOLO_VERBOSE": "0",
    "ULTRALYTICS_SAFE_LOAD": "1",
    "YOLO_CONFIG_DIR": _scratch,
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import ultralytics
    from ultralytics.models.yolo.classify import ClassificationPredictor
    from ultralytics.models.yolo.detect import DetectionPredictor
    from ultralytics.models.yolo.obb import OBBPredictor
    from ultralytics.models.yolo.pose import PosePredictor
    from ultralytics.models.yolo.segment import SegmentationPredictor
    from ultralytics.nn.autobackend import AutoBackend
    from ultralytics.nn.backends import ONNXBackend
    from ultralytics.utils.checks import check_imgsz

PREDICTORS = {
    "detect": DetectionPredictor,
    "segment": SegmentationPredictor,
    "pose": PosePredictor,
    "classify": ClassificationPredictor,
    "obb": OBBPredictor,
}
"""By the task that a model names."""

DEFAULT_SIDE = 640
"""Side of the input where neither the model's shape nor its metadata tells it."""

FORMAT = re.compile(r"(_[a-z]+_model|_qnn\.onnx|_edgetpu\.tflite|\.[a-z]+)$")
"""The end of a name that tells ultralytics the format: .pt, or _openvino_model of a folder."""

MASK_POINTS = 200
"""Of all polygons of one mask at most: a thousand masks fit into an answer."""

MASK_TOLERANCE = 0.5
"""Pixels of the input by which a polygon may leave the mask's edge; more, where it has too many points otherwise."""

LIKELIEST = 5
"""Classes that a classification tells."""


@dataclass(frozen=True, eq=False)
class _Prepared:
    """`pixels`: in BGR, letterboxed into the whole of the input; a classifier's as they are."""

    pixels: Pixels
    letterbox: Letterbox


class UltralyticsEngine:
    """See `Engine`. One predictor, which holds a lock while it works: a process of its own is what makes a slot."""

    version: str = ultralytics.__version__

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        if precision not in ("auto", "f32"):
            raise EngineError(f"The precision {precision} is unknown to the ultralytics engine. Use one of: auto, f32.")
        if precision == "f32":
            torch.backends.cudnn.allow_tf32 = False
        model = _load(model_path, threads, half=precision == "auto")
        task = model.task or getattr(model.model, "task", None) or "detect"
        if task not in PREDICTORS:
            raise EngineError(
                f"{model_path} is a model for the task {task}; this engine does {', '.join(PREDICTORS)}. "
                "Give it a model for one of these."
            )
        height, width = _input_size(model)
        if task == "detect":
            _check_head(model, height, width, model_path)
        self._description = ModelDescription(task, _classes(model), width, height)
        self._gains_from_batches = model.device.type == "cuda" and (model.format == "pt" or _is_dynamic(model))
        self._blank = Picture(np.full((height, width, 3), GREY, dtype=np.uint8), width, height)
        self._predictor = _predictor(model, task, height, width)
        self._try(model_path)

    @property
    def description(self) -> ModelDescription:
        return self._description

    @property
    def gains_from_batches(self) -> bool:
        """On CUDA, where the network takes more than one picture. On the CPU a batch takes longer than its pictures."""
        return self._gains_from_batches

    def warm_up(self) -> None:
        self.infer(self._blank, Parameters())

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        """`MemoryError` where the device has none left for this picture. A classifier names its likeliest class,
        however unsure it is of it: `parameters` are about boxes."""
        prepared = self.prepare(picture)
        [answer] = self.infer_batch([prepared], [parameters])
        return self.detections(prepared, answer)

    def prepare(self, picture: Picture) -> _Prepared:
        width, height = self._description.input_width, self._description.input_height
        letterbox = Letterbox(picture.width, picture.height, width, height)
        pixels = picture.pixels
        if self._description.task != "classify":
            pixels = np.empty((height, width, 3), dtype=np.uint8)
            letterbox.draw(picture.pixels, pixels)
        return _Prepared(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False), letterbox)

    def infer_batch(self, prepared: Sequence[_Prepared], parameters: Sequence[Parameters]) -> list[Any]:
        """ultralytics' results, their arrays in NumPy."""
        self._predictor.each = parameters
        # Asked for before there are results: how many boxes an end-to-end head gives at most.
        self._predictor.args.max_det = max(each.max_detections for each in parameters)
        with _faults_of_the_device():
            return [each.cpu().numpy() for each in self._predictor([each.pixels for each in prepared])]

    def detections(self, prepared: _Prepared, answer: Any) -> list[Detection]:
        letterbox = prepared.letterbox
        if self._description.task == "classify":
            return [self._classified(answer, letterbox)]
        found = to_detections(_rows(answer), letterbox, self._description.classes)
        return [
            detection.model_copy(update=more)
            for detection, more in zip(found, _beside_the_box(answer, letterbox), strict=True)
        ]

    def _try(self, model_path: Path) -> None:
        """Whether the network's answer is one that its task has: told at the start, not with the first picture."""
        try:
            self.infer(self._blank, Parameters(conf=0.001))
        except Exception as error:
            raise EngineError(
                f"{model_path} does not answer as a model for the task {self._description.task} does. Export it again. "
                f"ultralytics says: {_gist(error)}"
            ) from error

    def _classified(self, found: Any, letterbox: Letterbox) -> Detection:
        scores = found.probs.data
        likeliest = [
            Probability(
                class_id=each,
                label=label_of(each, self._description.classes),
                confidence=round(min(float(scores[each]), 1.0), 6),
            )
            for each in np.argsort(-scores, kind="stable")[:LIKELIEST].tolist()
        ]
        box = Box(x1=0, y1=0, x2=letterbox.picture_width, y2=letterbox.picture_height)
        return Detection(**likeliest[0].model_dump(), box=box, probabilities=likeliest)


def _load(model_path: Path, threads: int, *, half: bool) -> Any:
    torch.set_num_threads(threads)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    link = plain_link(model_path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = _backend(threads)(str(link), device=device, fp16=half and device.type == "cuda", verbose=False)
        return loaded.eval()
    except Exception as error:
        raise EngineError(
            f"{model_path} cannot be read as a model; export or copy it again. ultralytics says: "
            f"{_gist(error).replace(str(link), str(model_path))}"
        ) from error


def plain_link(model_path: Path) -> Path:
    """The model under a name without meaning, as long as this process lives: ultralytics drops apostrophes from names,
    takes some for older ones, and looks on the network for what it then does not find.

    Raises `EngineError` where there is no such model."""
    if not model_path.exists():
        raise EngineError(f"There is no model file {model_path}. Check the path and the volume's mount.")
    folder = Path(tempfile.mkdtemp(dir=_scratch))
    if model_path.suffix == ".xml":
        return _link_ir(model_path, folder)
    ending = FORMAT.search(model_path.name.lower())
    link = folder / f"model{ending[0] if ending else ''}"
    link.symlink_to(model_path.absolute())
    return link


def _link_ir(model_path: Path, folder: Path) -> Path:
    """ultralytics knows an OpenVINO model as a folder."""
    weights = model_path.with_suffix(".bin")
    if not weights.is_file():
        raise EngineError(f"{model_path} cannot be read as a model: copy it together with its .bin.")
    link = folder / "model_openvino_model"
    link.mkdir()
    for part in (model_path, weights, model_path.with_name("metadata.yaml")):
        name = "metadata.yaml" if part.suffix == ".yaml" else f"model{part.suffix}"
        if part.is_file():
            (link / name).symlink_to(part.absolute())
    return link


def _backend(threads: int) -> Any:
    """ONNX Runtime would take every core for every slot."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    class Backend(AutoBackend):  # type: ignore[misc]
        _BACKEND_MAP = AutoBackend._BACKEND_MAP | {"onnx": partial(ONNXBackend, session_options=options)}

    return Backend


def _input_size(model: Any) -> tuple[int, int]:
    """Height and width: of a fixed shape, else what the model was trained or exported with."""
    if model.format == "onnx":
        shape = model.session.get_inputs()[0].shape
    elif model.format == "openvino":
        shape = [
            side.get_length() if side.is_static else None for side in model.ov_compiled_model.input().partial_shape
        ]
    else:
        shape = []
    match shape:
        case [_, _, int(height), int(width)]:
            return height, width
    size = model.model.args.get("imgsz") if model.format == "pt" else getattr(model, "imgsz", None)
    height, width = check_imgsz(size or DEFAULT_SIDE, stride=model.stride, min_dim=2)
    return height, width


def _check_head(model: Any, height: int, width: int, model_path: Path) -> None:
    """That the network gives what a detection network gives; ultralytics would make boxes of anything. A model that
    names no classes is given numbers, as many as its output has."""
    blank = torch.zeros(1, model.channels, height, width, device=model.device)
    try:
        with torch.inference_mode(), _faults_of_the_device():
            output = model(blank.half() if model.fp16 else blank)
    except Exception as error:
        raise EngineError(
            f"{model_path} does not take one picture as floats, 1 x {model.channels} x {height} x {width}, and nothing "
            f"else. Export it again with batch 1. ultralytics says: {_gist(error)}"
        ) from error
    if model.format == "pt":  # With it comes what training needs.
        output = output[0] if isinstance(output, list | tuple) else output
    elif isinstance(output, list | tuple):
        raise EngineError(f"{model_path} has {len(output)} outputs; a detection model has one. Export it again.")
    shape = tuple(output.shape)
    try:
        choose_head(shape, len(model.names) if _names_classes(model) else None)
    except UnknownHeadError as error:
        raise EngineError(f"{model_path} is not understood: {error}. Give it a YOLO detection model.") from error
    if not _names_classes(model) and shape[2] != 6:
        model.backend.names = {number: str(number) for number in range(shape[1] - 4)}


def _names_classes(model: Any) -> bool:
    return model.format == "pt" or "names" in model.metadata


def _classes(model: Any) -> tuple[str, ...]:
    """Without any of its own, a model of 999 classes is one whose number ultralytics does not know."""
    names = model.names
    return () if not _names_classes(model) and len(names) == 999 else tuple(names[each] for each in sorted(names))


def _is_dynamic(model: Any) -> bool:
    return bool(getattr(model, "dynamic", False))


def _predictor(model: Any, task: str, height: int, width: int) -> Any:
    kind: Any = PREDICTORS[task]

    class Predictor(kind):  # type: ignore[misc]
        """Sorts each picture's boxes by its own parameters, and on its own: ultralytics gives up those that come late,
        in the batch of one whose boxes take too long."""

        each: Sequence[Parameters]

        def postprocess(self, preds: Any, img: Any, orig_imgs: Any) -> list[Any]:
            results = []
            for place, parameters in enumerate(self.each):
                self.args.conf, self.args.iou = parameters.conf, parameters.iou
                self.args.max_det = parameters.max_detections
                one = slice(place, place + 1)
                results += super().postprocess(_part(preds, one, len(self.each)), img[one], orig_imgs[one])
            return results

    shape = {"imgsz": [height, width], "rect": False, "batch": 1}
    made = Predictor(overrides={"task": task, "mode": "predict", "save": False, "verbose": False, **shape})
    # What its setup_model does, for a model that is loaded.
    made.model, made.device = model, model.device
    return made


def _part(output: Any, one: slice, count: int) -> Any:
    """Of what a network gives for `count` pictures, however it is nested."""
    match output:
        case torch.Tensor():
            return output[one] if output.ndim and len(output) == count else output
        case dict():
            return {name: _part(each, one, count) for name, each in output.items()}
        case list() | tuple():
            return type(output)(_part(each, one, count) for each in output)
    return output


def _rows(found: Any) -> NDArray[np.float32]:
    """Upright boxes, see `inference_worker.engines.yolo.Rows`."""
    if found.obb is not None:
        return np.column_stack([found.obb.xyxy, found.obb.conf, found.obb.cls]).astype(np.float32, copy=False)
    return np.asarray(found.boxes.data, dtype=np.float32)


def _beside_the_box(found: Any, letterbox: Letterbox) -> list[dict[str, object]]:
    """The fields that the task adds to each detection."""
    if found.obb is not None:
        return [{"rotated_box": _rotated_box(corners, letterbox)} for corners in found.obb.xyxyxyxy]
    if found.masks is not None:
        return [{"mask": _mask(mask, letterbox)} for mask in found.masks.data]
    if found.keypoints is not None:
        return [{"keypoints": _keypoints(points, letterbox)} for points in found.keypoints.data]
    return [{} for _ in found.boxes.data]


def _mask(mask: NDArray[Any], letterbox: Letterbox) -> Mask:
    left, top = letterbox.left, letterbox.top
    inner = np.ascontiguousarray(mask[top : top + letterbox.height, left : left + letterbox.width], dtype=np.uint8)
    contours, _ = cv2.findContours(inner, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    tolerance = MASK_TOLERANCE
    while sum(map(len, outlines := _outlines(contours, tolerance))) > MASK_POINTS:
        tolerance *= 2
    return Mask(polygons=[_points(letterbox.points_to_picture(outline), digits=1) for outline in outlines])


def _outlines(contours: Any, tolerance: float) -> list[NDArray[np.float32]]:
    """Without what has become a line: small parts go first as the tolerance grows."""
    outlines = [cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0].astype(np.float32) for contour in contours]
    return [outline for outline in outlines if len(outline) >= 3]


def _keypoints(points: NDArray[np.float32], letterbox: Letterbox) -> list[Keypoint]:
    """`points`: n x 2, or n x 3 with a confidence."""
    places = _points(letterbox.points_to_picture(points[:, :2]), digits=3)
    sure = points[:, 2].astype(float).clip(0, 1).round(6).tolist() if points.shape[1] == 3 else [None] * len(points)
    return [Keypoint(x=x, y=y, confidence=confidence) for (x, y), confidence in zip(places, sure, strict=True)]


def _rotated_box(corners: NDArray[np.float32], letterbox: Letterbox) -> RotatedBox:
    """ultralytics tells the corners the other way round, from the lower right one of a box that is not turned."""
    return RotatedBox(corners=_points(letterbox.points_to_picture(corners[[2, 1, 0, 3]], clip=False), digits=3))


def _points(places: NDArray[np.float32], *, digits: int) -> list[Point]:
    return [(x, y) for x, y in places.astype(float).round(digits).tolist()]


@contextmanager
def _faults_of_the_device() -> Iterator[None]:
    """No memory left is a `MemoryError`, on every device: the picture is tried again. A device that faults otherwise
    answers this process no more: it ends, and another slot takes the picture."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError(str(error)) from error
    except torch.AcceleratorError as error:
        raise SystemExit(f"The device does not work any more: {error}") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError(str(error)) from error
        raise


def _gist(error: Exception) -> str:
    """Its first line; a class's name alone says too little."""
    said = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
