"""What traces cost: an upload each through an engine that only sleeps, with every picture told to a collector, with one
in a hundred, and with none."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import starter_model
from bench.collector import Collector, collector
from bench.fleet import Fleet, fleet, per_thing
from bench.load import closed_loop, cpu_figures
from bench.null_engine import NULL_ENGINE
from bench.peers import ENGINES
from bench.pictures import tiny
from bench.request import predict
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario, program

WARM_UP = 500
CONNECTIONS = 8
SENT_SECONDS = 6
"""After a window, until its last spans have been sent: they wait for 5 s at most."""

SETTINGS = {"WHARF_SLOTS": str(ENGINES), "WHARF_ENGINE": NULL_ENGINE}
SAMPLERS = {
    "every picture": {"OTEL_TRACES_SAMPLER": "always_on"},
    "one in 100": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
}


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    program("wrk")
    with ExitStack() as stack:
        told = stack.enter_context(collector(folder / "collector"))
        measures = {}
        for name, sampler in {"no traces": {}, **SAMPLERS}.items():
            environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": told.url, **sampler} if sampler else {}
            started = stack.enter_context(
                fleet("amqp", folder / name.replace(" ", "-"), starter_model.MODEL, SETTINGS, environment=environment)
            )
            closed_loop(started.url, predict(started.service, tiny(), wait=True), WARM_UP, CONNECTIONS)
            measures[name] = partial(_measured, started, told, size)
        limit = Contender("no traces", measures.pop("no traces"))
        yield Contest([Contender(name, measure) for name, measure in measures.items()], limit, added=["CPU ms"])


def _measured(fleet: Fleet, collector: Collector, pictures: int) -> Window:
    """CPU: of all that the window's pictures caused, the sending of their spans included."""
    time.sleep(SENT_SECONDS)
    before, spans = fleet.cpu_seconds(), collector.spans()
    load = closed_loop(fleet.url, predict(fleet.service, tiny(), wait=True), pictures, CONNECTIONS)
    time.sleep(SENT_SECONDS)
    cpu = per_thing(before, fleet.cpu_seconds(), pictures)
    figures = {
        "p50 ms": load.p50 * 1000,
        **cpu_figures(cpu),
        "spans": (collector.spans() - spans) / pictures,
    }
    return Window(pictures / load.seconds, figures)


SCENARIO = Scenario(
    "traces", "An upload each, traced, against the same without traces", "images", size=2000, open=_open
)
