"""A job as a user sends it, to see whether boxes come back."""

import io
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import starter_model
from custody.wire import Job
from standalone.finding import Finding
from wharfinger.client import Client
from wharfinger.commands.failures import explain
from wharfinger.errors import WharfError
from wharfinger.patience import Patience

WAIT_SECONDS = 300.0
"""For an answer: where workers are scaled to none, one has to start first."""
KEEP_SECONDS = 3600.0


def try_out(server: str | None, image: Path | None, model: str | None) -> Iterator[Finding]:
    """What the model, or the server's default, finds on `image`, or on two pictures of ours."""
    pictures = {str(image): image} if image else pictures_of_ours()
    began = time.monotonic()
    try:
        job = _submit(server, list(pictures.values()), model)
    except OSError as error:
        yield Finding("predict", "fault", f"{image} cannot be read: {error.strerror}", "Name a picture with --image.")
        return
    except WharfError as error:
        yield Finding("predict", "fault", *explain(error).split("\n", 1))
        return
    took = time.monotonic() - began
    if not job.state.ended or job.results is None:
        paused = "See GET /health/detailed: its pool may be paused, or much waits before it."
        advice = paused if job.ready_workers else f"No worker serves {job.model}: start one."
        yield Finding("predict", "fault", f"{job.model}: no answer within {took:.0f} s", advice)
        return
    for shown, result in zip(pictures, job.results, strict=True):
        if result.detections is None:
            fault = result.error.detail if result.error else result.state
            yield Finding("predict", "fault", f"{job.model}, {shown}: {fault}", "See the log of its workers.")
        else:
            found = Counter(detection.label for detection in result.detections)
            told = ", ".join(f"{number} {label}" for label, number in found.items()) or "nothing found"
            yield Finding("predict", "ok", f"{job.model}, {shown}: {told}, {took:.1f} s")
    if not any(result.detections for result in job.results):
        # A picture that somebody chose for the model is another matter than ours, which it may not know.
        state = "fault" if image else "warning"
        advice = "Name a picture on which the model finds something with --image, or another model with --model."
        yield Finding("predict", state, f"{job.model} answered, and found nothing: no box was checked", advice)


def pictures_of_ours() -> Mapping[str, bytes]:
    """By what they show: something for the starter model, and something for a model of everyday objects, as COCO's."""
    return {"a page of digits": starter_model.PAGE.read_bytes(), "a stop sign": _stop_sign()}


def _submit(server: str | None, images: Sequence[bytes | Path], model: str | None) -> Job:
    """The job once it has ended, or `WAIT_SECONDS` are over. It leaves nothing behind for long."""
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
