"""Every kind of picture that is accepted, upright and turned: the same digits in the same places."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pillow_heif
import pytest
from PIL import Image

import starter_model
from tests.e2e import boxes
from tests.e2e.problems import code_of
from tests.e2e.service import Service

WAIT = {"Prefer": "wait=30"}
EXIF_ORIENTATION = 0x0112

# What a camera that held its sensor this way stored: the inverse of how a viewer turns the pixels.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key()) as client:
        yield client


def upright() -> Image.Image:
    with Image.open(starter_model.PAGE) as page:
        return page.convert("RGB")


def grey() -> Image.Image:
    return upright().convert("L")


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation: int, format: str) -> bytes:
    stored = STORED[orientation]
    image = upright() if stored is None else upright().transpose(stored)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return written(image, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))


def results(http: httpx.Client, *pictures: bytes) -> list[dict[str, Any]]:
    job = http.post("/v1/predict", files=[("image", picture) for picture in pictures], headers=WAIT).json()
    assert job["state"] == "succeeded", job
    return list(job["results"])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_boxes_are_those_of_the_upright_picture_however_the_camera_was_held(http: httpx.Client, format: str) -> None:
    found = results(http, *[turned(orientation, format) for orientation in STORED])
    reference = boxes.seen(found[0])
    boxes.assert_same(reference, boxes.digits())
    for result in found:
        assert (result["width"], result["height"]) == (640, 480)
        boxes.assert_same(boxes.seen(result), reference, least_overlap=0.9)
    files = http.get("/v1/files").json()["items"]
    # A TIFF's tag is a part of how its pixels are read: whoever reads them gets them upright.
    assert [file["orientation"] for file in reversed(files)] == ([1] * 8 if format == "TIFF" else list(STORED))
    assert {(file["width"], file["height"]) for file in files} == {(640, 480)}


def sixteen_bit_colour() -> bytes:
    encoded, data = cv2.imencode(".png", np.asarray(upright())[:, :, ::-1].astype(np.uint16) * 257)
    assert encoded
    return data.tobytes()


def sixteen_bit_grey() -> bytes:
    return written(Image.fromarray(np.asarray(grey()).astype(np.uint16) * 257), "PNG")


def with_alpha() -> bytes:
    image = upright()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return written(image, "PNG")


def grey_with_alpha() -> bytes:
    image = grey().convert("LA")
    image.putalpha(200)
    return written(image, "PNG")


def transparent_palette() -> bytes:
    return written(upright().quantize(256), "PNG", transparency=3)


def heic() -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(upright()).save(file, quality=95)
    return file.getvalue()


def multi_picture() -> bytes:
    return written(upright(), "MPO", save_all=True, append_images=[Image.new("RGB", (640, 480))], quality=95)


def two_frames(format: str) -> bytes:
    return written(upright(), format, save_all=True, append_images=[Image.new("RGB", (640, 480))])


def jpeg(**options: Any) -> bytes:
    return written(upright(), "JPEG", quality=95, **options)


PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "baseline JPEG": (jpeg, "image/jpeg"),
    "progressive JPEG": (lambda: jpeg(progressive=True), "image/jpeg"),
    "JPEG without subsampling": (lambda: jpeg(subsampling=0), "image/jpeg"),
    "JPEG with trailing garbage": (lambda: jpeg() + b"garbage" * 1000, "image/jpeg"),
    "JPEG with restart markers": (lambda: jpeg(restart_marker_rows=4), "image/jpeg"),
    "CMYK JPEG": (lambda: written(upright().convert("CMYK"), "JPEG", quality=95), "image/jpeg"),
    "MPO": (multi_picture, "image/jpeg"),
    "16-bit colour PNG": (sixteen_bit_colour, "image/png"),
    "palette PNG": (lambda: written(upright().quantize(256), "PNG"), "image/png"),
    "transparent palette PNG": (transparent_palette, "image/png"),
    "animated PNG": (lambda: two_frames("PNG"), "image/png"),
    "PNG with alpha": (with_alpha, "image/png"),
    "lossy WebP": (lambda: written(upright(), "WEBP", quality=90), "image/webp"),
    "lossless WebP": (lambda: written(upright(), "WEBP", lossless=True), "image/webp"),
    "animated WebP": (lambda: two_frames("WEBP"), "image/webp"),
    "GIF": (lambda: written(upright(), "GIF"), "image/gif"),
    "animated GIF": (lambda: two_frames("GIF"), "image/gif"),
    "BMP": (lambda: written(upright(), "BMP"), "image/bmp"),
    "TIFF": (lambda: written(upright(), "TIFF"), "image/tiff"),
    "packed TIFF": (lambda: written(upright(), "TIFF", compression="tiff_lzw"), "image/tiff"),
    "TIFF of two pages": (lambda: two_frames("TIFF"), "image/tiff"),
    "AVIF": (lambda: written(upright(), "AVIF", quality=90), "image/avif"),
    "animated AVIF": (lambda: two_frames("AVIF"), "image/avif"),
    "HEIC": (heic, "image/heic"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_digits_are_found_in_a_picture_of_every_kind(http: httpx.Client, kind: str) -> None:
    make, media_type = PICTURES[kind]
    [result] = results(http, make())
    assert (result["width"], result["height"]) == (640, 480)
    boxes.assert_same(boxes.seen(result), boxes.digits(), least_overlap=0.65)
    [file] = http.get("/v1/files").json()["items"]
    assert file["media_type"] == media_type


GREY_PICTURES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: written(grey(), "JPEG", quality=98),
    "16-bit PNG": sixteen_bit_grey,
    "PNG": lambda: written(grey(), "PNG"),
    "PNG with alpha": grey_with_alpha,
    "TIFF": lambda: written(grey(), "TIFF"),
    "GIF": lambda: written(grey(), "GIF"),
    "BMP": lambda: written(grey(), "BMP"),
}


@pytest.mark.parametrize("kind", GREY_PICTURES)
def test_a_grey_picture_is_seen_as_its_twin_in_three_equal_colours(http: httpx.Client, kind: str) -> None:
    twin, result = results(http, written(grey().convert("RGB"), "PNG"), GREY_PICTURES[kind]())
    assert len(twin["detections"]) >= 5
    boxes.assert_same(boxes.seen(result), boxes.seen(twin), least_overlap=0.9)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 5)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_the_smallest_and_the_thinnest_pictures_work(http: httpx.Client, size: tuple[int, int], format: str) -> None:
    [result] = results(http, written(Image.new("RGB", size, (90, 120, 30)), format))
    assert (result["width"], result["height"]) == size
    for x1, y1, x2, y2 in (seen.box for seen in boxes.seen(result)):
        assert 0 <= x1 < x2 <= size[0]
        assert 0 <= y1 < y2 <= size[1]


def test_a_picture_of_one_bit_a_pixel_works(http: httpx.Client) -> None:
    for kind in ("PNG", "TIFF", "BMP"):
        [result] = results(http, written(Image.new("1", (50, 40), 1), kind))
        assert (result["state"], result["width"], result["height"]) == ("succeeded", 50, 40)


def test_a_picture_whose_pixels_are_damaged_fails_alone(http: httpx.Client, page: bytes) -> None:
    # Whole to the eye that reads headers and ends: only the decoder finds out.
    damaged = bytearray(page)
    damaged[50_000:50_400] = bytes(400)
    answer = http.post("/v1/predict", files=[("image", page), ("image", bytes(damaged))], headers=WAIT)
    job = answer.json()
    assert (answer.status_code, job["state"]) == (200, "failed")
    assert job["progress"] == {"done": 1, "failed": 1, "total": 2}
    good, bad = job["results"]
    boxes.assert_same(boxes.seen(good), boxes.digits())
    assert (bad["state"], bad["error"]["code"], bad["detections"]) == ("unprocessable", "undecodable_image", None)
    assert bad["attempts"] == 1  # it can never work: nobody tries again
    assert [job["id"]] == [listed["id"] for listed in http.get("/v1/jobs?state=failed").json()["items"]]


TRUNCATED = ("baseline JPEG", "progressive JPEG", "palette PNG", "lossy WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")


@pytest.mark.parametrize("kind", TRUNCATED)
def test_half_a_picture_is_never_looked_at_as_if_it_were_whole(http: httpx.Client, kind: str) -> None:
    whole = PICTURES[kind][0]()
    for kept in (0.3, 0.7, 0.95):
        answer = http.post("/v1/predict", files={"image": whole[: int(len(whole) * kept)]}, headers=WAIT)
        if answer.status_code == 422:
            assert code_of(answer) == "damaged_image"
        else:
            assert (answer.status_code, answer.json()["state"]) == (200, "failed")
            [result] = answer.json()["results"]
            assert (result["state"], result["error"]["code"]) == ("unprocessable", "undecodable_image")
