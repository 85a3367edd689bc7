"""A slot: the child process that holds one engine and looks at one picture at a time, or at one batch.

`inference_worker.slots` starts it as `python -m inference_worker.slot`. It reads requests from what was its standard
input, answers on what was its standard output (see `inference_worker.lines`), and ends when its input ends. Whatever
libraries print goes to standard error.
"""

import argparse
import ctypes
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from types import ModuleType

    from inference_worker.engines import BatchEngine
    from inference_worker.outcomes import Work

PR_SET_PDEATHSIG = 1
"""Of Linux's <sys/prctl.h>."""


def main() -> None:
    _obey_only_the_parent()
    requests, answers = _take_channel()

    # Imported once the channel is safe: native libraries may print as they load.
    import cv2

    from inference_worker.batch_policy import BatchPolicy
    from inference_worker.batcher import Batcher
    from inference_worker.engines import EngineError, load_engine
    from inference_worker.engines.compiled import CompiledCache
    from inference_worker.lines import Ready, Refused, read_numbered, read_work, write_answer, write_numbered
    from inference_worker.pipeline import Pipeline

    arguments = _arguments()
    cv2.setNumThreads(arguments.threads)
    batcher = None
    if arguments.engine == "openvino":
        # A quarter of what its import costs, for conversions that no slot makes; it is content without.
        sys.modules["openvino.tools.ovc"] = cast("ModuleType", None)
    try:
        kind = load_engine(arguments.engine)
        more = {}
        if arguments.compiled and getattr(kind, "keeps_compiled", False):
            more["compiled"] = CompiledCache(arguments.compiled, arguments.compiled_bytes)
        engine = kind(arguments.model, arguments.threads, arguments.precision, **more)
        if arguments.max_batch > 1 and getattr(engine, "gains_from_batches", False):
            policy = BatchPolicy(arguments.max_batch, arguments.max_delay_ms / 1000)
            engine = batcher = Batcher(cast("BatchEngine", engine), policy)
        engine.warm_up()
    except EngineError as error:
        answers.write(write_answer(Refused(str(error))))
        sys.exit(1)
    pipeline = Pipeline(
        arguments.volume,
        engine,
        max_pixels=arguments.max_pixels,
        exact=arguments.precision == "f32",
        read_patience_seconds=arguments.read_patience_seconds,
        batch_size=(lambda: batcher.batch_size) if batcher else (lambda: 1),
    )
    writing = threading.Lock()

    def answer(number: int, work: "Work") -> None:
        with batcher.expected() if batcher else nullcontext():
            outcome = pipeline.run(work)
        with writing:
            answers.write(write_numbered(number, write_answer(outcome)))

    at_once = batcher.at_once if batcher else 1
    # An engine of somebody else's may have been written before results told it.
    answers.write(write_answer(Ready(engine.description, getattr(engine, "version", None), at_once)))
    with ThreadPoolExecutor(at_once, "picture") as threads:
        for request in requests:
            number, line = read_numbered(request)
            work = read_work(line)
            if batcher:
                threads.submit(answer, number, work)
            else:
                answer(number, work)


def _obey_only_the_parent() -> None:
    """Ctrl-C and a stopping service reach every process of the group; the parent decides what they mean here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # A parent that dies before this line leaves an input that has ended.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _take_channel() -> tuple[BinaryIO, BinaryIO]:
    """Moves standard input and output out of reach of libraries that read or print."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m inference_worker.slot")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--volume", required=True, type=Path)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--compiled", type=Path)
    parser.add_argument("--compiled-bytes", default=0, type=int)
    parser.add_argument("--max-batch", default=1, type=int)
    parser.add_argument("--max-delay-ms", default=0.0, type=float)
    parser.add_argument("--max-pixels", required=True, type=int)
    parser.add_argument("--read-patience-seconds", required=True, type=float)
    return parser.parse_args()


if __name__ == "__main__":
    main()
