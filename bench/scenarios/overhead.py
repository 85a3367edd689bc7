"""What a picture costs beside its inference: stored inputs and uploads through an engine that only sleeps."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import starter_model
from bench.bare_engine import bare_engine
from bench.fleet import IDLE_SECONDS, TRANSPORTS, Fleet, fleet, per_thing
from bench.jobs import Inputs, run_job, upload
from bench.load import cpu_figures, measured
from bench.null_engine import NULL_ENGINE
from bench.peers import ENGINES
from bench.pictures import distinct, tiny, written
from bench.request import predict
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario, program

STORED = 100
WARM_UP = 500
CONNECTIONS = 8
SETTINGS = {"WHARF_SLOTS": str(ENGINES), "WHARF_ENGINE": NULL_ENGINE}


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    program("wrk")
    pictures = list(islice(distinct(tiny()), STORED))
    with ExitStack() as stack:
        files = written(pictures, folder / "pictures")
        bare = stack.enter_context(bare_engine(NULL_ENGINE, starter_model.MODEL, files))
        contenders = []
        for transport in TRANSPORTS:
            started = stack.enter_context(fleet(transport, folder / transport, starter_model.MODEL, SETTINGS))
            inputs = upload(started, pictures)
            run_job(started, inputs, WARM_UP)
            contenders += [
                Contender(f"{transport}, one job", partial(_counted, started, partial(job, started, inputs), size)),
                Contender(f"{transport}, an upload each", partial(_counted, started, partial(_uploads, started), size)),
            ]
        yield Contest(contenders, Contender("bare null engine", partial(bare.measure, size)))


def job(fleet: Fleet, inputs: Inputs, size: int, *, cache: bool = False) -> Window:
    """One job, and what it cost. `cache` as in `run_job`."""
    before = fleet.cpu_seconds()
    seconds = run_job(fleet, inputs, size, cache=cache)
    return Window(size / seconds, cpu_figures(per_thing(before, fleet.cpu_seconds(), size)))


def _uploads(fleet: Fleet, size: int) -> Window:
    return measured(fleet, predict(fleet.service, tiny(), wait=True), size, CONNECTIONS)


def _counted(fleet: Fleet, measure: Callable[[int], Window], size: int) -> Window:
    """With what was asked of the servers."""
    counted = fleet.counts()
    window = measure(size)
    time.sleep(IDLE_SECONDS)
    return replace(window, figures={**window.figures, **per_thing(counted, fleet.counts(), size)})


SCENARIO = Scenario(
    "d", "CPU of each process, SQL and AMQP for a picture that costs 1.5 ms of sleep", "images", size=5000, open=_open
)
