"""The limit: an engine that reads pictures from disk, decodes and infers them, and does nothing else. Engine, decoder
and threads are those of a worker's slot."""

import argparse
import sys
from itertools import cycle
from pathlib import Path
from uuid import uuid4

import cv2

from bench.loop import Loop, answer
from bench.peers import ENGINES
from custody.wire import Parameters
from inference_worker.cpus import granted_cpus
from inference_worker.engines import load_engine
from inference_worker.outcomes import Done, Work
from inference_worker.pipeline import Pipeline


def bare_engine(engine: str, model: Path, folder: Path, *, processes: int = ENGINES) -> Loop:
    """Over the pictures of the folder."""
    return Loop([sys.executable, "-m", "bench.bare_engine", engine, str(model), str(folder)], processes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bare_engine")
    parser.add_argument("engine")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    threads = max(1, granted_cpus() // ENGINES)
    cv2.setNumThreads(threads)
    engine = load_engine(arguments.engine)(arguments.model, threads, "auto")
    engine.warm_up()
    pipeline = Pipeline(arguments.folder, engine, max_pixels=100_000_000)
    names = cycle(sorted(path.name for path in arguments.folder.iterdir()))

    def look() -> None:
        outcome = pipeline.run(Work(uuid4(), next(names), "image/jpeg", 1, Parameters(), "", verify=False))
        assert isinstance(outcome, Done), outcome

    answer(look)


if __name__ == "__main__":
    main()
