"""An engine that costs nothing but time: what is left of a picture's CPU is the service's own."""

import time
from pathlib import Path

from bench.pictures import TINY
from custody.wire import Box, Detection, Parameters
from inference_worker.decode import Picture
from inference_worker.engines import ModelDescription

NULL_ENGINE = "bench.null_engine:NullEngine"
FINDING_ENGINE = "bench.null_engine:FindingEngine"
SLOW_ENGINE = "bench.null_engine:SlowEngine"

FIVE = [
    Detection(class_id=0, label="nothing", confidence=0.9 - number / 10, box=Box(x1=1.5, y1=2.5, x2=30.5, y2=31.5))
    for number in range(5)
]


class NullEngine:
    """Whatever the model file is. It finds nothing, in `seconds`."""

    seconds = 0.0015

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        pass

    @property
    def description(self) -> ModelDescription:
        return ModelDescription("detect", ("nothing",), *TINY)

    def warm_up(self) -> None:
        pass

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        time.sleep(self.seconds)
        return []


class FindingEngine(NullEngine):
    """It finds five things in every picture."""

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        super().infer(picture, parameters)
        return FIVE


class SlowEngine(NullEngine):
    seconds = 0.02
