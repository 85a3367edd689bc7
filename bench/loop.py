"""Processes that look at pictures in a loop, and at nothing else: what is measured without a service.

Each reads how many pictures on its standard input, answers with the CPU seconds that they took and the seconds of each,
and ends when its input ends. `answer` is their side of it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import ceil
from types import TracebackType
from typing import Self

from bench.machine import ROOT
from bench.rounds import Window

WARM_UP = 20
PERCENTILES = (50, 95, 99)


class Loop:
    """So many processes of the command. Warm once it is entered."""

    def __init__(self, command: Sequence[str], processes: int) -> None:
        self._command = command
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
            raise RuntimeError(f"{' '.join(self._command)} has ended; its last words are above.")
        cpu_seconds, *taken = map(float, answer.split())
        return cpu_seconds, taken


def answer(look: Callable[[], object]) -> None:
    """Looks as often as it is asked to, until nobody asks any more. Ctrl-C is for who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        cpu_began, taken = time.process_time(), []
        for _ in range(int(line)):
            began = time.perf_counter()
            look()
            taken.append(time.perf_counter() - began)
        sys.stdout.write(" ".join(map(str, [time.process_time() - cpu_began, *taken])) + "\n")
        sys.stdout.flush()
