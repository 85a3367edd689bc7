"""The limit: processes with an engine each that read pictures from disk, decode and infer them, and do nothing else.

Each is `python -m bench.bare_engine`: reads how many pictures on its standard input, answers with the seconds and the
CPU seconds that they took, and ends when its input ends. Engine, decoder and threads are those of a worker's slots.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import cv2

from bench.machine import ROOT
from bench.rounds import Window
from custody.wire import Parameters
from inference_worker.cpus import granted_cpus
from inference_worker.engines import load_engine
from inference_worker.outcomes import Done, Work
from inference_worker.pipeline import Pipeline

PROCESSES = 2
WARM_UP = 20


class BareEngine:
    """`PROCESSES` of them over the pictures of `folder`. Warm once it is entered."""

    def __init__(self, engine: str, model: Path, folder: Path) -> None:
        self._command = [sys.executable, "-m", "bench.bare_engine", engine, str(model), str(folder)]
        self._processes: Sequence[subprocess.Popen[str]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._processes = [
                stack.enter_context(
                    subprocess.Popen(
                        self._command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        cwd=ROOT,
                        start_new_session=True,
                    )
                )
                for _ in range(PROCESSES)
            ]
            for process in self._processes:
                stack.callback(process.kill)
            self.measure(PROCESSES * WARM_UP)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def measure(self, pictures: int) -> Window:
        """Their rates are added: who is done first does not make the other one's end count less."""
        share = ceil(pictures / PROCESSES)
        for process in self._processes:
            assert process.stdin
            process.stdin.write(f"{share}\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        cpu_seconds = sum(cpu for _, cpu in answers)
        return Window(
            sum(share / seconds for seconds, _ in answers), {"CPU ms": cpu_seconds / (share * PROCESSES) * 1000}
        )

    def _answer(self, process: subprocess.Popen[str]) -> tuple[float, float]:
        assert process.stdout
        if not (answer := process.stdout.readline()):
            raise RuntimeError("A process of the bare engine has ended; its last words are above.")
        seconds, cpu_seconds = map(float, answer.split())
        return seconds, cpu_seconds


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m bench.bare_engine")
    parser.add_argument("engine")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    threads = max(1, granted_cpus() // PROCESSES)
    cv2.setNumThreads(threads)
    engine = load_engine(arguments.engine)(arguments.model, threads, "auto")
    engine.warm_up()
    pipeline = Pipeline(arguments.folder, engine, max_pixels=100_000_000)
    names = cycle(sorted(path.name for path in arguments.folder.iterdir()))
    for line in sys.stdin:
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            outcome = pipeline.run(Work(uuid4(), next(names), "image/jpeg", 1, Parameters(), "", verify=False))
            assert isinstance(outcome, Done), outcome
        sys.stdout.write(f"{time.perf_counter() - began} {time.process_time() - cpu_began}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
