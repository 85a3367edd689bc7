"""How soon a worker is of use: from the start of its process to the result of a picture that waited for it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType

from bench.fleet import Fleet, fleet
from bench.jobs import WAIT, upload
from bench.machine import ROOT
from bench.peers import ENGINES
from bench.pictures import distinct, model_and_photo, written
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    model, photo = model_and_photo()
    files = written(islice(distinct(photo), 1), folder / "pictures")
    compiled = folder / "compiled"
    settings = {"WHARF_SLOTS": str(ENGINES), "WHARF_COMPILED_FOLDER": str(compiled)}
    with fleet("embedded", folder / "embedded", model, settings) as started:
        contenders = [
            Contender("warm", partial(_start_worker, started, photo, size, lambda: None)),
            Contender("cold", partial(_start_worker, started, photo, size, partial(rmtree, compiled))),
        ]
        yield Contest(contenders, Contender("bare engine", partial(_start_bare_engine, model, files, size)))


def _start_worker(fleet: Fleet, photo: bytes, starts: int, prepare: Callable[[], None]) -> Window:
    """`prepare`: once the worker has stopped. Each start leaves the cache warm."""
    [worker] = fleet.workers
    seconds = cpu_seconds = 0.0
    with fleet.service.client() as client:
        for picture in islice(distinct(photo), starts):
            worker.stop()
            prepare()
            inputs = upload(fleet, [picture])
            job = client.post("/v1/jobs", json={"inputs": inputs}).raise_for_status().json()
            began = time.perf_counter()
            worker.start()
            ended = client.get(f"/v1/jobs/{job['id']}", headers=WAIT, timeout=90).raise_for_status().json()
            seconds += time.perf_counter() - began
            used = fleet.cpu_seconds()
            cpu_seconds += used["worker"] + used["slots"]
            if ended["state"] != "succeeded":
                raise RuntimeError(f"A worker that was started has not done what waited for it: {ended}")
    return _window(seconds, starts, {"CPU ms": cpu_seconds / starts * 1000})


def _start_bare_engine(model: Path, files: Path, starts: int) -> Window:
    command = [sys.executable, "-m", "bench.bare_engine", "openvino", str(model), str(files)]
    seconds = 0.0
    for _ in range(starts):
        began = time.perf_counter()
        subprocess.run(command, input="1\n", stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        seconds += time.perf_counter() - began
    return _window(seconds, starts)


def _window(seconds: float, starts: int, more: Mapping[str, float] = MappingProxyType({})) -> Window:
    return Window(starts / seconds, {"first result ms": seconds / starts * 1000, **more})


SCENARIO = Scenario(
    "l",
    "From a worker's start to its first result, with the cache of compiled models warm and cold",
    "starts",
    size=3,
    open=_open,
)
