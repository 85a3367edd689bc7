"""What a detection may carry beside its box: on the wire, and in the table of `wharf predict`."""

import json
from io import StringIO
from uuid import UUID

import pytest
from pydantic import ValidationError
from rich.console import Console

from custody.wire import (
    Box,
    Detection,
    InputResult,
    Keypoint,
    Mask,
    Parameters,
    Probability,
    RotatedBox,
)
from wharfinger.commands.reports import results_table

PLAIN = {"class_id": 5, "label": "bus", "confidence": 0.94, "box": {"x1": 3.1, "y1": 228.9, "x2": 795.6, "y2": 729.4}}
BESIDE = {
    "mask": {"polygons": [[[3.1, 228.9], [795.6, 228.9], [400, 729.4]], [[1, 2], [3, 2], [3, 4], [1, 4]]]},
    "keypoints": [{"x": 10.5, "y": 20.5, "confidence": 0.9}, {"x": 0.0, "y": 0.0, "confidence": None}],
    "rotated_box": {"corners": [[10, 0], [20, 10], [10, 20], [0, 10]]},
    "probabilities": [{"class_id": 5, "label": "bus", "confidence": 0.94}],
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_a_task_adds_survives_the_wire(name: str) -> None:
    document = PLAIN | {name: BESIDE[name]}
    detection = Detection(**document)
    assert json.loads(detection.model_dump_json()) == document
    assert json.loads(json.dumps(detection.model_dump())) == document
    assert (
        Detection(**detection.model_dump()) == Detection.model_validate_json(detection.model_dump_json()) == detection
    )


def test_a_plain_detection_names_nothing_that_it_has_not() -> None:
    detection = Detection(**PLAIN)
    assert detection.model_dump() == json.loads(detection.model_dump_json()) == PLAIN
    assert (detection.mask, detection.keypoints, detection.rotated_box, detection.probabilities) == (None,) * 4
    assert json.loads(result(detection).model_dump_json())["detections"] == [PLAIN]


@pytest.mark.parametrize(
    "beside",
    [
        {"mask": {"polygons": [[[1, 2], [3, 4]]]}},
        {"mask": {"polygons": [[[1, 2], [3, 4], [5, float("nan")]]]}},
        {"keypoints": [{"x": float("inf"), "y": 0}]},
        {"keypoints": [{"x": 1, "y": 0, "confidence": 1.5}]},
        {"rotated_box": {"corners": [[1, 2], [3, 4], [5, 6]]}},
        {"probabilities": [{"class_id": 1, "label": "a", "confidence": -0.1}]},
    ],
)
def test_what_is_no_place_or_no_probability_is_refused(beside: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Detection(**(PLAIN | beside))


def result(*detections: Detection) -> InputResult:
    return InputResult(
        input=0,
        state="succeeded",
        file_id=UUID(int=1),
        filename="a.jpg",
        sha256="0" * 64,
        width=810,
        height=1080,
        attempts=1,
        parameters=Parameters(),
        detections=list(detections),
    )


def shown(**beside: object) -> str:
    detection = Detection(class_id=5, label="bus", confidence=0.94, box=Box(x1=3.1, y1=228.9, x2=795.6, y2=729.4))
    target = StringIO()
    table = results_table([("a.jpg", result(detection.model_copy(update=beside)))])
    Console(file=target, width=200).print(table)
    return "\n".join(" ".join(line.split()) for line in target.getvalue().splitlines())


def test_the_table_tells_what_a_detection_has_beside_its_box() -> None:
    assert "a.jpg bus 0.94 3 229 796 729\n" in shown()
    polygons = [[(1.0, 2.0), (3.0, 2.0), (3.0, 4.0)], [(5.0, 6.0), (7.0, 6.0), (7.0, 8.0), (5.0, 8.0)]]
    assert "a.jpg bus 0.94 3 229 796 729, mask of 7 points\n" in shown(mask=Mask(polygons=polygons))
    assert "a.jpg bus 0.94 3 229 796 729, 2 keypoints\n" in shown(keypoints=[Keypoint(x=1, y=2), Keypoint(x=3, y=4)])
    turned = RotatedBox(corners=[(10.2, 0), (20, 10), (10, 20), (0, 10)])
    assert "a.jpg bus 0.94 10 0, 20 10, 10 20, 0 10 (corners)\n" in shown(rotated_box=turned)


def test_the_table_lists_a_classified_picture_s_classes() -> None:
    classes = [
        Probability(class_id=5, label="bus", confidence=0.94),
        Probability(class_id=7, label="truck", confidence=0.05),
    ]
    lines = shown(probabilities=classes)
    assert "a.jpg bus 0.94 the whole picture\ntruck 0.05 the whole picture\n" in lines
