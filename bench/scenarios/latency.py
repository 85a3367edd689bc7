"""One client at a time: what an answer takes above what the engine takes for the picture."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from bench.bare_engine import bare_engine
from bench.fleet import TRANSPORTS, fleet
from bench.load import measured
from bench.loop import PERCENTILES
from bench.peers import ENGINES
from bench.pictures import distinct, model_and_photo, written
from bench.request import predict
from bench.rounds import Contender, Contest
from bench.scenario import Scenario, program

WARM_UP = 40


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    program("wrk")
    model, photo = model_and_photo()
    files = written(islice(distinct(photo), size), folder / "pictures")
    with ExitStack() as stack:
        bare = stack.enter_context(bare_engine("openvino", model, files, processes=1))
        contenders = []
        for transport in TRANSPORTS:
            started = stack.enter_context(fleet(transport, folder / transport, model, {"WHARF_SLOTS": str(ENGINES)}))
            request = predict(started.service, photo, wait=True)
            measured(started, request, WARM_UP, 1)
            contenders.append(Contender(transport, partial(measured, started, request, size, 1)))
        limit = Contender("bare engine, one process", partial(bare.measure, size))
        yield Contest(contenders, limit, added=[f"p{part} ms" for part in PERCENTILES])


SCENARIO = Scenario("b", "One client at a time against one bare engine", "images", size=300, open=_open)
