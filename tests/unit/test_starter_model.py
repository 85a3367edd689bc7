"""The shipped model on the shipped page, by OpenVINO alone: no torch, none of Wharfinger's own code."""

import json

import numpy as np
import onnx
import openvino
from PIL import Image

from starter_model import MODEL, PAGE

SIDE = 320


def test_every_digit_of_the_demo_page_is_found_where_it_is_and_nothing_else():
    truth = json.loads(PAGE.with_name("page.json").read_text())
    found = confident_detections(Image.open(PAGE), least_confidence=0.5)

    assert len(truth) == 10
    for digit in truth:
        assert any(same_digit(digit, detection) for detection in found), digit
    for detection in found:
        assert any(same_digit(digit, detection) for digit in truth), detection


def test_model_file_tells_how_to_use_it_and_not_when_or_where_it_was_made():
    model = onnx.load(MODEL)
    metadata = {entry.key: entry.value for entry in model.metadata_props}

    assert metadata["names"] == str({number: str(number) for number in range(10)})
    assert (metadata["task"], metadata["stride"], metadata["imgsz"]) == ("detect", "16", "[320, 320]")
    assert "AGPL-3.0" in metadata["license"]
    assert not {"date", "args", "author"} & metadata.keys()
    assert [entry.version for entry in model.opset_import] == [17]


def confident_detections(page: Image.Image, least_confidence: float) -> list[dict]:
    """The page letterboxed to the model's square, and its boxes in the page's pixels, before any suppression."""
    scale = SIDE / max(page.size)
    width, height = round(page.width * scale), round(page.height * scale)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    square = Image.new("RGB", (SIDE, SIDE), (114, 114, 114))
    square.paste(page.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), (left, top))
    blob = np.asarray(square, np.float32).transpose(2, 0, 1)[None] / 255

    network = openvino.Core().compile_model(MODEL, "CPU")
    boxes, scores = np.split(network(blob)[0][0].T, [4], axis=1)
    detections = []
    for (x, y, w, h), row in zip(boxes, scores, strict=True):
        if row.max() >= least_confidence:
            corners = np.array([x - w / 2 - left, y - h / 2 - top, x + w / 2 - left, y + h / 2 - top]) / scale
            detections.append({"label": str(row.argmax()), "box": corners.tolist()})
    return detections


def same_digit(one: dict, other: dict) -> bool:
    return one["label"] == other["label"] and overlap(one["box"], other["box"]) >= 0.6


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (area(one) + area(other) - shared)


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
