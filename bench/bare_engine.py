"""The limit: processes with an engine each that read pictures from disk, decode and infer them, and do nothing else.

Each is `python -m bench.bare_engine`: reads how many pictures on its standard input, answers with the CPU seconds that
they took and the seconds of each, and ends when its input ends. Engine, decoder and threads are those of a slot.
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
from bench.peers import ENGINES
from bench.rounds import Window
from custody.wire import Parameters
from inference_worker.cpus import granted_cpus
from inference_worker.engines import load_engine
from inference_worker.outcomes import Done, Work
from inference_worker.pipeline import Pipeline

WARM_UP = 20
PERCENTILES = (50, 95, 99)


class BareEngine:
    """`processes` of them over the pictures of `folder`. Warm once it is entered. `exact`: see `Pipeline`."""

    def __init__(
        self, engine: str, model: Path, folder: Path, *, processes: int = ENGINES, exact: bool = False
    ) -> None:
        self._command = [sys.executable, "-m", "bench.bare_engine", engine, str(model), str(folder)]
        if exact:
            self._command.append("--exact")
        self._count = processes
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
                for _ in range(self._count)
            ]
            for process in self._processes:
                stack.callback(process.kill)
            self.measure(self._count * WARM_UP)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def measure(self, pictures: int) -> Window:
        """Their rates are added: who is done first does not make the other one's end count less."""
        share = ceil(pictures / self._count)
        for process in self._processes:
            assert process.stdin
            process.stdin.write(f"{share}\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        taken = sorted(seconds for _, each in answers for seconds in each)
        return Window(
            sum(share / sum(each) for _, each in answers),
            {
                **{f"p{part} ms": taken[part * len(taken) // 100] * 1000 for part in PERCENTILES},
                "CPU ms": sum(cpu_seconds for cpu_seconds, _ in answers) / len(taken) * 1000,
            },
        )

    def _answer(self, process: subprocess.Popen[str]) -> tuple[float, Sequence[float]]:
        assert process.stdout
        if not (answer := process.stdout.readline()):
            raise RuntimeError("A process of the bare engine has ended; its last words are above.")
        cpu_seconds, *taken = map(float, answer.split())
        return cpu_seconds, taken


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m bench.bare_engine")
    parser.add_argument("engine")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--exact", action="store_true")
    arguments = parser.parse_args()
    threads = max(1, granted_cpus() // ENGINES)
    cv2.setNumThreads(threads)
    engine = load_engine(arguments.engine)(arguments.model, threads, "auto")
    engine.warm_up()
    pipeline = Pipeline(arguments.folder, engine, max_pixels=100_000_000, exact=arguments.exact)
    names = cycle(sorted(path.name for path in arguments.folder.iterdir()))
    for line in sys.stdin:
        cpu_began, taken = time.process_time(), []
        for _ in range(int(line)):
            began = time.perf_counter()
            outcome = pipeline.run(Work(uuid4(), next(names), "image/jpeg", 1, Parameters(), "", verify=False))
            taken.append(time.perf_counter() - began)
            assert isinstance(outcome, Done), outcome
        sys.stdout.write(" ".join(map(str, [time.process_time() - cpu_began, *taken])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
