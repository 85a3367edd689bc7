"""Pictures of equal work and different bytes: no two of them are the same file to the service."""

import io
import struct
from base64 import b64decode
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

import starter_model
from tests.support.shared import BUS, YOLO11N

START_OF_IMAGE = b"\xff\xd8"
COMMENT = b"\xff\xfe"

NUMBER = b"NUMBERxOFxIT"
"""What a load generator puts another number in place of, in each request: twelve characters, which twelve digits are,
and which are base64 as they stand."""

TINY = (32, 32)

PHONE = (3024, 4032)
GRAIN = 10
"""Of 255: as much as makes the file of a phone's size."""


def model_and_photo() -> tuple[Path, bytes]:
    """The real model and a photo where they lie beside the repository, else the starter model and its page, as JPEG."""
    if YOLO11N.is_file() and BUS.is_file():
        return YOLO11N, BUS.read_bytes()
    with Image.open(starter_model.PAGE) as page:
        return starter_model.MODEL, _jpeg(page.convert("RGB"))


def tiny() -> bytes:
    """Decoded in microseconds."""
    return _jpeg(Image.linear_gradient("L").resize(TINY).convert("RGB"))


def phone_photo(photo: bytes) -> bytes:
    """The photo drawn larger, in 12 megapixels and upright, with grain: about 3 MB."""
    with Image.open(io.BytesIO(photo)) as image:
        large = np.asarray(image.convert("RGB").resize(PHONE, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = np.random.default_rng(0).integers(-GRAIN, GRAIN + 1, large.shape, dtype=np.int16)
    return _jpeg(Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)), quality=90)


def with_tail(jpeg: bytes, size: int) -> bytes:
    """The picture as a file of so many bytes: no decoder reads what is behind its end."""
    return jpeg.ljust(size, b"\0")


def distinct(jpeg: bytes) -> Iterator[bytes]:
    """The picture without end, each time with another comment in its header."""
    run = uuid4().hex
    for number in count():
        yield _commented(jpeg, f"{run} {number:08d}".encode())


def written(pictures: Iterable[bytes], folder: Path) -> Path:
    """The folder, made, with a file for each."""
    folder.mkdir()
    for number, picture in enumerate(pictures):
        (folder / f"{number:06d}.jpg").write_bytes(picture)
    return folder


def numbered(jpeg: bytes) -> bytes:
    """The picture with `NUMBER` in its comment: a template, and a picture as it is."""
    return _commented(jpeg, NUMBER)


def numbered_for_base64(jpeg: bytes) -> bytes:
    """The picture whose base64 has `NUMBER` in it."""
    # The comment's text begins after six bytes, and so a character of base64 does.
    return _commented(jpeg, b64decode(NUMBER))


def _commented(jpeg: bytes, words: bytes) -> bytes:
    assert jpeg.startswith(START_OF_IMAGE)
    return START_OF_IMAGE + COMMENT + struct.pack("!H", len(words) + 2) + words + jpeg[len(START_OF_IMAGE) :]


def _jpeg(picture: Image.Image, quality: int = 95) -> bytes:
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=quality)
    return written.getvalue()
