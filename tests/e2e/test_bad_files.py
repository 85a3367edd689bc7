"""Bytes that are no picture, or not a whole one, or too much of one: refused clearly, and nothing is left of them."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from tests.e2e.problems import assert_problem
from tests.e2e.service import Service, Strict, until
from tests.e2e.wire import answer, connection, head

pytestmark = pytest.mark.usefixtures("untouched")

ADDRESSES = ("/v1/files", "/v1/predict")


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key()) as client:
        yield client


@pytest.fixture
def strict_http(strict: Strict) -> Iterator[httpx.Client]:
    with strict.service.client(strict.service.new_key()) as client:
        yield client


def send(http: httpx.Client, address: str, *contents: bytes, name: str = "a.jpg") -> httpx.Response:
    part = "image" if address == "/v1/predict" else "file"
    return http.post(address, files=[(part, (name, content)) for content in contents])


def drawn(format: str, size: tuple[int, int] = (200, 150), **options: object) -> bytes:
    written = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(written, format, **options)
    return written.getvalue()


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_empty_file(http: httpx.Client, address: str) -> None:
    assert_problem(send(http, address, b""), 422, "empty_file")


def test_an_empty_body(http: httpx.Client) -> None:
    assert_problem(http.post("/v1/files"), 422, "empty_file")
    assert_problem(http.post("/v1/predict"), 400, "malformed_body")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "content",
    [
        b"dear camera, this is a text",
        b"\xff",
        b"\xff\xd8",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"PK\x03\x04",
        b"\x7fELF",
        b"P6 1 1 255 abc",
        b"8BPS\0\x01",
        b"%!PS-Adobe-3.0 EPSF",
        b"\0\0\x01\0",
        b"\0" * 5000,
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypmp42" + b"\0" * 100,
    ],
)
def test_what_is_no_picture_is_refused_whatever_its_name_says(http: httpx.Client, address: str, content: bytes) -> None:
    assert_problem(send(http, address, content, name="holiday.jpg"), 415, "unsupported_media_type")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
def test_a_truncated_picture(http: httpx.Client, address: str, format: str, kept: float) -> None:
    whole = drawn(format)
    assert_problem(send(http, address, whole[: int(len(whole) * kept)]), 422, "damaged_image")


@pytest.mark.parametrize("format", ["TIFF", "GIF", "AVIF"])
def test_a_picture_of_which_only_the_beginning_came(http: httpx.Client, format: str) -> None:
    assert_problem(send(http, "/v1/files", drawn(format)[:14]), 422, "damaged_image")


def test_signatures_alone_are_no_pictures(http: httpx.Client) -> None:
    for content in (
        b"\xff\xd8\xff\xe0" + b"\0" * 100,
        b"\x89PNG\r\n\x1a\n",
        b"BM" + b"\0" * 60,
        b"BM" + b"\xff" * 60,
        b"II*\0" + b"\xff" * 60,
        b"MM\0*\0\0\0\x08" + b"\xff" * 60,
        b"II+\0" + b"\0" * 60,
        b"GIF89a",
        b"GIF89a" + b"\0" * 7,
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x18ftypavif" + b"\0" * 100,
        b"\0\0\0\x18ftypheic" + b"\xff" * 100,
    ):
        answer = send(http, "/v1/files", content)
        assert_problem(answer, 422, "damaged_image")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (100_000_001, 1)])
def test_a_png_that_declares_more_pixels_than_allowed(
    http: httpx.Client, address: str, width: int, height: int
) -> None:
    assert_problem(send(http, address, png_that_declares(width, height)), 422, "too_many_pixels")


def test_a_png_without_pixels(http: httpx.Client) -> None:
    assert_problem(send(http, "/v1/files", png_that_declares(0, 5)), 422, "damaged_image")


def test_the_limit_of_pixels_is_a_setting(strict: Strict, strict_http: httpx.Client) -> None:
    assert_problem(send(strict_http, "/v1/files", png_that_declares(1001, 1000)), 422, "too_many_pixels")


@pytest.mark.parametrize("address", ADDRESSES)
def test_one_bad_part_spoils_the_request_and_nothing_of_the_good_ones_stays(
    http: httpx.Client, page: bytes, address: str
) -> None:
    for contents in ((page, b"text"), (b"text", page), (page, drawn("JPEG")[:500], page)):
        assert send(http, address, *contents).status_code in (415, 422)


@pytest.mark.parametrize("address", ADDRESSES)
def test_more_parts_than_allowed(strict: Strict, strict_http: httpx.Client, page: bytes, address: str) -> None:
    assert_problem(send(strict_http, address, page, page, page, page), 413, "too_many_parts")


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_file_over_the_limit(strict: Strict, strict_http: httpx.Client, page: bytes, address: str) -> None:
    assert_problem(send(strict_http, address, page + bytes(2_000_001 - len(page))), 413, "file_too_large")


def test_a_raw_body_over_the_limit(strict: Strict, strict_http: httpx.Client, page: bytes) -> None:
    content = page + bytes(2_000_001 - len(page))
    assert_problem(strict_http.post("/v1/files", content=content), 413, "file_too_large")
    chunks = iter([content[:1_000_000], content[1_000_000:]])
    assert_problem(strict_http.post("/v1/files", content=chunks), 413, "file_too_large")


@pytest.mark.parametrize("length", ["Content-Length: 50000000000", "Transfer-Encoding: chunked"])
def test_a_file_over_the_limit_is_refused_before_the_rest_of_it_was_sent(
    strict: Strict, page: bytes, length: str
) -> None:
    service = strict.service
    with connection(service.url) as opened:
        opened.sendall(head("POST", "/v1/files", service.new_key(), length))
        part = page + bytes(2_100_000 - len(page))
        opened.sendall(b"%x\r\n%s\r\n" % (len(part), part) if "chunked" in length else part)
        assert_problem(answer(opened), 413, "file_too_large")


def test_a_request_without_a_key_is_refused_before_its_body_was_sent(up: Service) -> None:
    with connection(up.url) as opened:
        opened.sendall(head("POST", "/v1/files", "wharf_wrong", "Content-Length: 50000000000"))
        assert_problem(answer(opened), 401, "unauthenticated")


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_client_that_goes_away_in_the_middle(up: Service, page: bytes, address: str) -> None:
    part = "image" if address == "/v1/predict" else "file"
    body = f'--b\r\nContent-Disposition: form-data; name="{part}"; filename="a"\r\n\r\n'.encode() + page
    with connection(up.url) as opened:
        length = "Content-Length: 9000000"
        opened.sendall(head("POST", address, up.new_key(), "Content-Type: multipart/form-data; boundary=b", length))
        opened.sendall(body + bytes(4_000_000))
        until(up.staged, "bytes are being staged")
    until(lambda: not up.staged(), "what was staged is gone")


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


DISGUISED = {
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "SVG without prologue": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
    "ZIP": zipped("a.png", b"x" * 1000),
    "HTML": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "HTML behind blanks": b"\n" * 100 + b"<html></html>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n",
    "a script": b"#!/bin/sh\nreboot\n",
    "gzip": gzip.compress(b"x" * 1000),
    "a picture within a ZIP": zipped("a.jpg", drawn("JPEG")),
    "a picture behind HTML": b"<html><!--" + drawn("PNG") + b"--></html>",
    "a picture behind a PDF": b"%PDF-1.7\n" + drawn("JPEG"),
    "an MP4": b"\0\0\0\x18ftypisom" + bytes(500),
    "a Windows program": b"MZ" + bytes(500),
}


@pytest.mark.parametrize("kind", DISGUISED)
@pytest.mark.parametrize("address", ADDRESSES)
def test_what_is_dressed_as_a_picture_is_refused_for_what_it_is(http: httpx.Client, address: str, kind: str) -> None:
    part = "image" if address == "/v1/predict" else "file"
    dressed = http.post(address, files={part: ("holiday.png", DISGUISED[kind], "image/png")})
    assert_problem(dressed, 415, "unsupported_media_type")
    if address == "/v1/files":
        raw = http.post(address, content=DISGUISED[kind], headers={"Content-Type": "image/png"})
        assert_problem(raw, 415, "unsupported_media_type")


POLYGLOTS = {
    "a GIF that is a script": b"GIF89a" + drawn("GIF")[6:] + b"=1;alert(1)//",
    "a JPEG that is a ZIP": drawn("JPEG") + zipped("a.html", b"<script>"),
    "a PNG that is a PDF": drawn("PNG") + b"%PDF-1.7\n%%EOF\n",
    "a BMP that is HTML": drawn("BMP") + b"<script>alert(1)</script>",
    "a JPEG with HTML in its comment": drawn("JPEG", comment=b"<script>alert(1)</script>"),
}
"""Pictures for those who read them as pictures, which is what we do."""
