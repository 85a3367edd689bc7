"""LitServe: a worker process for each engine."""

import sys
from typing import Annotated

from fastapi import Body
from litserve import LitAPI, LitServer

from bench.detector import Detections, Detector
from bench.peers import ENGINES


class Detecting(LitAPI):
    def setup(self, device: str) -> None:
        self._detector = Detector.of_environment()

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def predict(self, x: bytes) -> Detections:
        return self._detector.detect(x)

    def encode_response(self, output: Detections) -> Detections:
        return output


if __name__ == "__main__":
    server = LitServer(Detecting(api_path="/detect"), accelerator="cpu", workers_per_device=ENGINES, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, access_log=False)
