"""How closely two engines agree with the same weights: one place, which docs/models.md repeats."""

from collections.abc import Sequence

import pytest

from custody.wire import Box, Detection

CONFIDENCE_ERROR = 0.0005
PIXEL_ERROR = 0.05
"""In pixels of the network's input. Sums of float32 in another order; measured: 0.000005 and 0.002."""


def pixels(width: int, height: int, side: int = 640) -> float:
    """`PIXEL_ERROR` in pixels of a picture of this size."""
    return PIXEL_ERROR * max(max(width, height) / side, 1)


def assert_same_boxes(found: Sequence[Detection], others: Sequence[Detection], error: float, where: str) -> None:
    assert [each.class_id for each in found] == [each.class_id for each in others], where
    assert [each.label for each in found] == [each.label for each in others], where
    for each, other in zip(found, others, strict=True):
        assert each.confidence == pytest.approx(other.confidence, abs=CONFIDENCE_ERROR), where
        assert sides(each.box) == pytest.approx(sides(other.box), abs=error), where


def sides(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2
