"""What a cache that never hits costs: a job of pictures that nobody has seen, against the same with `cache: false`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import psycopg

import starter_model
from bench.fleet import TRANSPORTS, Fleet, fleet
from bench.jobs import Inputs, run_job, upload
from bench.null_engine import FINDING_ENGINE
from bench.peers import ENGINES
from bench.pictures import distinct, tiny
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario
from bench.scenarios.overhead import job

WARM_UP = 500
SETTINGS = {"WHARF_SLOTS": str(ENGINES), "WHARF_ENGINE": FINDING_ENGINE}


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    pictures = list(islice(distinct(tiny()), size))
    with ExitStack() as stack:
        contenders = []
        for transport in TRANSPORTS:
            started = stack.enter_context(fleet(transport, folder / transport, starter_model.MODEL, SETTINGS))
            inputs = upload(started, pictures)
            run_job(started, inputs, WARM_UP)
            contenders += [
                Contender(f"{transport}, nothing known", partial(_misses, started, inputs)),
                Contender(f"{transport}, cache: false", partial(job, started, inputs, size)),
            ]
        *others, limit = contenders
        yield Contest(others, limit)


def _misses(fleet: Fleet, inputs: Inputs) -> Window:
    with psycopg.connect(fleet.service.database, autocommit=True) as connection:
        connection.execute("TRUNCATE wharf.cached_results")
    return job(fleet, inputs, len(inputs), cache=True)


SCENARIO = Scenario(
    "misses", "A job of stored pictures of which nothing is known, with the cache and without", "images",
    size=5000, open=_open,
)  # fmt: skip
