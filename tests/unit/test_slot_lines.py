from uuid import UUID

import pytest

from custody.wire import Box, Detection, Parameters
from inference_worker.engines import ModelDescription
from inference_worker.lines import (
    MAX_LINE_BYTES,
    Answer,
    Ready,
    Refused,
    read_answer,
    read_numbered,
    read_work,
    write_answer,
    write_numbered,
    write_work,
)
from inference_worker.outcomes import Corrupt, Done, Failed, Retry, Unprocessable, Work

DETECTION = Detection(class_id=5, label="bus ü\n", confidence=0.94, box=Box(x1=3.1, y1=228.9, x2=795.6, y2=729.4))
TIMINGS = {"read_ms": 0.1, "decode_ms": 2.5, "infer_ms": 30.0}


def test_work_survives_the_line() -> None:
    parameters = Parameters(conf=0.3, iou=0.5, max_detections=7)
    work = Work(UUID(int=7), "blobs/a b\n/ü", "image/jpeg", 6, parameters, "ab" * 32, verify=True)
    line = write_work(work)
    assert line.count(b"\n") == 1
    assert read_work(line) == work


@pytest.mark.parametrize(
    "answer",
    [
        Ready(ModelDescription("detect", ("person", "bus"), 640, 480), "2026.1"),
        Ready(ModelDescription("detect", (), 640, 480), None),
        Refused("no such\nmodel"),
        Done([DETECTION], 810, 1080, **TIMINGS),
        Done([], 1, 1, **TIMINGS),
        Failed("inference_failed", "line one\nline two"),
        Unprocessable("undecodable_image", ""),
        Corrupt("other\nbytes"),
        Retry("file_unreadable", "ENOENT"),
    ],
)
def test_answer_survives_the_line_as_its_own_kind(answer: Answer) -> None:
    line = write_answer(answer)
    assert line.count(b"\n") == 1
    assert read_answer(line) == answer


def test_number_before_a_line_survives_and_a_line_without_one_is_refused() -> None:
    assert read_numbered(write_numbered(1234567, b"Done {}\n")) == (1234567, b"Done {}\n")
    for line in (b"\n", b"Done {}\n", b"-1 Done {}\n", b" Done {}\n"):
        with pytest.raises(ValueError, match="not an answer"):
            read_numbered(line)


def test_most_detections_fit_into_a_line() -> None:
    line = write_answer(Done([DETECTION] * Parameters(max_detections=1000).max_detections, 810, 1080, **TIMINGS))
    assert len(line) < MAX_LINE_BYTES / 10


@pytest.mark.parametrize("line", [b"\n", b"hello\n", b'{"Done": {}}\n', b"Done {}\n", b"Failed {\n", b"Retry 5\n"])
def test_line_that_is_no_answer_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an answer|validation error"):
        read_answer(line)
