"""An engine that misbehaves on command, for tests of what a slot and a worker outlive.

Named by its import spec: `tests.support.engines:HazardEngine`. A slot imports it from PYTHONPATH, which has to name the
repository's root: `ENVIRONMENT` does.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from custody.wire import Detection, Parameters
from inference_worker.decode import Picture
from inference_worker.engines import ModelDescription
from inference_worker.engines.openvino import OpenVINOEngine

HAZARD_ENGINE = "tests.support.engines:HazardEngine"
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}

CRASHING = (255, 0, 0)
HANGING = (0, 0, 255)
RAISING = (0, 255, 0)
NOISY = (255, 255, 0)
"""Colours of whole pictures; JPEG's rounding does no harm."""


class HazardEngine:
    """The OpenVINO engine, but a picture that is all red aborts the process, all blue hangs for ever, all green raises,
    and all yellow prints to standard output before it is answered."""

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        self._engine = OpenVINOEngine(model_path, threads, precision)

    @property
    def description(self) -> ModelDescription:
        return self._engine.description

    def warm_up(self) -> None:
        self._engine.warm_up()

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        if _is(picture, CRASHING):
            os.abort()
        if _is(picture, HANGING):
            while True:
                time.sleep(3600)
        if _is(picture, RAISING):
            raise RuntimeError("this picture is all green")
        if _is(picture, NOISY):
            os.write(1, b"native noise on descriptor 1\n")
            sys.stdout.write("noise on sys.stdout\n")
            sys.stdout.flush()
        return self._engine.infer(picture, parameters)


def _is(picture: Picture, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture.pixels.mean(axis=(0, 1)) - colour) < 30).all())


class StillbornEngine(HazardEngine):
    """Breaks as it is loaded, with an error of no kind that engines promise."""

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        raise RuntimeError("the device is on fire")


class EndlessEngine(HazardEngine):
    """Is never done loading."""

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        while True:
            time.sleep(3600)
