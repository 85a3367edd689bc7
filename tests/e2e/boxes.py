"""Detections compared with what is known of a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import starter_model

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Seen:
    label: str
    box: Corners


def digits() -> list[Seen]:
    """What is on the starter model's page, at its 640 x 480 pixels."""
    known = json.loads(starter_model.PAGE.with_suffix(".json").read_text())
    return [Seen(each["label"], tuple(each["box"])) for each in known]


def seen(result: Mapping[str, Any]) -> list[Seen]:
    """The detections of one input's result, as the API answers it."""
    corners = ("x1", "y1", "x2", "y2")
    return [Seen(each["label"], tuple(each["box"][name] for name in corners)) for each in result["detections"]]


def overlap(first: Corners, second: Corners) -> float:
    """Intersection over union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(first) + _area(second) - shared)


def assert_same(found: Sequence[Seen], wanted: Sequence[Seen], least_overlap: float = 0.7) -> None:
    """The same labels, each once for each time it is wanted, and each box where it is wanted."""
    assert sorted(each.label for each in found) == sorted(each.label for each in wanted)
    left = list(found)
    for want in wanted:
        best = max((each for each in left if each.label == want.label), key=lambda each: overlap(each.box, want.box))
        assert overlap(best.box, want.box) >= least_overlap, f"{best} lies elsewhere than {want}"
        left.remove(best)


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
