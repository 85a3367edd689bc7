"""Request bodies as they arrive: in pieces of any size, with names of any kind, broken off anywhere."""

import asyncio
import hashlib
import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from fastapi import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from broker.body import Body, _declared_name, clean_filename, read_json, receive
from broker.media import Prober
from broker.metrics import BrokerMetrics
from broker.room import Room
from broker.service import Service
from broker.settings import BrokerSettings
from custody.errors import CustodyError
from custody.files import Files
from custody.ids import new_id
from custody.jobs import Jobs
from custody.tasks import Tasks
from custody.volume import Volume
from custody.wire import KeyRequest

MULTIPART = "multipart/form-data; boundary=bb"
NO_DATABASE = None
"""Nothing here reaches it."""

TENANT = new_id()

in_a_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return service_in(tmp_path)


def service_in(folder: Path, **limits: int) -> Service:
    volume = Volume(folder, instance="test")
    if not volume.is_prepared():
        (folder / "staging").mkdir()
        (folder / "volume-id").write_text(f"{new_id()}\n")
    settings = BrokerSettings(database_url="postgresql://nobody@nowhere/none", volume=folder, **limits)
    room = Room(volume, settings.watermarks)
    return Service(
        settings=settings,
        database=NO_DATABASE,
        volume=volume,
        files=Files(volume),
        jobs=Jobs(),
        tasks=Tasks(),
        audit=NO_DATABASE,
        backlog=NO_DATABASE,
        notices=NO_DATABASE,
        probe=Prober(settings.max_pixels),
        readiness=NO_DATABASE,
        room=room,
        metrics=BrokerMetrics(),
        cluster=NO_DATABASE,
        stopping=asyncio.Event(),
    )


def request(chunks: Iterable[bytes], *, ends: bool = True, **headers: str) -> Request:
    """A request whose body arrives in these chunks; without `ends`, its client goes away after the last."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b""} if ends else {"type": "http.disconnect"})
    given = iter(messages)

    async def receive_message() -> dict[str, object]:
        return next(given)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive_message)


def picture(colour: str = "white", size: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def multipart(*parts: tuple[str, str | None, bytes]) -> bytes:
    """Parts of name, file name (None: a field) and content."""
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        body += f'--bb\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return body + b"--bb--\r\n"


def cut(content: bytes, places: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(content), *(place % len(content) for place in places)})
    return [content[start:stop] for start, stop in pairwise(edges)]


async def received(service: Service, asked: Request, part: str = "image", *, raw: bool = False) -> Body:
    async with receive(asked, service, TENANT, part=part, raw=raw) as body:
        for upload in body.uploads:
            stored = upload.staged.path.read_bytes()
            assert (len(stored), hashlib.sha256(stored).digest()) == (upload.staged.size, upload.staged.sha256)
    assert staged(service) == []
    return body


def staged(service: Service) -> list[Path]:
    return list((service.volume.root / "staging").iterdir())


async def refusal(service: Service, asked: Request, part: str = "image", *, raw: bool = False) -> CustodyError:
    with pytest.raises(CustodyError) as refused:
        async with receive(asked, service, TENANT, part=part, raw=raw):
            pass
    assert staged(service) == []
    return refused.value


# A boundary's beginnings in the content are what a parser can stumble over.
CONTENT = picture() + b"\r\n--\r\n--c\r\n--b\n\r\r\n-" + bytes(range(256))


@in_a_folder
@given(places=st.lists(st.integers(min_value=0), max_size=12))
async def test_a_multipart_body_reads_the_same_wherever_the_network_cuts_it(tmp_path: Path, places: list[int]) -> None:
    service = service_in(tmp_path)
    parts = [("conf", None, b"0.5"), ("image", "a.png", CONTENT), ("image", "b.png", picture("red")), ("x", None, b"")]
    body = await received(service, request(cut(multipart(*parts), places), content_type=MULTIPART))
    assert body.fields == {"conf": "0.5", "x": ""}
    assert [upload.filename for upload in body.uploads] == ["a.png", "b.png"]
    digests = [hashlib.sha256(content).digest() for content in (CONTENT, picture("red"))]
    assert [upload.staged.sha256 for upload in body.uploads] == digests


@in_a_folder
@given(length=st.integers(min_value=0, max_value=len(multipart(("image", "a", CONTENT), ("conf", None, b"1"))) - 5))
async def test_a_multipart_body_broken_off_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    whole = multipart(("image", "a", CONTENT), ("conf", None, b"1"))
    refused = await refusal(service_in(tmp_path), request([whole[:length]], content_type=MULTIPART))
    assert refused.kind.status < 500


@in_a_folder
@given(body=st.binary(max_size=400))
async def test_whatever_comes_after_a_good_part_is_refused_or_read_never_an_error_of_ours(
    tmp_path: Path, body: bytes
) -> None:
    good = multipart(("image", "a", CONTENT)).removesuffix(b"--bb--\r\n")
    await read_or_refuse(service_in(tmp_path), request([good, b"--bb\r\n" + body], content_type=MULTIPART))


@in_a_folder
@given(header=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=80))
async def test_no_content_type_breaks_the_reader(tmp_path: Path, header: str) -> None:
    for content_type in (header, f"multipart/form-data; {header}"):
        await read_or_refuse(service_in(tmp_path), request([b"--bb--"], content_type=content_type))


async def read_or_refuse(service: Service, asked: Request) -> None:
    """For bodies that may be good or bad: there is an answer either way, and staging is empty afterwards."""
    status = 200
    try:
        async with receive(asked, service, TENANT, part="image", raw=True):
            pass
    except CustodyError as error:
        status = error.kind.status
    assert status < 500
    assert staged(service) == []


async def test_a_raw_body_is_one_file(service: Service) -> None:
    asked = request([CONTENT[:7], CONTENT[7:]], content_disposition='attachment; filename="a/b.png"')
    body = await received(service, asked, raw=True)
    assert [(upload.filename, upload.staged.size) for upload in body.uploads] == [("b.png", len(CONTENT))]


async def test_a_client_that_goes_away_leaves_nothing(service: Service) -> None:
    begun = multipart(("image", "a", CONTENT))[:-20]
    for asked in (request([begun], ends=False, content_type=MULTIPART), request([CONTENT], ends=False)):
        assert (await refusal(service, asked, raw=True)).code == "client_disconnected"


async def test_limits_are_exact(tmp_path: Path) -> None:
    content = picture()
    service = service_in(tmp_path, max_file_bytes=len(content), max_parts=2)
    parts = [("image", "a", content)] * 2
    assert len((await received(service, request([multipart(*parts)], content_type=MULTIPART))).uploads) == 2
    too_many = request([multipart(*parts, parts[0])], content_type=MULTIPART)
    assert (await refusal(service, too_many)).code == "too_many_parts"
    too_large = request([multipart(("image", "a", content + b"x"))], content_type=MULTIPART)
    assert (await refusal(service, too_large)).code == "file_too_large"
    assert (await refusal(service, request([content, b"x"]), raw=True)).code == "file_too_large"


async def test_a_field_has_64_kib_at_most_and_is_utf8(service: Service) -> None:
    def with_field(value: bytes) -> Request:
        parts = [("image", "a", picture()), ("model", None, value)]
        return request([multipart(*parts)], content_type=MULTIPART)

    assert (await received(service, with_field(b"x" * 65_536))).fields["model"] == "x" * 65_536
    assert (await refusal(service, with_field(b"x" * 65_537))).code == "request_too_large"
    wrong = await refusal(service, with_field(b"\xff"))
    assert (wrong.code, wrong.field) == ("invalid_request", "model")


def limits(**limits: float) -> BrokerSettings:
    return BrokerSettings(database_url="postgresql://nobody@nowhere/none", volume=Path("none"), **limits)


async def test_json_is_read_up_to_its_limit() -> None:
    body = b'{"name": "x", "role": "reader"}'
    exact = limits(max_request_bytes=len(body))
    assert (await read_json(request(cut(body, range(31))), KeyRequest, exact)).name == "x"
    with pytest.raises(CustodyError) as refused:
        await read_json(request([body, b" "]), KeyRequest, exact)
    assert refused.value.code == "request_too_large"
    with pytest.raises(CustodyError) as refused:
        await read_json(request([body], ends=False), KeyRequest, exact)
    assert refused.value.code == "client_disconnected"


async def test_a_body_that_comes_slower_than_it_may_is_cut_off_and_one_that_pauses_is_not() -> None:
    async def each(pause: float, chunks: int, **least: float) -> KeyRequest:
        messages = iter(cut(b'{"name": "x", "role": "reader"}' + b" " * 100, range(0, 131, 131 // chunks)))

        async def late() -> dict[str, object]:
            await asyncio.sleep(pause)
            chunk = next(messages, b"")
            return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

        asked = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, late)
        return await read_json(asked, KeyRequest, limits(**least))

    assert (await each(0.01, 10, body_idle_seconds=20, min_upload_bytes_per_second=0)).name == "x"
    for least in (
        {"body_idle_seconds": 0.001, "min_upload_bytes_per_second": 0},
        {"body_idle_seconds": 0.1, "min_upload_bytes_per_second": 1e6},
    ):
        with pytest.raises(CustodyError) as refused:
            await each(0.05, 10, **least)
        assert refused.value.code == "request_timeout"


@settings(deadline=None)
@given(body=st.binary(max_size=200))
async def test_json_of_any_bytes_is_a_request_or_invalid(body: bytes) -> None:
    with pytest.raises(CustodyError) as refused:
        await read_json(request([body]), KeyRequest, limits())
    assert refused.value.code == "invalid_request"


@given(st.text())
def test_a_clean_filename_is_short_printable_and_has_no_folder(name: str) -> None:
    clean = clean_filename(name)
    assert clean is None or (
        0 < len(clean) <= 255
        and clean.isprintable()
        and not set(clean) & set("/\\")
        and clean not in (".", "..")
        and clean in name.replace("\n", "") + "".join(c for c in name if c.isprintable())
    )


@given(st.text(st.characters(categories=("L", "N")), min_size=1, max_size=255))
def test_an_honest_filename_stays_as_it_is(name: str) -> None:
    assert clean_filename(f"{name}.jpg"[:255]) == f"{name}.jpg"[:255]
    assert clean_filename(f"C:\\photos/{name}") == name


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=120))
def test_no_content_disposition_breaks_the_reader(text: str) -> None:
    for header in (text, f"attachment; filename={text}", f"attachment; filename*={text}", f'a; filename*0*="{text}"'):
        clean_filename(_declared_name(header))


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="a b.png"', "a b.png"),
        ("attachment; filename=a.png", "a.png"),
        ("attachment; filename*=UTF-8''%E2%82%AC%20rates.png", "€ rates.png"),
        ("attachment; filename*=nonsense''a.png", "a.png"),
        ("attachment", None),
        ("", None),
    ],
)
def test_the_name_of_a_raw_upload_is_read_as_rfc_6266_says(header: str, name: str | None) -> None:
    assert _declared_name(header) == name
