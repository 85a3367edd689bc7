"""BentoML: a worker process for each engine. What it calls a file it writes to a temporary one."""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml

from bench.detector import Detections, Detector
from bench.peers import ENGINES


@bentoml.service(workers=ENGINES, traffic={"timeout": 60})
class Detecting:
    def __init__(self) -> None:
        self._detector = Detector.of_environment()

    @bentoml.api
    def detect(self, picture: Annotated[Path, bentoml.validators.ContentType("image/jpeg")], /) -> Detections:
        return self._detector.detect(picture.read_bytes())


if __name__ == "__main__":
    command = ("bentoml", "serve", "bench.peers.bentoml:Detecting", "--host", "127.0.0.1", "--port", sys.argv[1])
    os.execv(sys.executable, [sys.executable, "-m", *command, "--working-dir", str(Path(__file__).parents[2])])  # noqa: S606
