"""What bytes are, read from the bytes: kind, size, orientation, completeness. Without decoding a pixel."""

import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from broker.media import MEDIA_TYPES, READ_WHOLE_BYTES, probe
from custody.errors import CustodyError
from custody.files import Media
from inference_worker.decode import decode

MANY = 100_000_000
EXIF_ORIENTATION = 0x0112
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
WITH_EXIF = ("JPEG", "PNG", "WEBP")


def drawn(format: str, size: tuple[int, int] = (50, 30), mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.effect_noise(size, 60).convert(mode)
    if format == "HEIF":
        pillow_heif.from_pillow(image).save(file)
    else:
        image.save(file, format, **options)
    return file.getvalue()


def probed(tmp_path: Path, content: bytes, max_pixels: int = MANY) -> Media:
    path = tmp_path / "upload"
    path.write_bytes(content)
    return probe(path, max_pixels)


def refused(tmp_path: Path, content: bytes, max_pixels: int = MANY) -> str:
    with pytest.raises(CustodyError) as error:
        probed(tmp_path, content, max_pixels)
    return error.value.code


@pytest.mark.parametrize("format", FORMATS)
def test_kind_and_size_come_from_the_bytes(tmp_path: Path, format: str) -> None:
    assert probed(tmp_path, drawn(format)) == Media(MEDIA_TYPES[format], 50, 30, 1)


@pytest.mark.parametrize("format", WITH_EXIF)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_are_upright(tmp_path: Path, format: str, orientation: int) -> None:
    media = probed(tmp_path, drawn(format, exif=turned(orientation)))
    assert (media.width, media.height) == ((50, 30) if orientation < 5 else (30, 50))
    assert media.orientation == orientation


@pytest.mark.parametrize("format", [*WITH_EXIF, "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_worker_decodes_the_size_that_the_broker_told(tmp_path: Path, format: str, orientation: int) -> None:
    content = drawn(format, exif=turned(orientation))
    media = probed(tmp_path, content)
    picture = decode(content, media.media_type, media.orientation)
    assert (picture.width, picture.height) == (media.width, media.height)
    assert picture.pixels.shape == (media.height, media.width, 3)


@pytest.mark.parametrize("orientation", [0, 9, 255, -1])
def test_an_orientation_that_is_none_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation % 65536
    assert probed(tmp_path, drawn("JPEG", exif=exif)) == Media("image/jpeg", 50, 30, 1)


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_of_pixels_is_exact(tmp_path: Path, format: str) -> None:
    content = drawn(format, (40, 32))
    assert probed(tmp_path, content, max_pixels=40 * 32).width == 40
    assert refused(tmp_path, content, max_pixels=40 * 32 - 1) == "too_many_pixels"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_picture_without_its_end_is_damaged_wherever_it_breaks_off(tmp_path: Path, format: str) -> None:
    content = drawn(format)
    for length in {*range(13, len(content), max(1, len(content) // 50)), len(content) - 1}:
        assert refused(tmp_path, content[:length]) == "damaged_image", length


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("behind", [b"\0", b"garbage" * 1000, b"\xff\xd8\xff"])
def test_bytes_behind_the_picture_do_no_harm(tmp_path: Path, format: str, behind: bytes) -> None:
    assert probed(tmp_path, drawn(format) + behind).width == 50


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_every_kind_of_jpeg_is_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    assert probed(tmp_path, drawn("JPEG", (400, 300), **options)).width == 400


def test_a_thumbnail_in_the_exif_does_not_pass_for_the_end_of_the_picture(tmp_path: Path) -> None:
    thumbnail = drawn("JPEG", (8, 8))
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    whole = drawn("JPEG")
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert probed(tmp_path, with_thumbnail).width == 50
    assert refused(tmp_path, with_thumbnail[:-300]) == "damaged_image"


def test_fill_bytes_between_the_segments_of_a_jpeg_are_allowed(tmp_path: Path) -> None:
    whole = drawn("JPEG")
    assert probed(tmp_path, whole[:2] + b"\xff\xff\xff" + whole[2:]).width == 50


def test_no_pixel_is_decoded_however_many_the_header_declares(tmp_path: Path) -> None:
    # Three hundred kilobytes that would be three hundred megabytes: a broker must not unpack them.
    rows = zlib.compress(bytes(300_010_000), 1)
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    began = time.process_time()
    assert probed(tmp_path, content, max_pixels=MANY) == Media("image/png", 10_000, 10_000, 1)
    probing = time.process_time() - began
    began = time.process_time()
    assert len(zlib.decompress(rows)) == 300_010_000
    assert probing < (time.process_time() - began) / 2


@pytest.mark.parametrize("format", ["WEBP", "HEIF", "AVIF"])
def test_a_large_file_of_a_format_that_is_read_whole_is_refused_unread(tmp_path: Path, format: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(drawn(format))
    with path.open("r+b") as file:
        file.truncate(READ_WHOLE_BYTES + 1)
    with pytest.raises(CustodyError, match="bytes at most") as error:
        probe(path, MANY)
    assert error.value.code == "file_too_large"


def test_what_has_no_bytes_or_no_known_beginning(tmp_path: Path) -> None:
    assert refused(tmp_path, b"") == "empty_file"
    for content in (b"\0", b"text", b"%PDF-1.7", b"\x1a\x45\xdf\xa3", b"RIFF\0\0\0\0AVI ", b"\xff\xd8"):
        assert refused(tmp_path, content) == "unsupported_media_type"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(format=st.sampled_from(FORMATS), data=st.data())
def test_flipped_bytes_give_an_answer_or_a_refusal_and_never_an_error_of_ours(
    tmp_path: Path, format: str, data: st.DataObject
) -> None:
    content = bytearray(PICTURES[format])
    places = st.integers(min_value=0, max_value=min(len(content), 400) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(min_value=0, max_value=255))
    try:
        media = probed(tmp_path, bytes(content), max_pixels=10_000)
    except CustodyError:
        return  # it has a code of ours
    assert 0 < media.width * media.height <= 10_000


PICTURES = {kind: drawn(kind) for kind in FORMATS}


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff\xe9\0\2" + b"\xff\xe9\0\2" * 2_000_000,
        b"\xff\xd8" + (b"\xff\xe9\xff\xff" + bytes(65533)) * 400,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0) + bytes(4)
        + (bytes(4) + b"prVt" + bytes(4)) * 2_000_000,
    ],
    ids=["JPEG of empty segments", "JPEG of long segments", "PNG of empty chunks"],
)  # fmt: skip
def test_a_file_that_is_all_header_is_refused_before_it_fills_the_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CustodyError) as refused:
            probe(path, 10**8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.code == "damaged_image"
    assert peak < 64 << 20


def many_numbers(count: int) -> bytes:
    """An Exif whose orientation is so many fractions."""
    entry = struct.pack("<HHHII", 1, EXIF_ORIENTATION, 5, count, 26)
    return b"II*\0\x08\0\0\0" + entry + bytes(4) + b"\x01\0\0\0\x02\0\0\0" * count


def jpeg_with_exif(*segments: bytes) -> bytes:
    whole = drawn("JPEG")
    exif = [b"\xff\xe1" + struct.pack(">H", 8 + len(segment)) + b"Exif\0\0" + segment for segment in segments]
    return whole[:2] + b"".join(exif) + whole[20:]  # without the JFIF segment: Pillow then looks for the density here


def avif_with_exif(exif: bytes) -> bytes:
    room = Image.Exif()
    room[0x927C] = bytes(len(exif))  # a maker's note
    content = drawn("AVIF", exif=room)
    start = content.index(room.tobytes()[6:14])
    return content[:start] + exif + content[start + len(exif) :]


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with_exif(*(b"a" * 1000,) * 15_000),
        jpeg_with_exif(*(many_numbers(300_000)[at : at + 65_000] for at in range(0, 2_400_026, 65_000))),
        drawn("PNG")[:33] + chunk(b"eXIf", many_numbers(300_000)) + drawn("PNG")[33:],
        drawn("WEBP", exif=many_numbers(300_000)),
        avif_with_exif(many_numbers(300_000)),
    ],
    ids=["JPEG of many segments", "JPEG", "PNG", "WEBP", "AVIF"],
)
def test_an_exif_that_is_a_bomb_is_refused_before_it_is_parsed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "picture").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CustodyError) as refused:
            probe(tmp_path / "picture", MANY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.code == "damaged_image"
    assert peak < READ_WHOLE_BYTES + (16 << 20)


def test_an_exif_in_several_segments_is_read(tmp_path: Path) -> None:
    exif = turned(6).tobytes()[6:] + bytes(100_000)
    segments = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    assert probed(tmp_path, jpeg_with_exif(*segments)) == Media("image/jpeg", 30, 50, 6)
