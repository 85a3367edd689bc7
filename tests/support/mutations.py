"""Small pictures of every accepted kind, spoiled in many ways, as a process of its own: what a decoder makes of them
may end it.

`python -m tests.support.mutations KIND SEED COUNT` spoils a picture COUNT times, gives each to the broker's probe and
to the worker's decoder, and prints as JSON what came of them.
"""

import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pillow_heif
from PIL import Image

from broker.media import MEDIA_TYPES, probe
from custody.errors import CustodyError
from inference_worker.decode import UndecodableImageError, decode

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "jpeg-restarts": ("JPEG", {"restart_marker_rows": 1, "subsampling": 0}),
    "jpeg-exif": ("JPEG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "webp-animated": ("WEBP", {"save_all": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg"}),
    "gif": ("GIF", {}),
    "gif-animated": ("GIF", {"save_all": True}),
    "avif": ("AVIF", {}),
    "avif-animated": ("AVIF", {"save_all": True}),
    "heic": ("HEIF", {}),
}
MAX_PIXELS = 1_000_000
EXTREMES = [bytes.fromhex(text) for text in ("00", "ff", "0000", "ffff", "00000000", "ffffffff", "7fffffff", "ffffff7f",
                                             "80000000", "00000001")]  # fmt: skip
"""Numbers that lengths and counts are seldom made for."""


def drawn(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture of noise, the same each time; the animated ones have three frames."""
    image_format, options = KINDS[kind]
    noise = random.Random(size[0])
    first, *more = (Image.frombytes("RGB", size, noise.randbytes(size[0] * size[1] * 3)) for _ in range(3))
    file = io.BytesIO()
    if image_format == "HEIF":
        pillow_heif.from_pillow(first).save(file)
    else:
        frames = {"append_images": more} if "save_all" in options else {}
        first.save(file, image_format, **options, **frames)
    return file.getvalue()


def spoiled(content: bytes, donor: bytes, chance: random.Random) -> bytes:
    """The content with one to three things done to it: bits flipped, a number of 1, 2 or 4 bytes made an extreme, a
    piece cut out, doubled, or replaced with one of the donor's."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        # Half of it where the headers are.
        place = chance.randrange(max(1, min(len(data), 200 if chance.random() < 0.5 else len(data))))
        match chance.choice(["flip", "number", "cut", "end", "double", "splice"]):
            case "flip":
                for at in range(place, min(len(data), place + chance.choice([1, 1, 4]))):
                    data[at] ^= 1 << chance.randrange(8)
            case "number":
                number = chance.choice(EXTREMES)
                data[place : place + len(number)] = number
            case "cut":
                del data[place : place + chance.randint(1, 40)]
            case "end":
                del data[max(place, 1) :]
            case "double":
                data[place:place] = data[place : place + chance.randint(1, 200)]
            case "splice":
                at = chance.randrange(len(donor))
                data[place : place + 40] = donor[at : at + 40]
    return bytes(data)


def outcome(work: Callable[[], object]) -> str:
    """`ok` or the code of what was raised. Anything that is not documented to be raised goes through."""
    try:
        work()
    except (CustodyError, UndecodableImageError) as error:
        return error.code
    return "ok"


def main(kind: str, seed: int, count: int) -> None:
    chance = random.Random(f"{kind} {seed}")
    content, media_type = drawn(kind), MEDIA_TYPES[KINDS[kind][0]]
    donors = [drawn(each) for each in KINDS]
    probed: Counter[str] = Counter()
    decoded: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        for number in range(count):
            data = spoiled(content, chance.choice(donors), chance)
            path.write_bytes(data)
            sys.stderr.write(f"{number}\n")  # the last line tells which one it died of
            began = time.process_time()
            probed[outcome(partial(probe, path, MAX_PIXELS))] += 1
            for fit in (None, (32, 32)):
                decoded[outcome(partial(decode_checked, data, media_type, fit))] += 1
            slowest = max(slowest, time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"probed": probed, "decoded": decoded, "slowest": slowest, "peak": peak}))  # noqa: T201


def decode_checked(data: bytes, media_type: str, fit: tuple[int, int] | None) -> None:
    picture = decode(data, media_type, 6, fit=fit, max_pixels=MAX_PIXELS)
    assert picture.pixels.shape[2] == 3
    assert picture.pixels.size <= 3 * MAX_PIXELS
    assert 0 < picture.width * picture.height <= MAX_PIXELS


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
