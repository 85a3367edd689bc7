"""One job over pictures in custody, against a loop over the same files."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from bench.bare_engine import bare_engine
from bench.fleet import TRANSPORTS, fleet
from bench.jobs import run_job, upload
from bench.peers import ENGINES
from bench.pictures import distinct, model_and_photo, written
from bench.rounds import Contender, Contest
from bench.scenario import Scenario
from bench.scenarios.overhead import job

WARM_UP = 50


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    model, photo = model_and_photo()
    files = written(islice(distinct(photo), size), folder / "pictures")
    with ExitStack() as stack:
        bare = stack.enter_context(bare_engine("openvino", model, files))
        contenders = []
        for transport in TRANSPORTS:
            started = stack.enter_context(fleet(transport, folder / transport, model, {"WHARF_SLOTS": str(ENGINES)}))
            inputs = upload(started, (path.read_bytes() for path in sorted(files.iterdir())))
            run_job(started, inputs, WARM_UP)
            contenders.append(Contender(transport, partial(job, started, inputs, size)))
        yield Contest(contenders, Contender("bare engine", partial(bare.measure, size)))


SCENARIO = Scenario("c", "One job over stored pictures against the bare engine", "images", size=2000, open=_open)
