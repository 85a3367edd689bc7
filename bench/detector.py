"""What a peer serves: the decoder and the engine of a worker's slot, from the bytes of a JPEG to its detections.

A peer's processes make theirs themselves, each in its own way, so that it is told by the environment what to be."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from custody.wire import Parameters
from inference_worker.decode import decode
from inference_worker.engines.openvino import OpenVINOEngine

MODEL = "BENCH_MODEL"
THREADS = "BENCH_THREADS"
WHOLE = "BENCH_WHOLE"

Detections = list[dict[str, Any]]
"""As the API has them; the most confident first."""


class Detector:
    """Warm once it is made. One picture at a time. `whole`: large JPEGs are decoded whole, as they are by everybody
    else's decoder."""

    def __init__(self, model: Path, threads: int, *, whole: bool = False) -> None:
        cv2.setNumThreads(threads)
        self._engine = OpenVINOEngine(model, threads, "auto")
        self._engine.warm_up()
        description = self._engine.description
        self._fit = None if whole else (description.input_width, description.input_height)

    @classmethod
    def of_environment(cls) -> "Detector":
        return cls(Path(os.environ[MODEL]), int(os.environ[THREADS]), whole=bool(os.environ.get(WHOLE)))

    def detect(self, jpeg: bytes) -> Detections:
        picture = decode(jpeg, "image/jpeg", 1, fit=self._fit)
        return [each.model_dump(mode="json") for each in self._engine.infer(picture, Parameters())]


def environment(model: Path, threads: int, *, whole: bool) -> Mapping[str, str]:
    """What `Detector.of_environment` is told by."""
    return {MODEL: str(model), THREADS: str(threads), WHOLE: "1" if whole else ""}
