"""How far stock ultralytics is from the engine, and we from both."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from bench.bare_engine import bare_engine
from bench.fleet import fleet
from bench.jobs import run_job, upload
from bench.loop import Loop
from bench.machine import ROOT
from bench.peers import ENGINES
from bench.pictures import distinct, model_and_photo, written
from bench.rounds import Contender, Contest
from bench.scenario import MissingError, Scenario
from bench.scenarios.overhead import job

PYTHON = ROOT / ".venv-ultralytics" / "bin" / "python"


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    model, photo = model_and_photo()
    if not PYTHON.is_file():
        raise MissingError("There is no torch: make test-ultralytics makes .venv-ultralytics, which has it (6 GB).")
    files = written(islice(distinct(photo), size), folder / "pictures")
    with ExitStack() as stack:
        bare = stack.enter_context(bare_engine("openvino", model, files))
        contenders = []
        for form in (".pt", ".onnx"):
            if model.with_suffix(form).is_file():
                command = [str(PYTHON), "-m", "bench.stock_ultralytics", str(model.with_suffix(form)), str(files)]
                stock = stack.enter_context(Loop(command, 1))
                contenders.append(Contender(f"ultralytics predict, {form}", partial(stock.measure, size)))
        ours = stack.enter_context(fleet("embedded", folder / "embedded", model, {"WHARF_SLOTS": str(ENGINES)}))
        inputs = upload(ours, (path.read_bytes() for path in sorted(files.iterdir())))
        run_job(ours, inputs, size)
        contenders.append(Contender("embedded, one job", partial(job, ours, inputs, size)))
        yield Contest(contenders, Contender("bare engine", partial(bare.measure, size)))


SCENARIO = Scenario("m", "Stock ultralytics against the bare engine on the same CPU", "images", size=100, open=_open)
