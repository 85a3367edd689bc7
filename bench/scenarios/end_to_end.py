"""Pictures by HTTP, boxes in the answer: both transports, few and many clients, against the bare engine."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from bench.bare_engine import PROCESSES, BareEngine
from bench.fleet import TRANSPORTS, Fleet, fleet, per_thing
from bench.load import closed_loop
from bench.pictures import distinct, model_and_photo
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario

CONNECTIONS = (8, 32)
WARM_UP = 20


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    model, photo = model_and_photo()
    # Nobody sees a picture twice: what is in custody already costs less.
    fresh = distinct(photo)
    files = folder / "pictures"
    files.mkdir()
    for number, picture in enumerate(islice(fresh, size)):
        (files / f"{number}.jpg").write_bytes(picture)

    def measure(fleet: Fleet, connections: int, pictures: int) -> Window:
        requested = list(islice(fresh, pictures))
        before, client_before = fleet.cpu_seconds(), time.process_time()
        load = closed_loop(fleet.service, requested, connections)
        client_seconds = time.process_time() - client_before
        cpu = per_thing(before, fleet.cpu_seconds(), pictures)
        return Window(
            pictures / load.seconds,
            {
                "p50 ms": load.percentile(0.5) * 1000,
                "p99 ms": load.percentile(0.99) * 1000,
                "CPU ms": sum(cpu.values()) * 1000,
                **{f"{role} ms": seconds * 1000 for role, seconds in cpu.items()},
                "client ms": client_seconds / pictures * 1000,
            },
        )

    with ExitStack() as stack:
        bare = stack.enter_context(BareEngine("openvino", model, files))
        contenders = []
        for transport in TRANSPORTS:
            started = stack.enter_context(fleet(transport, folder / transport, model, WHARF_SLOTS=str(PROCESSES)))
            measure(started, max(CONNECTIONS), WARM_UP)
            contenders += [
                Contender(f"{transport}, c={connections}", partial(measure, started, connections, size))
                for connections in CONNECTIONS
            ]
        yield Contest(contenders, Contender("bare engine", partial(bare.measure, size)))


SCENARIO = Scenario(
    "a", "Distinct pictures by HTTP against the bare engine, no pinning", "images", size=300, open=_open
)
