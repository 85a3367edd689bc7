"""What an exported model says of itself, as ultralytics and its exporters write it down."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metadata:
    """`classes`: labels by class id. `size`: height and width of the input. None where the model is silent."""

    task: str | None = None
    classes: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None


def read_metadata(values: Mapping[str, Any]) -> Metadata:
    """`values`: the keys `task`, `names` and `imgsz`, as values or as the Python literals that ONNX files carry. What
    cannot be understood counts as silence."""
    return Metadata(
        task=values["task"] if isinstance(values.get("task"), str) else None,
        classes=_classes(_literal(values.get("names"))),
        size=_size(_literal(values.get("imgsz"))),
    )


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _classes(names: Any) -> tuple[str, ...] | None:
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(isinstance(key, int) and key >= 0 for key in names):
        return None
    if max(names) >= 100_000:
        return None
    return tuple(str(names.get(class_id, class_id)) for class_id in range(max(names) + 1))


def _size(size: Any) -> tuple[int, int] | None:
    match size:
        case int() if size > 0:
            return size, size
        case [int() as height, int() as width] if height > 0 and width > 0:
            return height, width
    return None
