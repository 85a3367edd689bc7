"""The picture in the message: FastAPI takes it and sends it as base64 through RabbitMQ to Celery's workers, which put
their results into Postgres, where FastAPI looks for them."""

import asyncio
import os
import subprocess
import sys
from base64 import b64decode, b64encode

import uvicorn
from celery import Celery
from celery.signals import worker_process_init
from fastapi import FastAPI, Request

from bench.detector import Detections, Detector
from bench.peers import ENGINES

POLL_SECONDS = 0.02

app = FastAPI()
queue = Celery("messages", broker=os.environ["BENCH_AMQP_URL"], backend=os.environ["BENCH_RESULTS_URL"])
queue.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
_detectors: list[Detector] = []


@worker_process_init.connect
def load(**_: object) -> None:
    _detectors.append(Detector.of_environment())


@queue.task
def look(picture: str) -> Detections:
    [detector] = _detectors
    return detector.detect(b64decode(picture))


@app.post("/detect")
async def detect(request: Request) -> Detections:
    jpeg = await request.body()
    sent = await asyncio.to_thread(lambda: look.delay(b64encode(jpeg).decode()))
    while not await asyncio.to_thread(sent.ready):  # noqa: ASYNC110 - Celery tells nobody
        await asyncio.sleep(POLL_SECONDS)
    found: Detections = await asyncio.to_thread(sent.get)
    return found


def main() -> None:
    command = (sys.executable, "-m", "celery", "-A", "bench.peers.messages:queue", "worker")
    options = (f"--concurrency={ENGINES}", "--without-gossip", "--without-mingle", "--loglevel=WARNING")
    with subprocess.Popen([*command, *options]) as workers:
        try:
            uvicorn.run("bench.peers.messages:app", port=int(sys.argv[1]), log_level="warning", access_log=False)
        finally:
            workers.terminate()


if __name__ == "__main__":
    main()
