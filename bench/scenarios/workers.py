"""Whether four workers do four times as much as one: an engine that takes 20 ms and no CPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import starter_model
from bench.bare_engine import bare_engine
from bench.fleet import TRANSPORTS, Fleet, fleet
from bench.jobs import Inputs, run_job, upload
from bench.null_engine import SLOW_ENGINE
from bench.pictures import distinct, tiny, written
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario
from bench.scenarios.overhead import job
from tests.e2e.service import start_worker

WORKERS = (1, 2, 4)
STORED = 100
WARM_UP = 100
SETTINGS = {"WHARF_SLOTS": "1", "WHARF_ENGINE": SLOW_ENGINE}


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    pictures = list(islice(distinct(tiny()), STORED))
    with ExitStack() as stack:
        files = written(pictures, folder / "pictures")
        bare = stack.enter_context(bare_engine(SLOW_ENGINE, starter_model.MODEL, files, processes=1))
        contenders = []
        for transport in TRANSPORTS:
            started = stack.enter_context(
                fleet(transport, folder / transport, starter_model.MODEL, SETTINGS, workers=max(WORKERS))
            )
            inputs = upload(started, pictures)
            run_job(started, inputs, WARM_UP)
            for workers in WORKERS:
                measure = partial(_share, started, inputs, size, workers)
                contenders.append(Contender(f"{transport}, {workers} of them", measure))
        yield Contest(contenders, Contender("bare engine, one process", partial(bare.measure, size)))


def _share(fleet: Fleet, inputs: Inputs, size: int, workers: int) -> Window:
    """`size` pictures for each worker; what one of them does of it."""
    for part in fleet.workers[workers:]:
        part.stop()
    for part in fleet.workers[:workers]:
        if part.process is None or part.process.poll() is not None:
            start_worker(part)
    some = replace(fleet, workers=fleet.workers[:workers])
    window = job(some, inputs, size * workers)
    return replace(window, per_second=window.per_second / workers)


SCENARIO = Scenario(
    "k", "1, 2 and 4 workers with an engine of 20 ms: what each of them does", "images", size=500, open=_open
)
