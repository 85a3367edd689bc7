"""A job as a user sends it, to see whether boxes come back."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import starter_model
from custody.wire import Job
from wharfinger.client import Client
from wharfinger.patience import Patience

WAIT_SECONDS = 300.0
"""For an answer: where workers are scaled to none, one has to start first."""
KEEP_SECONDS = 3600.0


def pictures() -> Mapping[str, bytes]:
    """By what they show: something for the starter model, and something for a model of everyday objects, as COCO's."""
    return {"a page of digits": starter_model.PAGE.read_bytes(), "a stop sign": _stop_sign()}


def submit(server: str | None, images: Sequence[bytes | Path], model: str | None) -> Job:
    """The job once it has ended, or `WAIT_SECONDS` are over. It leaves nothing behind for long. Raises OSError and the
    errors of `wharfinger.errors`."""
    with Client(server, patience=Patience(reconnect=30.0, backlog=30.0)) as client:
        return client.predict(
            *images, model=model, expires_in=2 * WAIT_SECONDS, file_expires_in=KEEP_SECONDS, wait=WAIT_SECONDS
        )


def _stop_sign() -> bytes:
    """A PNG of 640 x 480: YOLO11n is as sure of it as of a photo."""
    picture = Image.new("RGB", (640, 480), (150, 190, 230))
    pencil = ImageDraw.Draw(picture)
    pencil.rectangle((0, 360, 640, 480), fill=(90, 130, 70))
    pencil.rectangle((312, 200, 328, 440), fill=(130, 130, 130))
    pencil.polygon(_octagon(320, 190, 130), fill=(245, 245, 245))
    pencil.polygon(_octagon(320, 190, 120), fill=(190, 25, 35))
    pencil.text((320, 190), "STOP", "white", ImageFont.load_default(80), anchor="mm", stroke_width=3)
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def _octagon(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    angles = [math.pi * (corner + 0.5) / 4 for corner in range(8)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
