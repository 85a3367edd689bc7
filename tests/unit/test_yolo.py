import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from custody.wire import Parameters
from inference_worker.engines.yolo import (
    Letterbox,
    UnknownHeadError,
    choose_head,
    dense,
    end_to_end,
    suppress,
    to_detections,
)
from tests.support.networks import dense_output, end_to_end_output

ALL = Parameters(conf=0.0, iou=1.0)


@pytest.mark.parametrize(
    ("picture", "inner", "corner"),
    [
        ((810, 1080), (480, 640), (80, 0)),
        ((1280, 720), (640, 360), (0, 140)),
        ((640, 640), (640, 640), (0, 0)),
        ((320, 320), (640, 640), (0, 0)),
        ((1000, 667), (640, 427), (0, 106)),  # 106.5 of margin: the odd row goes below
        ((333, 1000), (213, 640), (213, 0)),
        ((1, 3000), (1, 640), (319, 0)),
        ((3000, 1), (640, 1), (0, 319)),
    ],
)
def test_letterbox_lies_where_ultralytics_puts_it(
    picture: tuple[int, int], inner: tuple[int, int], corner: tuple[int, int]
) -> None:
    letterbox = Letterbox(*picture, 640, 640)
    assert (letterbox.width, letterbox.height) == inner
    assert (letterbox.left, letterbox.top) == corner


def test_letterbox_draws_the_picture_between_grey_margins() -> None:
    canvas = np.full((6, 8, 3), 9, dtype=np.uint8)
    Letterbox(4, 6, 8, 6).draw(np.full((6, 4, 3), 200, dtype=np.uint8), canvas)
    assert (canvas[:, 2:6] == 200).all()
    assert (canvas[:, :2] == 114).all()
    assert (canvas[:, 6:] == 114).all()


def test_letterbox_leaves_nothing_of_the_last_picture() -> None:
    canvas = np.zeros((64, 64, 3), dtype=np.uint8)
    Letterbox(64, 64, 64, 64).draw(np.full((64, 64, 3), 255, dtype=np.uint8), canvas)
    Letterbox(64, 10, 64, 64).draw(np.full((10, 64, 3), 50, dtype=np.uint8), canvas)
    assert set(np.unique(canvas)) == {50, 114}


def test_letterbox_is_of_the_whole_picture_where_its_pixels_are_fewer() -> None:
    canvas = np.zeros((64, 64, 3), dtype=np.uint8)
    Letterbox(4000, 2000, 64, 64).draw(np.full((500, 1000, 3), 200, dtype=np.uint8), canvas)
    assert (canvas[16:48] == 200).all()
    assert (canvas[:16] == 114).all()


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_drawn_picture_fits_and_its_corners_return_to_its_corners(width: int, height: int) -> None:
    letterbox = Letterbox(width, height, 640, 416)
    right, bottom = letterbox.left + letterbox.width, letterbox.top + letterbox.height
    assert 0 <= letterbox.left < right <= 640
    assert 0 <= letterbox.top < bottom <= 416
    inner = np.array([[letterbox.left, letterbox.top, right, bottom]], dtype=np.float32)
    np.testing.assert_allclose(letterbox.to_picture(inner), [[0, 0, width, height]], rtol=1e-5)


def test_boxes_are_clipped_to_the_picture() -> None:
    outside = np.array([[-50, -50, 900, 900]], dtype=np.float32)
    np.testing.assert_array_equal(Letterbox(810, 1080, 640, 640).to_picture(outside), [[0, 0, 810, 1080]])


@pytest.mark.parametrize(
    ("shape", "classes", "head"),
    [
        ((1, 84, 8400), 80, dense),
        ((1, 84, 8400), None, dense),
        ((1, 5, 8400), 1, dense),
        ((1, 6, 8400), 2, dense),
        ((1, 300, 6), 80, end_to_end),
        ((1, 300, 6), None, end_to_end),
    ],
)
def test_head_is_told_by_the_shape(shape: tuple[int, ...], classes: int | None, head: object) -> None:
    assert choose_head(shape, classes) is head


@pytest.mark.parametrize(
    "shape",
    [(1, 1000), (1, 25200, 85), (1, 8400, 84), (2, 84, 8400), (1, 4, 8400), (1, 3, 80, 80, 85), (2, 300, 6), ()],
)
def test_unknown_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnknownHeadError, match="shape"):
        choose_head(shape, None)


def test_dense_head_whose_channels_are_not_its_classes_is_refused() -> None:
    with pytest.raises(UnknownHeadError, match="names 80 classes"):
        choose_head((1, 116, 8400), 80)


def test_dense_head_gives_the_best_class_of_each_box_the_most_confident_first() -> None:
    output = dense_output([(10, 20, 4, 6, 0.3, 0.6), (50, 20, 4, 6, 0.9, 0.2)], classes=2)
    np.testing.assert_allclose(dense(output, Parameters()), [[48, 17, 52, 23, 0.9, 0], [8, 17, 12, 23, 0.6, 1]])


@pytest.mark.parametrize(("conf", "kept"), [(0.49, 1), (0.5, 0), (0.51, 0), (1.0, 0)])
def test_confidence_is_strictly_greater(conf: float, kept: int) -> None:
    assert len(dense(dense_output([(10, 20, 4, 6, 0.5)], classes=1), Parameters(conf=conf))) == kept
    assert len(end_to_end(end_to_end_output([(1, 1, 9, 9, 0.5, 0)]), Parameters(conf=conf))) == kept


def test_nan_is_no_detection() -> None:
    output = dense_output([(10, 20, 4, 6, float("nan")), (50, 20, 4, 6, 0.8)], classes=1)
    assert len(dense(output, ALL)) == 1


def test_overlapping_boxes_of_one_class_leave_the_most_confident() -> None:
    output = dense_output([(10, 10, 8, 8, 0.7), (11, 10, 8, 8, 0.9), (40, 40, 8, 8, 0.5)], classes=1)
    np.testing.assert_allclose(dense(output, Parameters())[:, 4], [0.9, 0.5])


def test_overlapping_boxes_of_two_classes_both_stay() -> None:
    output = dense_output([(10, 10, 8, 8, 0.7, 0.0), (10, 10, 8, 8, 0.0, 0.9)], classes=2)
    np.testing.assert_allclose(dense(output, Parameters())[:, 5], [1, 0])


@pytest.mark.parametrize(("iou", "kept"), [(0.49, 1), (0.5, 2), (0.51, 2)])
def test_overlap_at_the_threshold_stays(iou: float, kept: int) -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], dtype=np.float32)
    assert len(suppress(boxes, iou, 300)) == kept


def test_box_that_only_a_suppressed_one_overlaps_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], dtype=np.float32)
    np.testing.assert_array_equal(suppress(boxes, 0.4, 300), [0, 2])


def test_boxes_without_area_stay_and_raise_no_warning() -> None:
    np.testing.assert_array_equal(suppress(np.zeros((3, 4), dtype=np.float32), 0.5, 300), [0, 1, 2])


def test_max_detections_keeps_the_most_confident() -> None:
    scores = np.linspace(0.3, 0.9, 12)
    output = dense_output([(20 * i + 10, 10, 8, 8, score) for i, score in enumerate(scores)], classes=1)
    rows = dense(output, Parameters(max_detections=5))
    np.testing.assert_allclose(rows[:, 4], scores[::-1][:5], rtol=1e-6)
    many = end_to_end(
        end_to_end_output([(0, 0, 9, 9, 0.9 - i / 100, 0) for i in range(12)]), Parameters(max_detections=5)
    )
    assert len(many) == 5


def test_equally_confident_boxes_keep_the_order_of_the_output() -> None:
    output = dense_output([(20 * i + 10, 10, 8, 8, 0.5) for i in range(12)], classes=1)
    np.testing.assert_array_equal(dense(output, Parameters())[:, 0], [20 * i + 6 for i in range(12)])


def test_output_without_detections_gives_none() -> None:
    assert dense(dense_output([], classes=3), ALL).shape == (0, 6)
    assert end_to_end(end_to_end_output([]), ALL).shape == (0, 6)


@given(st.data())
def test_suppression_agrees_with_its_definition(data: st.DataObject) -> None:
    side = st.integers(0, 20)
    corners = data.draw(st.lists(st.tuples(side, side, side, side), max_size=12))
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], dtype=np.float32).reshape(-1, 4)
    iou = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
    limit = data.draw(st.integers(1, 12))
    np.testing.assert_array_equal(suppress(boxes, iou, limit), suppressed_one_by_one(boxes, iou)[:limit])


def suppressed_one_by_one(boxes: NDArray[np.float32], iou: float) -> list[int]:
    kept: list[int] = []
    for i, (x1, y1, x2, y2) in enumerate(boxes.astype(float)):
        for j in kept:
            u1, v1, u2, v2 = boxes[j].astype(float)
            shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
            if union and np.float32(shared / union) > iou:
                break
        else:
            kept.append(i)
    return kept


def test_detections_are_labelled_and_in_pixels_of_the_picture() -> None:
    rows = np.array([[80, 0, 320, 320, 0.87654321, 1], [0, 0, 640, 640, 0.5, 7]], dtype=np.float32)
    first, second = to_detections(rows, Letterbox(810, 1080, 640, 640), ("person", "bus"))
    assert (first.class_id, first.label, first.confidence) == (1, "bus", 0.876543)
    assert first.box.model_dump() == {"x1": 0.0, "y1": 0.0, "x2": 405.0, "y2": 540.0}
    assert (second.class_id, second.label) == (7, "7")
