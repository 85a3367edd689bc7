"""Pictures of several threads, looked at together: one thread has the device, and gives each its own answer."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

from custody.wire import Detection, Parameters
from inference_worker.batch_policy import NEWEST_SHARE, BatchPolicy, MeasuredLatency
from inference_worker.decode import Picture
from inference_worker.engines import BatchEngine, ModelDescription

MEASURED_TIMES = 3
"""Of a batch, as it warms up; the fastest counts."""


@dataclass(eq=False)
class _Waiting:
    """A picture, and what became of it. `since`: when it came, in seconds of the clock."""

    prepared: Any
    parameters: Parameters
    since: float
    done: threading.Event
    answer: Any = None
    fault: Exception | None = None
    batch_size: int = 1


class Batcher:
    """An `Engine` for many threads at once, over one that looks at several pictures in one inference. Nothing but the
    device is shared by those of a batch: what one of them raises, that one's thread is told.

    `warm_up` comes first; it makes `max_batch` smaller where the device has no memory for as many. `seconds`: a clock
    that never goes back."""

    def __init__(
        self, engine: BatchEngine, policy: BatchPolicy, *, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._seconds = seconds
        self._latency = MeasuredLatency()
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._expected: dict[int, float] = {}
        self._preparation_seconds = 0.0
        self._free_since = 0.0
        self._sizes = threading.local()
        self.version = engine.version

    @property
    def description(self) -> ModelDescription:
        return self._engine.description

    @property
    def at_once(self) -> int:
        """Pictures that are worth having in hand: a batch on the device, and the next one."""
        return 2 * self._policy.max_batch

    @property
    def batch_size(self) -> int:
        """Of the batch that the last picture of this thread was in."""
        return getattr(self._sizes, "last", 1)

    def warm_up(self) -> None:
        self._engine.warm_up()
        self._measure(1)
        while self._policy.max_batch > 1:
            try:
                self._measure(self._policy.max_batch)
                break
            except MemoryError:
                self._policy = replace(self._policy, max_batch=self._policy.max_batch // 2)
                sys.stderr.write(f"batches of {self._policy.max_batch}: the device has no memory for more\n")
        self._free_since = self._seconds()
        threading.Thread(target=self._serve, name="device", daemon=True).start()

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Around the work on a picture that this thread will ask about, unless it turns out to be none."""
        thread = threading.get_ident()
        with self._changed:
            self._expected[thread] = self._seconds()
        try:
            yield
        finally:
            with self._changed:
                if self._expected.pop(thread, None) is not None:
                    self._changed.notify()

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        """Waits for its turn, and raises what the engine raises about this picture."""
        prepared = self._engine.prepare(picture)
        with self._changed:
            now = self._seconds()
            began = self._expected.pop(threading.get_ident(), None)
            if began is not None:
                self._preparation_seconds += NEWEST_SHARE * (now - began - self._preparation_seconds)
            waiting = _Waiting(prepared, parameters, now, threading.Event())
            self._waiting.append(waiting)
            self._changed.notify()
        waiting.done.wait()
        self._sizes.last = waiting.batch_size
        if waiting.fault is not None:
            raise waiting.fault
        return self._engine.detections(prepared, waiting.answer)

    def _measure(self, size: int) -> None:
        """On blank pictures. The first time is the device's own warm-up."""
        model = self._engine.description
        blank = Picture(
            np.zeros((model.input_height, model.input_width, 3), dtype=np.uint8), model.input_width, model.input_height
        )
        prepared = [self._engine.prepare(blank)] * size
        took = []
        for _ in range(1 + MEASURED_TIMES):
            began = self._seconds()
            self._engine.infer_batch(prepared, [Parameters()] * size)
            took.append(self._seconds() - began)
        self._latency.observe(size, min(took[1:]))

    def _serve(self) -> None:
        try:
            while True:
                self._look(self._next())
        except BaseException as error:  # noqa: BLE001 - nobody else answers for the device
            _end(error)

    def _next(self) -> Sequence[_Waiting]:
        """The pictures of the next batch, once the policy lets it go."""
        with self._changed:
            while True:
                while not self._waiting:
                    self._changed.wait()
                now = self._seconds()
                held = now - max(self._free_since, self._waiting[0].since)
                hold = self._policy.hold_seconds(len(self._waiting), held, self._next_in(now), self._latency)
                if not hold:
                    break
                self._changed.wait(hold)
            size = self._policy.size(len(self._waiting), self._latency)
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
        return batch

    def _next_in(self, now: float) -> float | None:
        if not self._expected:
            return None
        return max(0.0, min(self._expected.values()) + self._preparation_seconds - now)

    def _look(self, batch: Sequence[_Waiting]) -> None:
        began = self._seconds()
        try:
            answers = self._engine.infer_batch([each.prepared for each in batch], [each.parameters for each in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"the engine gave {len(answers)} answers for {len(batch)} pictures")
        except MemoryError as error:
            self._apart(batch, len(batch) // 2, error)
        except Exception as error:  # noqa: BLE001 - an engine may raise anything, and the next batch must run
            # Whose fault it is, each of them alone tells.
            self._apart(batch, 1, error)
        else:
            self._latency.observe(len(batch), self._seconds() - began)
            for each, answer in zip(batch, answers, strict=True):
                each.answer, each.batch_size = answer, len(batch)
        finally:
            self._free_since = self._seconds()
        for each in batch:
            each.done.set()

    def _apart(self, batch: Sequence[_Waiting], size: int, error: Exception) -> None:
        if len(batch) == 1:
            batch[0].fault = error
            return
        for start in range(0, len(batch), size):
            self._look(batch[start : start + size])


def _end(error: BaseException) -> NoReturn:
    """Of the process: the device works no more, and another slot takes the pictures."""
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    os._exit(1)
