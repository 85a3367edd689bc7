"""An engine that costs nothing but time: what is left of a picture's CPU is the service's own."""

import time
from pathlib import Path

from bench.pictures import TINY
from custody.wire import Detection, Parameters
from inference_worker.decode import Picture
from inference_worker.engines import ModelDescription

NULL_ENGINE = "bench.null_engine:NullEngine"
SLOW_ENGINE = "bench.null_engine:SlowEngine"


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


class SlowEngine(NullEngine):
    seconds = 0.02
