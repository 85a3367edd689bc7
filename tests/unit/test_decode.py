"""Decoding is held against the source's pixels where a format keeps them, else against Pillow's own full decode."""

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from inference_worker.decode import UndecodableImageError, decode

Pixels = NDArray[np.uint8]

TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""How a camera stores an upright picture under each EXIF orientation."""

SIZE = (48, 32)
TYPES = {"JPEG": "image/jpeg", "TIFF": "image/tiff", "HEIF": "image/heic", "AVIF": "image/avif"}
LOSSLESS = {
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "webp-animated": ("WEBP", {"lossless": True, "save_all": True, "append_images": [Image.new("RGB", SIZE)]}),
}
LOSSY = {
    "jpeg": ("JPEG", {"quality": 90}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "jpeg-full-chroma": ("JPEG", {"subsampling": 0}),
    "webp": ("WEBP", {}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg"}),
    "avif": ("AVIF", {}),
    "heic": ("HEIF", {}),
}


def scene(width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    """Smooth, coloured, and different in every corner."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=2).astype(np.uint8))


def noise() -> Image.Image:
    """Hard to compress, so that a file of it is all pixels to its end."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, image_format, **options)
    return target.getvalue()


def media_type(image_format: str) -> str:
    return TYPES.get(image_format, f"image/{image_format.lower()}")


def by_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_format_gives_the_source_pixels(name: str) -> None:
    image_format, options = LOSSLESS[name]
    picture = decode(encoded(scene(), image_format, **options), media_type(image_format), 1)
    np.testing.assert_array_equal(picture.pixels, np.asarray(scene()))


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_format_gives_pillows_pixels(name: str) -> None:
    image_format, options = LOSSY[name]
    data = encoded(scene(), image_format, **options)
    np.testing.assert_array_equal(decode(data, media_type(image_format), 1).pixels, by_pillow(data))


@pytest.mark.parametrize("name", ["png", "jpeg", "heic", "tiff"])
def test_pixels_are_contiguous_bytes_and_the_size_is_the_pictures(name: str) -> None:
    image_format, options = (LOSSLESS | LOSSY)[name]
    picture = decode(encoded(scene(), image_format, **options), media_type(image_format), 6)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.shape == (picture.height, picture.width, 3)


def test_first_frame_of_a_gif_is_taken() -> None:
    first, second = scene().quantize(64), Image.new("P", (48, 32), 3)
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(data, "image/gif", 1).pixels, np.asarray(first.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP"])
def test_palette_is_looked_up(image_format: str) -> None:
    palette = scene().quantize(64)
    picture = decode(encoded(palette, image_format), media_type(image_format), 1)
    np.testing.assert_array_equal(picture.pixels, np.asarray(palette.convert("RGB")))


def test_transparent_palette_gives_its_colours() -> None:
    palette = scene().quantize(64)
    data = encoded(palette, "PNG", transparency=bytes([0, 128] + [255] * 62))
    np.testing.assert_array_equal(decode(data, "image/png", 1).pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA"])
def test_grey_and_alpha_become_rgb_without_blending(mode: str) -> None:
    image = scene().convert(mode)
    if mode.endswith("A"):
        image.putalpha(40)
    picture = decode(encoded(image, "PNG"), "image/png", 1)
    np.testing.assert_array_equal(picture.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_to_8(extension: str, channels: int) -> None:
    wide = np.random.default_rng(7).integers(0, 65536, (32, 48, channels), dtype=np.uint16)
    data = cv2.imencode(extension, wide[:, :, ::-1])[1].tobytes()
    expected = np.broadcast_to(wide >> 8, (32, 48, 3))
    np.testing.assert_array_equal(decode(data, media_type(extension[1:].upper()), 1).pixels, expected)


def test_big_endian_16_bits_are_scaled_to_8() -> None:
    wide = np.random.default_rng(7).integers(0, 65536, (32, 48), dtype=np.uint16)
    image = Image.frombytes("I;16B", (48, 32), wide.astype(">u2").tobytes())
    picture = decode(encoded(image, "TIFF"), "image/tiff", 1)
    np.testing.assert_array_equal(picture.pixels[:, :, 0], wide >> 8)


@pytest.mark.parametrize("adobe", [True, False], ids=["adobe", "plain"])
def test_cmyk_jpeg_has_pillows_colours(adobe: bool) -> None:
    data = encoded(scene().convert("CMYK"), "JPEG", quality=95)
    if not adobe:
        data = without_segment(data, 0xEE)
    picture = decode(data, "image/jpeg", 1)
    np.testing.assert_allclose(picture.pixels.astype(int), by_pillow(data).astype(int), atol=1)


def test_cmyk_tiff_has_pillows_colours() -> None:
    data = encoded(scene().convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(decode(data, "image/tiff", 1).pixels, by_pillow(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF"])
def test_picture_of_one_pixel_is_decoded(image_format: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (200, 30, 30)), image_format)
    picture = decode(data, media_type(image_format), 1, fit=(640, 640))
    assert (picture.width, picture.height) == (1, 1)
    np.testing.assert_allclose(picture.pixels[0, 0].astype(int), by_pillow(data)[0, 0].astype(int), atol=1)


@pytest.mark.parametrize("orientation", TURNS)
def test_orientation_is_undone(orientation: int) -> None:
    upright = np.asarray(scene())
    data = encoded(Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright))), "PNG")
    picture = decode(data, "image/png", orientation)
    np.testing.assert_array_equal(picture.pixels, upright)
    assert (picture.width, picture.height) == (48, 32)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_files_own_orientation_is_not_applied_a_second_time(image_format: str, orientation: int) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    data = encoded(scene(), image_format, exif=tag)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    picture = decode(data, media_type(image_format), orientation)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert (picture.height, picture.width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("orientation", "fit", "decoded"),
    [
        (1, (320, 320), (1000, 750)),  # a quarter is enough for twice 320 x 240
        (6, (320, 320), (750, 1000)),
        (1, (640, 640), (1500, 1125)),  # three eighths for twice 640 x 480
        (8, (1000, 1000), (1500, 2000)),  # exactly a half
        (1, (1001, 1001), (4000, 3000)),  # a half is too small
        (6, (320, 160), (375, 500)),  # upright 3000 x 4000 into twice 120 x 160
        (1, None, (4000, 3000)),
    ],
)
def test_large_jpeg_is_decoded_at_a_fraction_that_is_large_enough(
    orientation: int, fit: tuple[int, int] | None, decoded: tuple[int, int]
) -> None:
    data = encoded(scene(4000, 3000), "JPEG")
    picture = decode(data, "image/jpeg", orientation, fit=fit)
    assert picture.pixels.shape[1::-1] == decoded
    assert (picture.width, picture.height) == ((4000, 3000) if orientation < 5 else (3000, 4000))


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 1500),
    height=st.integers(1, 1500),
    side=st.sampled_from([32, 96, 320]),
    orientation=st.integers(1, 8),
)
def test_scaled_jpeg_keeps_twice_what_will_be_drawn(width: int, height: int, side: int, orientation: int) -> None:
    data = encoded(Image.new("RGB", (width, height)), "JPEG")
    picture = decode(data, "image/jpeg", orientation, fit=(side, side))
    scale = min(2 * side / picture.width, 2 * side / picture.height, 1)
    assert picture.pixels.shape[1] >= round(picture.width * scale)
    assert picture.pixels.shape[0] >= round(picture.height * scale)


def test_scaled_jpeg_looks_like_the_whole_one() -> None:
    data = encoded(scene(2048, 1536), "JPEG", quality=95)
    whole = decode(data, "image/jpeg", 1).pixels
    scaled = decode(data, "image/jpeg", 1, fit=(256, 256)).pixels
    assert scaled.shape == (384, 512, 3)
    shrunk = cv2.resize(whole, (512, 384), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(scaled.astype(int), shrunk.astype(int), atol=2)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_truncated_data_is_undecodable(name: str, share: float) -> None:
    image_format, options = (LOSSLESS | LOSSY)[name]
    data = encoded(noise(), image_format, **options)
    with pytest.raises(UndecodableImageError):
        decode(data[: int(len(data) * share)], media_type(image_format), 1)


def test_truncated_gif_is_undecodable() -> None:
    data = encoded(noise(), "GIF")
    with pytest.raises(UndecodableImageError):
        decode(data[: len(data) // 2], "image/gif", 1)


@pytest.mark.parametrize("fit", [None, (64, 64)], ids=["whole", "scaled"])
def test_jpeg_that_lacks_its_middle_is_undecodable(fit: tuple[int, int] | None) -> None:
    data = encoded(scene(400, 320), "JPEG", quality=95)
    with pytest.raises(UndecodableImageError, match="damaged or incomplete"):
        decode(data[: len(data) // 2] + b"\xff\xd9", "image/jpeg", 1, fit=fit)


def test_junk_between_the_segments_of_a_jpeg_costs_nothing() -> None:
    clean = encoded(scene(), "JPEG")
    start = clean.index(b"\xff\xdb")
    picture = decode(clean[:start] + b"\0\0\0" + clean[start:], "image/jpeg", 6)
    np.testing.assert_array_equal(picture.pixels, decode(clean, "image/jpeg", 6).pixels)


@pytest.mark.parametrize("data", [b"", b"a text file named .jpg", b"\xff\xd8\xff", b"P6 1 1 255 abc", bytes(1000)])
@pytest.mark.parametrize("kind", ["image/jpeg", "image/png"])
def test_what_is_no_picture_is_undecodable(data: bytes, kind: str) -> None:
    with pytest.raises(UndecodableImageError) as caught:
        decode(data, kind, 1)
    assert caught.value.code == "undecodable_image"


def test_samples_of_32_bits_are_refused_rather_than_shown_black() -> None:
    data = encoded(Image.new("F", (8, 8), 0.5), "TIFF")
    with pytest.raises(UndecodableImageError, match="32 bits"):
        decode(data, "image/tiff", 1)


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_pixel_limit_holds_for_every_format(name: str) -> None:
    image_format, options = (LOSSLESS | LOSSY)[name]
    data = encoded(scene(48, 32), image_format, **options)
    decode(data, media_type(image_format), 1, max_pixels=48 * 32)
    with pytest.raises(UndecodableImageError) as caught:
        decode(data, media_type(image_format), 1, max_pixels=48 * 32 - 1)
    assert caught.value.code == "too_many_pixels"


def test_png_that_declares_a_huge_size_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )
    with pytest.raises(UndecodableImageError) as caught:
        decode(data, "image/png", 1)
    assert caught.value.code == "too_many_pixels"


def without_segment(jpeg: bytes, marker: int) -> bytes:
    start = jpeg.index(bytes([0xFF, marker]))
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    return jpeg[:start] + jpeg[start + 2 + length :]
