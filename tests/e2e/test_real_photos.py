"""A real network on real photos, against the figures that its makers' software gives. Where they lie beside us."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from standalone.doctor.trial import pictures
from tests.e2e import boxes
from tests.e2e.boxes import Seen
from tests.e2e.service import Strict, start_worker
from tests.support.shared import BUS, YOLO11N, ZIDANE, needs_shared

pytestmark = needs_shared

# bf16, where the processor has it, moves confidences by up to 0.04 and boxes by about a pixel.
CONFIDENCE_TOLERANCE = 0.06

ON_THE_BUS = [
    (Seen("bus", (3, 229, 796, 729)), 0.94),
    (Seen("person", (671, 394, 810, 879)), 0.91),
    (Seen("person", (47, 400, 240, 904)), 0.85),
    (Seen("person", (223, 409, 345, 860)), 0.84),
    (Seen("person", (0, 555, 70, 873)), 0.42),
]
ZIDANE_AND_FRIEND = [
    (Seen("person", (748, 42, 1149, 711)), 0.87),
    (Seen("person", (148, 203, 1128, 715)), 0.81),
    (Seen("tie", (362, 437, 525, 717)), 0.48),
]


@pytest.fixture(scope="module")
def yolo11n(strict: Strict) -> Iterator[Strict]:
    worker = strict.installation.worker("yolo", WHARF_MODEL=str(YOLO11N), WHARF_SLOTS="1")
    start_worker(worker)
    yield strict
    worker.stop()


@pytest.mark.parametrize(("photo", "expected"), [(BUS, ON_THE_BUS), (ZIDANE, ZIDANE_AND_FRIEND)], ids=["bus", "zidane"])
def test_a_photo_has_the_boxes_that_ultralytics_sees(
    yolo11n: Strict, photo: Path, expected: list[tuple[Seen, float]]
) -> None:
    with yolo11n.service.client(yolo11n.service.new_key()) as http:
        answer = http.post(
            "/v1/predict",
            files={"image": photo.read_bytes()},
            data={"model": "yolo11n", "conf": "0.35"},
            headers={"Prefer": "wait=30"},
        )
    [result] = answer.json()["results"]
    boxes.assert_same(boxes.seen(result), [wanted for wanted, _ in expected], least_overlap=0.85)
    confidences = sorted((each["confidence"] for each in result["detections"]), reverse=True)
    assert confidences == pytest.approx([confidence for _, confidence in expected], abs=CONFIDENCE_TOLERANCE)


def test_each_request_gets_the_model_that_it_names(yolo11n: Strict) -> None:
    with yolo11n.service.client(yolo11n.service.new_key()) as http:
        for model, labels in (("yolo11n", {"bus", "person"}), ("digits", set("0123456789"))):
            job = http.post(
                "/v1/predict",
                files={"image": BUS.read_bytes()},
                data={"model": model, "conf": "0.01"},
                headers={"Prefer": "wait=30"},
            ).json()
            [result] = job["results"]
            assert (job["model"], result["model"]["name"]) == (model, model)
            assert {each["label"] for each in result["detections"]} & labels


def test_the_doctors_drawing_is_something_that_a_model_of_everyday_objects_knows(yolo11n: Strict) -> None:
    with yolo11n.service.client(yolo11n.service.new_key()) as http:
        image = pictures()["a stop sign"]
        answer = http.post(
            "/v1/predict", files={"image": image}, data={"model": "yolo11n"}, headers={"Prefer": "wait=30"}
        )
    [result] = answer.json()["results"]
    assert [each["label"] for each in result["detections"]] == ["stop sign"]
