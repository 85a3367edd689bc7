"""The lines that a slot and its parent exchange: requests down, answers up, in any order. An answer is its kind, a
space, JSON. Before a request, and before the answer to it, stand its number and a space."""

from dataclasses import dataclass

from pydantic import TypeAdapter

from inference_worker.engines import ModelDescription
from inference_worker.outcomes import Corrupt, Done, Failed, Outcome, Retry, Unprocessable, Work

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Far above a thousand detections with long labels."""


@dataclass(frozen=True)
class Ready:
    """The first line of a slot: its model is loaded and warm. `engine_version`: None where the engine has none.
    `at_once`: pictures that it takes before the first of them is answered."""

    model: ModelDescription
    engine_version: str | None
    at_once: int = 1


@dataclass(frozen=True)
class Refused:
    """Instead of `Ready`: the engine cannot use the model. The slot ends."""

    reason: str


Answer = Ready | Refused | Outcome

_WORK = TypeAdapter(Work)
_ANSWERS: dict[bytes, TypeAdapter[Answer]] = {
    kind.__name__.encode(): TypeAdapter(kind) for kind in (Ready, Refused, Done, Failed, Unprocessable, Corrupt, Retry)
}


def write_numbered(number: int, line: bytes) -> bytes:
    return b"%d %s" % (number, line)


def read_numbered(line: bytes) -> tuple[int, bytes]:
    """The number, and the line after it. Raises `ValueError` where there is none."""
    number, _, rest = line.partition(b" ")
    if not number.isdigit():
        raise ValueError(f"not an answer: {line[:80]!r}")
    return int(number), rest


def write_work(work: Work) -> bytes:
    return _WORK.dump_json(work) + b"\n"


def read_work(line: bytes) -> Work:
    return _WORK.validate_json(line)


def write_answer(answer: Answer) -> bytes:
    kind = type(answer).__name__.encode()
    return b"%s %s\n" % (kind, _ANSWERS[kind].dump_json(answer))


def read_answer(line: bytes) -> Answer:
    """Raises `ValueError` for a line that is no whole answer."""
    kind, _, document = line.partition(b" ")
    if kind not in _ANSWERS:
        raise ValueError(f"not an answer: {line[:80]!r}")
    return _ANSWERS[kind].validate_json(document)
