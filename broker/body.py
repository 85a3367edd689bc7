"""Request bodies: files streamed to the volume as they arrive, and JSON read up to a limit."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from typing import TypeVar
from uuid import UUID

from fastapi import Request
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from broker import problems
from broker.service import Service
from broker.settings import BrokerSettings
from broker.stages import stage
from custody.errors import CustodyError
from custody.files import Upload
from custody.volume import Staging

B = TypeVar("B", bound=BaseModel)

FIELDS = 32
FIELD_BYTES = 64 * 1024


@dataclass
class Body:
    """What an upload brought: staged files in the order of their parts, and text fields."""

    uploads: list[Upload] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def receive(request: Request, service: Service, tenant: UUID, *, part: str, raw: bool) -> AsyncIterator[Body]:
    """Streams the body: multipart with files in parts named `part`, or one file as the `raw` body. On leaving,
    whatever was staged and not kept is gone.

    Raises `CustodyError` for everything that can be wrong with a body or a picture."""
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    async with AsyncExitStack() as staged:
        try:
            with stage("receive"):
                if content_type == "multipart/form-data":
                    body = await _multipart(request, service, tenant, staged, part, options.get("boundary", ""))
                elif raw:
                    body = await _raw(request, service, tenant, staged)
                else:
                    raise CustodyError("malformed_body", f"Send multipart/form-data with one or more parts `{part}`.")
            if not body.uploads:
                raise CustodyError("missing_part", f"The body has no part `{part}`: no file is in it.", field=part)
        except ClientDisconnect:
            service.metrics.uploads_refused.labels("client_disconnected").inc()
            raise CustodyError("client_disconnected", "The client went away in the middle of its body.") from None
        except CustodyError as error:
            service.metrics.uploads_refused.labels(error.code).inc()
            raise
        yield body


async def read_json(request: Request, kind: type[B], settings: BrokerSettings) -> B:
    """Raises `CustodyError` for what is too long, too slow or no such JSON. A number is a number here, not its text."""
    data = bytearray()
    max_bytes = settings.max_request_bytes
    try:
        with stage("receive"):
            async for chunk in _arriving(request, settings):
                data += chunk
                if len(data) > max_bytes:
                    raise CustodyError("request_too_large", f"A JSON body may have {max_bytes} bytes at most.")
    except ClientDisconnect:
        raise CustodyError("client_disconnected", "The client went away in the middle of its body.") from None
    try:
        return kind.model_validate_json(bytes(data), strict=True)
    except ValidationError as error:
        raise problems.invalid(error) from None


def fields_of(received: Body, kind: type[B]) -> B:
    """The text fields. Raises `CustodyError` with the name of one that is wrong."""
    try:
        return kind.model_validate(received.fields)
    except ValidationError as error:
        raise problems.invalid(error) from None


async def _arriving(request: Request, settings: BrokerSettings) -> AsyncIterator[bytes]:
    """The body as it comes, and not slower than it may. Counted is the time that we wait for the client, not the time
    that the disk takes."""
    chunks = request.stream()
    waited, came = 0.0, 0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(settings.body_idle_seconds):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise CustodyError(
                "request_timeout", f"No byte of the body came for {settings.body_idle_seconds:g} s. Send it again."
            ) from None
        if chunk is None:
            return
        waited, came = waited + time.monotonic() - began, came + len(chunk)
        if waited >= settings.body_idle_seconds:
            if came < waited * settings.min_upload_bytes_per_second:
                raise CustodyError(
                    "request_timeout",
                    f"The body comes slower than {settings.min_upload_bytes_per_second:g} bytes a second.",
                )
            waited, came = 0.0, 0
        yield chunk


async def _raw(request: Request, service: Service, tenant: UUID, staged: AsyncExitStack) -> Body:
    declared = _declared_bytes(request)
    if declared is not None and declared > service.settings.max_file_bytes:
        raise CustodyError("file_too_large", f"A file may have {service.settings.max_file_bytes} bytes at most.")
    place = await staged.enter_async_context(service.room.upload(tenant, declared))
    staging = await staged.enter_async_context(service.volume.stage(service.settings.max_file_bytes))
    async for chunk in _arriving(request, service.settings):
        await place.take(len(chunk))
        await staging.write(chunk)
    return Body([await _sealed(service, staging, _declared_name(request.headers.get("content-disposition", "")))])


async def _multipart(
    request: Request, service: Service, tenant: UUID, staged: AsyncExitStack, part: str, boundary: str
) -> Body:
    body = Body()
    settings = service.settings
    place = await staged.enter_async_context(service.room.upload(tenant, _declared_bytes(request)))
    try:
        parser = PushMultipartParser(
            boundary, max_segment_count=settings.max_parts + FIELDS, max_header_size=8192, strict=False
        )
        segment: MultipartSegment | None = None
        staging: Staging | None = None
        text = bytearray()
        async for chunk in _arriving(request, service.settings):
            await place.take(len(chunk))
            for event in parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    segment, staging, text = event, None, bytearray()
                    if segment.name == part:
                        if len(body.uploads) == settings.max_parts:
                            raise CustodyError(
                                "too_many_parts", f"One request may bring {settings.max_parts} files.", field=part
                            )
                        staging = await staged.enter_async_context(service.volume.stage(settings.max_file_bytes))
                    elif segment.filename is not None:
                        raise CustodyError(
                            "missing_part", f"A file came as `{segment.name}`: name its part `{part}`.", field=part
                        )
                elif event is None:
                    assert segment is not None
                    if staging is not None:
                        body.uploads.append(await _sealed(service, staging, segment.filename))
                    else:
                        body.fields[segment.name or ""] = _text(text, segment.name or "")
                elif staging is not None:
                    await staging.write(event)
                else:
                    text += event
                    if len(text) > FIELD_BYTES:
                        raise CustodyError("request_too_large", f"A field may have {FIELD_BYTES} bytes at most.")
        parser.close()
    except ParserLimitReached as error:
        raise CustodyError("too_many_parts", f"The multipart body goes beyond a limit: {error}.") from None
    except MultipartError as error:
        raise CustodyError("malformed_body", f"The multipart body cannot be parsed: {error}.") from None
    return body


async def _sealed(service: Service, staging: Staging, filename: str | None) -> Upload:
    staged = await staging.seal()
    with stage("probe"):
        media = await service.probe(staged.path)
    return Upload(staged, media, clean_filename(filename))


def clean_filename(name: str | None) -> str | None:
    """The last component of what a client calls its file, without control characters; names are shown, never opened."""
    last = re.split(r"[/\\]", name or "")[-1]
    printable = "".join(c for c in last if c.isprintable()).strip()
    return printable[:255] if printable not in ("", ".", "..") else None


def _declared_bytes(request: Request) -> int | None:
    """The length of the body, where it was told before it came."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


def _declared_name(disposition: str) -> str | None:
    """`filename` or, RFC 6266, `filename*` of a Content-Disposition."""
    message = Message()
    message["Content-Disposition"] = disposition
    return message.get_filename()


def _text(data: bytearray, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CustodyError("invalid_request", f"The field `{name}` is not UTF-8.", field=name) from None
