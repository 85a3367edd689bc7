"""Engines that misbehave on command, for tests of what a slot and a worker outlive.

Named by their import specs, as `tests.support.engines:HazardEngine`. A slot imports it from PYTHONPATH, which names
the repository's root: see `ENVIRONMENT`.
"""

import hashlib
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from custody.wire import Box, Detection, Parameters
from inference_worker.batch_policy import BatchPolicy
from inference_worker.batcher import Batcher
from inference_worker.decode import Picture
from inference_worker.engines import ModelDescription
from inference_worker.engines.openvino import OpenVINOEngine

HAZARD_ENGINE = "tests.support.engines:HazardEngine"
QUICK_ENGINE = "tests.support.engines:QuickEngine"
BATCHED_ENGINE = "tests.support.engines:BatchedEngine"
BATCH_ENGINE = "tests.support.engines:FakeDevice"
FINGERPRINT_ENGINE = "tests.support.engines:FingerprintEngine"
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2])}

CRASHING = (255, 0, 0)
HANGING = (0, 0, 255)
RAISING = (0, 255, 0)
NOISY = (255, 255, 0)
SLUGGISH = (128, 0, 128)
MURDEROUS = (255, 0, 255)
GREEDY = (0, 255, 255)
STARVED = (255, 128, 0)
"""Colours of whole pictures; JPEG's rounding does no harm."""


class HazardEngine:
    """The OpenVINO engine, but a picture that is all red aborts the process, all blue hangs for ever, all green raises,
    all yellow prints to standard output before it is answered, and all purple takes a second."""

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        self._engine = OpenVINOEngine(model_path, threads, precision)

    @property
    def description(self) -> ModelDescription:
        return self._engine.description

    def warm_up(self) -> None:
        self._engine.warm_up()

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        _obey(picture)
        if _is(picture, NOISY):
            os.write(1, b"native noise on descriptor 1\n" * 1000)
            sys.stdout.write("noise on sys.stdout\n")
            sys.stdout.flush()
        if _is(picture, SLUGGISH):
            time.sleep(1)
        return self._engine.infer(picture, parameters)


class QuickEngine:
    """Loads no model and finds nothing: in as many milliseconds as the picture is grey, 0 to 255. It is as vulnerable
    to red, blue and green as the `HazardEngine`; all magenta kills the worker, all cyan asks for more memory than there
    is, and all orange ends the process as the kernel does that has no memory left."""

    description = ModelDescription("detect", ("nothing",), 32, 32)

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        _obey(picture)
        if _is(picture, MURDEROUS):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(3600)
        if _is(picture, GREEDY):
            _ask_for_all_memory()
        if _is(picture, STARVED):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(picture.pixels.mean()) / 1000)
        return []


class FingerprintEngine:
    """Loads no model, and finds one thing: the `fingerprint` of the picture, which tells it from every other. Takes 20
    milliseconds, and hardly any CPU. It raises at what is green."""

    description = ModelDescription("detect", ("picture",), 48, 48)

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        time.sleep(0.02)
        _obey(picture)
        return [fingerprint(picture.pixels)]


def fingerprint(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Detection:
    """A box of 32 pixels at most whose corners are 64 bits of the pixels' hash."""
    left, top, right, bottom = (
        each / 4096 for each in struct.unpack("<4H", hashlib.sha256(pixels.tobytes()).digest()[:8])
    )
    box = Box(x1=left, y1=top, x2=16 + right, y2=16 + bottom)
    return Detection(class_id=0, label="picture", confidence=1, box=box)


class FakeDevice:
    """The OpenVINO engine as a device of fixed latency that takes batches: 20 ms each, and 1 ms for each picture. A
    picture that is all green spoils its batch, all cyan has room for itself alone, and all red aborts the process."""

    gains_from_batches = True
    version = "fake"

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        self._engine = OpenVINOEngine(model_path, threads, precision)
        self.sizes: list[int] = []
        """Of all batches, those that came to nothing included."""
        self.gate = threading.Event()
        """While it is not set, what the device has begun does not end."""
        self.gate.set()

    @property
    def description(self) -> ModelDescription:
        return self._engine.description

    def warm_up(self) -> None:
        self._engine.warm_up()

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        [answer] = self.infer_batch([self.prepare(picture)], [parameters])
        return self.detections(picture, answer)

    def prepare(self, picture: Picture) -> Picture:
        return picture

    def infer_batch(self, prepared: Sequence[Picture], parameters: Sequence[Parameters]) -> list[list[Detection]]:
        self.sizes.append(len(prepared))
        self.gate.wait()
        time.sleep(0.020 + 0.001 * len(prepared))
        for picture in prepared:
            _obey(picture)
        if len(prepared) > 1 and any(_is(picture, GREEDY) for picture in prepared):
            raise MemoryError("the device has no room for so many")
        return [self._engine.infer(picture, each) for picture, each in zip(prepared, parameters, strict=True)]

    def detections(self, prepared: Picture, answer: list[Detection]) -> list[Detection]:
        return answer


class BatchedEngine:
    """A `Batcher` of the `FakeDevice`, as an engine."""

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        self.device = FakeDevice(model_path, threads, precision)
        self._batcher = Batcher(self.device, BatchPolicy(8, 0.005))
        self.description = self._batcher.description
        self._batcher.warm_up()

    def warm_up(self) -> None:
        pass

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        return self._batcher.infer(picture, parameters)


def _obey(picture: Picture) -> None:
    if _is(picture, CRASHING):
        os.abort()
    if _is(picture, HANGING):
        while True:
            time.sleep(3600)
    if _is(picture, RAISING):
        raise RuntimeError("this picture is all green")


def _ask_for_all_memory() -> None:
    """Raises `MemoryError`, on a machine of any size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        hoard = []
        while True:
            hoard.append(bytearray(32 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
