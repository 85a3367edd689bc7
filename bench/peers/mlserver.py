"""MLServer: a worker process for each engine, asked by the Open Inference Protocol."""

import json
import os
import sys
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from bench.detector import Detector
from bench.peers import ENGINES

NAME = "detector"


class Detecting(MLModel):
    async def load(self) -> bool:
        self._detector = Detector.of_environment()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        [picture] = Base64Codec.decode_input(payload.inputs[0])
        found = json.dumps(self._detector.detect(picture))
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("detections", [found])])


def main() -> None:
    port = int(sys.argv[1])
    folder = Path(os.environ["BENCH_FOLDER"])
    (folder / NAME).mkdir()
    (folder / NAME / "model-settings.json").write_text(
        json.dumps({"name": NAME, "implementation": "bench.peers.mlserver.Detecting"})
    )
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": int(os.environ["BENCH_SECOND_PORT"]),
        "metrics_endpoint": None,
        "parallel_workers": ENGINES,
        "debug": False,
        "gzip_enabled": False,
        "environments_dir": str(folder / "environments"),
        "metrics_dir": str(folder / "metrics"),
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", str(folder)])  # noqa: S606


if __name__ == "__main__":
    main()
