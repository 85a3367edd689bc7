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
    program = str(Path(sys.executable).with_name("bentoml"))
    place = ("--host", "127.0.0.1", "--port", sys.argv[1], "--working-dir", str(Path(__file__).parents[2]))
    os.execv(program, [program, "serve", "bench.peers.bentoml:Detecting", *place])  # noqa: S606
