"""The YOLO family around a network: how a picture lies in its input, and what its output means.

Formulas and rounding follow ultralytics 8.4, so that boxes agree with it one by one; the docstrings name the functions
that were followed. Shared by every engine that runs a YOLO network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from custody.wire import Box, Detection, Parameters
from inference_worker.decode import Pixels

Rows = NDArray[np.float32]
"""n x 6: x1, y1, x2, y2 in pixels of the network's input, confidence, class id; the most confident first."""

Head = Callable[[NDArray[np.float32], Parameters], Rows]
"""Reads one raw output, batch of one."""

GREY = 114
"""Brightness of the margins; what the networks were trained with."""

MAX_CANDIDATES = 30_000
"""Boxes that enter suppression at most, the most confident first."""

CLASS_OFFSET = np.float32(7680)
"""Classes are moved this far apart for suppression, so that boxes of different classes never overlap."""


class UnknownHeadError(Exception):
    """The output's shape is none that this family has. The message says what was seen and what is known."""


@dataclass(frozen=True)
class Letterbox:
    """A picture shrunk or enlarged into an input, its shape kept, in the middle of grey margins.

    Source: ultralytics `data/augment.py` LetterBox (auto=False, center=True) and `utils/ops.py` scale_boxes."""

    picture_width: int
    picture_height: int
    input_width: int
    input_height: int

    @property
    def width(self) -> int:
        """Of the picture within the input, in pixels of the input."""
        return max(round(self.picture_width * self._scale), 1)

    @property
    def height(self) -> int:
        return max(round(self.picture_height * self._scale), 1)

    @property
    def left(self) -> int:
        return round((self.input_width - self.width) / 2 - 0.1)

    @property
    def top(self) -> int:
        return round((self.input_height - self.height) / 2 - 0.1)

    @property
    def _scale(self) -> float:
        return min(self.input_height / self.picture_height, self.input_width / self.picture_width)

    def draw(self, pixels: Pixels, canvas: Pixels) -> None:
        """Draws the picture and its margins on `canvas`: input height x input width x 3. `pixels` may be of any size,
        where the picture was decoded at a fraction of its own."""
        canvas[:] = GREY
        inner = canvas[self.top : self.top + self.height, self.left : self.left + self.width]
        if pixels.shape == inner.shape:
            inner[:] = pixels
        else:
            inner[:] = cv2.resize(pixels, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def to_picture(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """x1, y1, x2, y2 (n x 4) from pixels of the input to pixels of the picture, clipped to it."""
        return self.points_to_picture(boxes.reshape(-1, 2)).reshape(boxes.shape)

    def points_to_picture(self, points: NDArray[np.float32], *, clip: bool = True) -> NDArray[np.float32]:
        """x, y (n x 2), likewise."""
        margin = np.array([self.left, self.top], dtype=np.float32)
        gain = np.array([self.width / self.picture_width, self.height / self.picture_height], dtype=np.float32)
        limit = np.array([self.picture_width, self.picture_height], dtype=np.float32)
        places = (points - margin) / gain
        return places.clip(np.float32(0), limit) if clip else places


def choose_head(shape: tuple[int, ...], classes: int | None) -> Head:
    """The head that gives outputs of `shape`; `classes`: how many the model's metadata names, None where it is silent.

    YOLO26, YOLOv10 and exports with suppression inside give 1 x N x 6; YOLOv8 and YOLO11 give 1 x (4 + classes) x N.
    Raises `UnknownHeadError`."""
    match shape:
        case (1, _, 6):
            return end_to_end
        case (1, channels, boxes) if 5 <= channels < boxes:
            if classes not in (None, channels - 4):
                raise UnknownHeadError(
                    f"its output {shape} has {channels - 4} channels beside the box, but it names {classes} classes"
                )
            return dense
    raise UnknownHeadError(f"its output has the shape {shape}; known are 1 x (4 + classes) x N and 1 x N x 6")


def end_to_end(output: NDArray[np.float32], parameters: Parameters) -> Rows:
    """1 x N x 6, already suppressed by the network. Source: ultralytics `utils/nms.py`, end-to-end branch."""
    rows: Rows = output[0]
    confident: Rows = rows[rows[:, 4] > parameters.conf]
    return confident[: parameters.max_detections]


def dense(output: NDArray[np.float32], parameters: Parameters) -> Rows:
    """1 x (4 + classes) x N, boxes as centre and size. Best class of each box, confidence strictly greater than `conf`.

    Source: ultralytics `utils/nms.py` non_max_suppression with multi_label=False, agnostic=False."""
    channels = output[0]
    channels = channels[:, channels[4:].max(axis=0) > parameters.conf]
    centre, half = channels[:2].T, channels[2:4].T / 2
    scores = channels[4:]
    best = scores.argmax(axis=0)
    rows = np.column_stack([centre - half, centre + half, scores.max(axis=0), best]).astype(np.float32, copy=False)
    rows = rows[np.argsort(-rows[:, 4], kind="stable")][:MAX_CANDIDATES]
    return rows[suppress(rows[:, :4] + rows[:, 5:] * CLASS_OFFSET, parameters.iou, parameters.max_detections)]


def suppress(boxes: NDArray[np.float32], iou: float, limit: int) -> NDArray[np.intp]:
    """Non-maximum suppression: positions of up to `limit` boxes to keep, of boxes (x1, y1, x2, y2) that come the most
    confident first. A box goes if its overlap with a kept one is greater than `iou`.

    Source: torchvision `ops/cpu/nms_kernel.cpp`: areas and overlaps in float32, compared in double."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    threshold = np.float64(iou)
    left = np.arange(len(boxes))
    keep: list[np.intp] = []
    while left.size and len(keep) < limit:
        first, left = left[0], left[1:]
        keep.append(first)
        width = np.minimum(x2[first], x2[left]) - np.maximum(x1[first], x1[left])
        height = np.minimum(y2[first], y2[left]) - np.maximum(y1[first], y1[left])
        shared = width.clip(min=0) * height.clip(min=0)
        with np.errstate(divide="ignore", invalid="ignore"):  # Two boxes without area: nan, and both stay.
            left = left[~(shared / (areas[first] + areas[left] - shared) > threshold)]
    return np.array(keep, dtype=np.intp)


def to_detections(rows: Rows, letterbox: Letterbox, classes: tuple[str, ...]) -> list[Detection]:
    """In pixels of the picture, rounded to a thousandth of a pixel and a millionth of confidence."""
    boxes = letterbox.to_picture(rows[:, :4])
    return [
        _detection(int(class_id), float(confidence), box, classes)
        for box, confidence, class_id in zip(boxes.tolist(), rows[:, 4], rows[:, 5], strict=True)
    ]


def label_of(class_id: int, classes: tuple[str, ...]) -> str:
    """A class beyond the known ones is labelled with its number."""
    return classes[class_id] if class_id < len(classes) else str(class_id)


def _detection(class_id: int, confidence: float, box: list[float], classes: tuple[str, ...]) -> Detection:
    x1, y1, x2, y2 = (round(side, 3) for side in box)
    return Detection(
        class_id=class_id,
        label=label_of(class_id, classes),
        confidence=round(confidence, 6),
        box=Box(x1=x1, y1=y1, x2=x2, y2=y2),
    )
