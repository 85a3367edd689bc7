"""What a slot is asked to do, and the ways it ends."""

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

from custody.wire import Detection, Parameters

PIPELINE_VERSION = 1
"""Of what is done to a picture before the engine, and to its answer after it. Whoever changes what comes of a picture
raises it: what was cached under another one is no answer any more."""


@dataclass(frozen=True)
class Work:
    """One picture to look at. `path` is relative to the volume; `orientation` is the EXIF number, 1 to 8; `sha256`, in
    lower-case hex, is what its bytes must have: `verify` says to make sure of it before they are decoded."""

    task: UUID
    path: str
    media_type: str
    orientation: int
    parameters: Parameters
    sha256: str
    verify: bool


@dataclass(frozen=True)
class Done:
    """`width` and `height`: the whole picture in pixels, EXIF orientation applied, as the boxes count them.
    `read_ms`, `decode_ms`, `infer_ms`: the timings of `custody.wire.Timings`; the wait for a batch is a part of the
    last. `batch_size`: pictures that were looked at together."""

    detections: list[Detection]
    width: int
    height: int
    read_ms: float
    decode_ms: float
    infer_ms: float
    batch_size: int = 1


@dataclass(frozen=True)
class Failed:
    """It ran and failed, and would fail again. `code` is one of `custody.errors.KINDS`."""

    code: str
    detail: str


@dataclass(frozen=True)
class Unprocessable:
    """This picture can never work. `code` is one of `custody.errors.KINDS`."""

    code: str
    detail: str


@dataclass(frozen=True)
class Corrupt:
    """The bytes on the volume are not those that were taken into custody, whoever looks at them."""

    code: ClassVar[str] = "file_corrupt"
    detail: str


@dataclass(frozen=True)
class Retry:
    """The same picture may work later. `code` is one of `custody.errors.KINDS`."""

    code: str
    detail: str


Outcome = Done | Failed | Unprocessable | Corrupt | Retry
