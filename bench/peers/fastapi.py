"""FastAPI as one writes it in an hour: the picture in, the detections out. uvicorn's processes, and in each of them a
thread for each of its engines."""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import local

import uvicorn
from fastapi import FastAPI, Request

from bench.detector import Detections, Detector
from bench.peers import ENGINES

PROCESSES = "BENCH_PROCESSES"

app = FastAPI()
_thread = local()


def _load() -> None:
    _thread.detector = Detector.of_environment()


_engines = ThreadPoolExecutor(ENGINES // int(os.environ[PROCESSES]), initializer=_load)


def _detect(jpeg: bytes) -> Detections:
    detector: Detector = _thread.detector
    return detector.detect(jpeg)


@app.post("/detect")
async def detect(request: Request) -> Detections:
    return await asyncio.get_running_loop().run_in_executor(_engines, _detect, await request.body())


if __name__ == "__main__":
    port, processes = int(sys.argv[1]), int(os.environ[PROCESSES])
    uvicorn.run("bench.peers.fastapi:app", port=port, workers=processes, log_level="warning", access_log=False)
