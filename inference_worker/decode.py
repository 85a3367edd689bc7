"""Bytes to upright RGB pixels, never silently half a picture.

JPEG goes through simplejpeg (libjpeg-turbo), which can decode at a fraction of the size; Pillow takes every other
format, and the few JPEGs that simplejpeg refuses. Both raise on truncated data, for every format that is accepted.
"""

import io
import re
from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
import pillow_heif
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What Pillow may try, in its own names: none of its rarer and less tested parsers."""

UPRIGHT_FORMATS = ("HEIF", "TIFF")
"""What Pillow and libheif turn upright by themselves."""

MAX_PIXELS = 178_956_970
"""Pillow's own limit: half a gigabyte of RGB."""

SPARE = 2
"""How many times larger than drawn a scaled JPEG stays. Measured: at 1 the confidences of doubtful objects move by up
to 0.16 against a whole decode, since libjpeg averages what the drawing then samples."""

# libjpeg's words where a part of the picture is missing or was made up. Its other complaints are about things that cost
# no pixel, or that Pillow can read.
DAMAGE = re.compile(r"premature end|bad (huffman|arithmetic) code|instead of RST", re.IGNORECASE)

pillow_heif.register_heif_opener()
# The limit that holds is decode's argument; Pillow's would only warn up to twice its own.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, eq=False)
class Picture:
    """`pixels`: height x width x 3, uint8, RGB, C-contiguous, upright. They may be fewer than the picture has:
    `width` and `height` are those of the whole picture, upright."""

    pixels: Pixels
    width: int
    height: int


class UndecodableImageError(Exception):
    """`code`: `undecodable_image` or `too_many_pixels`. The message says what the decoder met."""

    def __init__(self, detail: str, code: str = "undecodable_image") -> None:
        super().__init__(detail)
        self.code = code


def decode(
    data: bytes, media_type: str, orientation: int, *, fit: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> Picture:
    """`orientation`: the EXIF number, 1 to 8. `fit`: width and height that the picture will be shrunk into, its shape
    kept; a large JPEG is then decoded at a half to an eighth of its size, but at `SPARE` times what is drawn or more.

    Raises `UndecodableImageError` where the data is damaged, truncated, of no accepted format or over `max_pixels`."""
    if media_type == "image/jpeg":
        picture = _jpeg(data, orientation, fit, max_pixels)
        if picture is not None:
            return picture
    return _any(data, media_type, orientation, max_pixels)


def _jpeg(data: bytes, orientation: int, fit: tuple[int, int] | None, max_pixels: int) -> Picture | None:
    """None where simplejpeg refuses what is no damage: an unusual subsampling, or junk between the segments."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        least_width, least_height = _least_size(width, height, orientation, fit)
        pixels = simplejpeg.decode_jpeg(data, min_width=least_width, min_height=least_height, min_factor=2)
    except ValueError as error:
        if DAMAGE.search(str(error)):
            raise UndecodableImageError(f"The JPEG is damaged or incomplete: {error}.") from error
        return None
    return _picture(_upright(pixels, orientation), (width, height), swapped=orientation >= 5)


def _least_size(width: int, height: int, orientation: int, fit: tuple[int, int] | None) -> tuple[int, int]:
    """Least width and height to decode to, as the file lies."""
    if fit is None:
        return width, height
    fit_width, fit_height = fit if orientation < 5 else fit[::-1]
    scale = SPARE * min(fit_width / width, fit_height / height)
    return ceil(width * scale), ceil(height * scale)


def _any(data: bytes, media_type: str, orientation: int, max_pixels: int) -> Picture:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels)
            upright = image.format in UPRIGHT_FORMATS
            pixels = _rgb(image)
    except (UndecodableImageError, MemoryError):
        raise
    except Exception as error:
        # Pillow's parsers raise whatever they trip over: OSError, SyntaxError, struct.error, IndexError, ...
        raise UndecodableImageError(f"The picture cannot be decoded as {media_type}: {error}.") from error
    pixels = pixels if upright else _upright(pixels, orientation)
    return _picture(pixels, (pixels.shape[1], pixels.shape[0]), swapped=False)


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("F", "I"):
        raise UndecodableImageError(
            "Samples of 32 bits have no agreed black and white. Save the picture with 8 or 16 bits."
        )
    # Alpha is dropped and not blended; a palette's transparency would only make Pillow warn.
    image.load()
    image.info.pop("transparency", None)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UndecodableImageError(
            f"The picture has {width} x {height} pixels, more than the {max_pixels} allowed. Shrink it and try again.",
            code="too_many_pixels",
        )


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation. Source: Exif 2.32, tag 0x0112."""
    match orientation:
        case 2:
            turned = cv2.flip(pixels, 1)
        case 3:
            turned = cv2.rotate(pixels, cv2.ROTATE_180)
        case 4:
            turned = cv2.flip(pixels, 0)
        case 5:
            turned = cv2.transpose(pixels)
        case 6:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            turned = cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180)
        case 8:
            turned = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            return pixels
    return turned.astype(np.uint8, copy=False)


def _picture(pixels: Pixels, size: tuple[int, int], *, swapped: bool) -> Picture:
    width, height = size[::-1] if swapped else size
    return Picture(np.ascontiguousarray(pixels), width, height)
