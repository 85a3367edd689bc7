"""One picture from its place on the volume to its outcome: read in place, decode, infer."""

import errno
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from inference_worker.decode import UndecodableImageError, decode
from inference_worker.engines import Engine
from inference_worker.outcomes import Corrupt, Done, Failed, Outcome, Retry, Unprocessable, Work

STALE = frozenset({errno.ENOENT, errno.ESTALE, errno.EIO})
"""What a network file system answers for a while about a file that is there."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0

DAMAGED = "The bytes on the volume are not those that were uploaded. Upload the file again, then submit it again."


class Pipeline:
    """`read_patience_seconds`: for how long a file that is missing or stale is asked for again. NFS keeps what it knows
    of a folder for up to 60 seconds, so it has to be longer than that. `max_pixels`: see `decode`. `exact`: JPEGs are
    decoded whole, however small the engine's input is. `batch_size`: of the batch that this thread's last picture was
    in. Several threads may run it at once where the engine allows that."""

    def __init__(
        self,
        volume_root: Path,
        engine: Engine,
        *,
        max_pixels: int,
        exact: bool = False,
        read_patience_seconds: float = 70.0,
        batch_size: Callable[[], int] = lambda: 1,
    ) -> None:
        self._root = volume_root
        self._engine = engine
        model = engine.description
        # A classifier's input is cut out of the middle of a picture that is shrunk less than to fit into it.
        self._fit = None if exact or model.task == "classify" else (model.input_width, model.input_height)
        self._max_pixels = max_pixels
        self._patience = read_patience_seconds
        self._batch_size = batch_size

    def run(self, work: Work) -> Outcome:
        """Never raises for what a picture or the volume can cause."""
        started = time.perf_counter()
        try:
            data = self._verified(work) if work.verify else self._read(work.path)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "an error")
            return Retry("file_unreadable", f"The volume answered {name} where the file should be.")
        if data is None:
            return Corrupt(DAMAGED)
        read = time.perf_counter()
        try:
            picture = decode(data, work.media_type, work.orientation, fit=self._fit, max_pixels=self._max_pixels)
            decoded = time.perf_counter()
            detections = self._engine.infer(picture, work.parameters)
        except UndecodableImageError as error:
            # It was whole when it came: the bytes themselves may have changed.
            return Unprocessable(error.code, str(error)) if _is(data, work.sha256) else self._doubted(work)
        except MemoryError:
            return Retry(
                "worker_crashed", "The worker had no memory left for this picture. Give it more, or shrink it."
            )
        except Exception as error:  # noqa: BLE001 - an engine may raise anything, and the next picture must run
            return Failed("inference_failed", f"The engine raised {type(error).__name__}: {error}")
        return Done(
            detections=detections,
            width=picture.width,
            height=picture.height,
            read_ms=_milliseconds(started, read),
            decode_ms=_milliseconds(read, decoded),
            infer_ms=_milliseconds(decoded, time.perf_counter()),
            batch_size=self._batch_size(),
        )

    def _verified(self, work: Work) -> bytes | None:
        """The bytes that were taken into custody; None where others are there. They are looked at twice: a network
        file system may show a part of a file, for a moment."""
        for _ in range(2):
            data = self._read(work.path)
            if _is(data, work.sha256):
                return data
        return None

    def _doubted(self, work: Work) -> Outcome:
        """What was read is not what was taken into custody: damaged for good, or seen in part for a moment."""
        try:
            damaged = self._verified(work) is None
        except OSError:
            damaged = False
        return Corrupt(DAMAGED) if damaged else Retry("file_unreadable", "The volume gave a part of the file only.")

    def _read(self, path: str) -> bytes:
        give_up = time.monotonic() + self._patience
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return (self._root / path).read_bytes()
            except OSError as error:
                if error.errno not in STALE or time.monotonic() + pause > give_up:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _is(data: bytes, digest: str) -> bool:
    return sha256(data).hexdigest() == digest


def _milliseconds(start: float, end: float) -> float:
    return round((end - start) * 1000, 3)
