"""What uploaded bytes are, read from the bytes themselves: kind, size in pixels, orientation, completeness."""

import asyncio
import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, cast

import pillow_heif
from PIL import Image, UnidentifiedImageError

from custody.errors import CustodyError
from custody.files import Media

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
    "HEIF": "image/heic",
    "AVIF": "image/avif",
}
"""Accepted formats, by Pillow's name. docs/api.md has the table for users."""

READ_WHOLE = ("WEBP", "HEIF", "AVIF")
READ_WHOLE_BYTES = 64 << 20
"""Pillow reads files of these formats into memory to look at their header, so larger ones are refused."""

HEADER_BYTES = 16 << 20
HEADER_READS = 50_000
SEGMENTS = 200_000
"""Far above what cameras and editors write before the first pixel; a file made of headers would fill the memory."""

EXIF_BYTES = 1 << 20
EXIF_SEGMENTS = 32
"""Cameras write one of 64 KB at most. Pillow makes an object of each number in it, and joins segments one by one."""

UPRIGHT = ("HEIF", "TIFF")
"""Formats whose decoders turn the picture upright by themselves: the size read here is upright already."""

EXIF_ORIENTATION = 0x0112


class _ShortExif(Image.Exif):
    """What Pillow's readers parse while they open a file, where nothing of ours comes in between."""

    def load(self, data: bytes) -> None:
        if len(data) > EXIF_BYTES:
            raise CustodyError("damaged_image", f"The Exif of a picture may have {EXIF_BYTES} bytes at most.")
        super().load(data)


pillow_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # the limit is a setting, checked below
Image.Exif = _ShortExif  # type: ignore[misc]


class Prober:
    """Probes in threads of its own, few: each may hold a header in memory, and takes the interpreter's lock."""

    def __init__(self, max_pixels: int, *, threads: int = 2) -> None:
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="probe")

    async def __call__(self, path: Path) -> Media:
        return await asyncio.get_running_loop().run_in_executor(self._threads, probe, path, self._max_pixels)


def probe(path: Path, max_pixels: int) -> Media:
    """Reads the header and checks that the file is whole. Decodes no pixel; memory does not grow with the file.

    Raises `CustodyError`: unsupported_media_type, too_many_pixels, file_too_large, damaged_image."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            raise CustodyError("empty_file", "The file has no bytes.")
        kind = _sniff(file)
        if kind in READ_WHOLE and file.seek(0, os.SEEK_END) > READ_WHOLE_BYTES:
            raise CustodyError("file_too_large", f"A {kind} file may have {READ_WHOLE_BYTES} bytes at most.")
        media = _header(file, kind, max_pixels)
        if kind in COMPLETE and not COMPLETE[kind](file):
            raise CustodyError("damaged_image", f"The {kind} file ends before its picture does. Send it again.")
    return media


def _sniff(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(32)
    for kind, matches in SIGNATURES.items():
        if matches(head):
            return kind
    raise CustodyError(
        "unsupported_media_type",
        "The bytes are no JPEG, PNG, WebP, BMP, TIFF, GIF, HEIC or AVIF, whatever the file's name says.",
    )


def _header(file: BinaryIO, kind: str, max_pixels: int) -> Media:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = cast(IO[bytes], _HeaderOnly(file, READ_WHOLE_BYTES + 1 if kind in READ_WHOLE else HEADER_BYTES))
            with Image.open(header, formats=PILLOW_NAMES[kind]) as image:
                width, height = image.size
                found = image.format or kind
                if width * height > max_pixels:
                    raise CustodyError(
                        "too_many_pixels",
                        f"The picture has {width} x {height} pixels; {max_pixels} are allowed. Send a smaller one.",
                    )
                # Of the base class: a PNG's own decodes all pixels first, to look for an Exif chunk behind them.
                orientation = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
    except CustodyError:
        raise
    except UnidentifiedImageError:
        raise CustodyError("damaged_image", f"The bytes begin like {kind}, but have no such header.") from None
    except Exception as error:
        raise CustodyError("damaged_image", f"The {kind} header cannot be read: it is damaged.") from error
    if kind in UPRIGHT or not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    if orientation >= 5:
        width, height = height, width
    return Media(MEDIA_TYPES[found], width, height, orientation)


class _HeaderOnly(io.RawIOBase):
    """The file as Pillow may see it: so many bytes, in so many reads. What wants more is no header."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file = file
        self._bytes_left = most_bytes
        self._reads_left = HEADER_READS
        self._exif_left = EXIF_SEGMENTS

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._bytes_left) if size >= 0 else self._bytes_left)
        self._bytes_left -= len(data)
        self._reads_left -= 1
        self._exif_left -= data.startswith(b"Exif\0\0")
        if min(self._bytes_left, self._reads_left, self._exif_left) <= 0:
            raise CustodyError("damaged_image", "The file is all header: no pixel comes in its first megabytes.")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _jpeg_is_whole(file: BinaryIO) -> bool:
    """Walks the segments to the first scan; from there on, an end-of-image marker cannot be picture data."""
    file.seek(2)
    for _ in range(SEGMENTS):
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            break
        if marker[1] == 0xFF:
            file.seek(-1, os.SEEK_CUR)
            continue
        length = file.read(2)
        if len(length) < 2:
            return False
        file.seek(int.from_bytes(length, "big") - 2, os.SEEK_CUR)
        if marker[1] == 0xDA:
            return _contains(file, b"\xff\xd9")
    return False


def _png_is_whole(file: BinaryIO) -> bool:
    end = file.seek(0, os.SEEK_END)
    file.seek(8)
    for _ in range(SEGMENTS):
        head = file.read(8)
        if len(head) < 8:
            break
        if head[4:] == b"IEND":
            return file.tell() + 4 <= end
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def _webp_is_whole(file: BinaryIO) -> bool:
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= file.seek(0, os.SEEK_END)


def _bmp_is_whole(file: BinaryIO) -> bool:
    file.seek(2)
    return int.from_bytes(file.read(4), "little") <= file.seek(0, os.SEEK_END)


def _contains(file: BinaryIO, wanted: bytes) -> bool:
    tail = b""
    while chunk := file.read(1 << 20):
        if wanted in tail + chunk:
            return True
        tail = chunk[1 - len(wanted) :]
    return False


SIGNATURES: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda head: head.startswith(b"\xff\xd8\xff"),
    "PNG": lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"),
    "WEBP": lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
    "BMP": lambda head: head.startswith(b"BM"),
    "TIFF": lambda head: head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "GIF": lambda head: head.startswith((b"GIF87a", b"GIF89a")),
    "AVIF": lambda head: head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"),
    "HEIF": lambda head: head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"),
}

PILLOW_NAMES = {kind: [kind] for kind in SIGNATURES} | {"JPEG": ["JPEG", "MPO"]}

COMPLETE: dict[str, Callable[[BinaryIO], bool]] = {
    "JPEG": _jpeg_is_whole,
    "PNG": _png_is_whole,
    "WEBP": _webp_is_whole,
    "BMP": _bmp_is_whole,
}
