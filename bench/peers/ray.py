"""Ray Serve: a replica for each engine, and the cluster that it wants on one machine."""

import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from starlette.requests import Request

from bench.detector import Detections, Detector
from bench.peers import ENGINES


class Detecting:
    def __init__(self) -> None:
        self._detector = Detector.of_environment()
        self._thread = ThreadPoolExecutor(1)

    async def __call__(self, request: Request) -> Detections:
        jpeg = await request.body()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._detector.detect, jpeg)


def main() -> None:
    ray.init(
        num_cpus=ENGINES,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _temp_dir=os.environ["BENCH_FOLDER"],
        log_to_driver=False,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False}
    )
    deployed = serve.deployment(num_replicas=ENGINES, ray_actor_options={"num_cpus": 1})(Detecting)
    serve.run(deployed.bind(), route_prefix="/detect")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
