"""/v1/files: bytes taken into custody, described, handed out again, let go."""

import os
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from broker import body, headers, paging, problems
from broker.access import Reader, Writer
from broker.answers import answer, no_such, parse_id
from broker.media import MEDIA_TYPES
from broker.routes import IdempotencyKey
from broker.service import Service, ServiceDep
from broker.stages import stage
from custody import erasure, idempotency
from custody.audit import Action
from custody.database import Transaction
from custody.erasure import Purged
from custody.errors import CustodyError
from custody.files import damaged
from custody.notices import job_ended
from custody.tenants import Principal
from custody.volume import CHUNK
from custody.wire import (
    MOST_DAYS,
    File,
    FileList,
    FilePage,
    FilePatch,
    FileState,
    KeptSeconds,
    Outcome,
    PurgeReceipt,
    UploadFields,
)

router = APIRouter(prefix="/v1/files", tags=["files"])

JOBS_FINISHED = 100
"""After a purge, before its answer; a reconcile finishes the rest."""

PICTURES = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "expires_in": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds"},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

PATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/FilePatch"}}},
    }
}
LOCATION_OF_ONE = {"Location": {"description": "Where one file came: its address", "schema": {"type": "string"}}}
BYTES = headers.sent("ETag", "Accept-Ranges", "Content-Disposition", "X-Content-Type-Options")
PART = {"headers": {**BYTES["headers"], **headers.sent("Content-Range")["headers"]}}
LET_GO = problems.answers(*problems.KEYED, "forbidden", "not_found", "invalid_request")

ExpiresIn = Annotated[KeptSeconds | None, Query()]


@router.post(
    "",
    summary="Upload files",
    response_model=FileList,
    status_code=201,
    responses={
        200: {"model": FileList, "description": "You held every byte already", "headers": LOCATION_OF_ONE},
        201: {"description": "Some bytes are new", "headers": LOCATION_OF_ONE},
        **problems.answers(*problems.KEYED, "forbidden", *problems.UPLOAD, *problems.IDEMPOTENT, "gone"),
    },
    openapi_extra={**UPLOAD_BODY, **headers.read("Content-Disposition")},
)
async def upload(
    request: Request,
    service: ServiceDep,
    principal: Writer,
    expires_in: ExpiresIn = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Takes files: multipart with parts `file`, or one file as the raw body. When this answers, they are safe. In a
    multipart body, `expires_in` may be a field too."""
    tenant, request_id = principal.tenant_id, request.scope["request_id"]
    async with body.receive(request, service, tenant, part="file", raw=True) as received:
        kept_for = body.fields_of(received, UploadFields).expires_in or expires_in
        digests = [upload.staged.sha256 for upload in received.uploads]
        wanted = idempotency.fingerprint("POST /v1/files", _asked(expires_in=kept_for), digests)
        async with stage("commit"), service.database.transaction(tenant) as transaction:
            if replay := await idempotency.begin(transaction, tenant, idempotency_key, wanted):
                files = await _again(service, transaction, replay.resource)
                await service.audit.record(
                    transaction, principal, request_id, Action.FILE_UPLOADED, outcome=Outcome.REPLAYED, files=files
                )
                return _uploaded(files, replay.status)
            kept = await service.files.keep(transaction, tenant, received.uploads, kept_for=kept_for)
            ids = [file.id for file in kept.files]
            status = 200 if kept.held_before else 201
            await idempotency.record(transaction, tenant, idempotency_key, status=status, resource=ids)
            await service.audit.record(transaction, principal, request_id, Action.FILE_UPLOADED, files=kept.files)
    service.metrics.count(kept)
    return _uploaded(list(kept.files), status)


def _uploaded(files: list[File], status: int) -> Response:
    location = {"Location": f"/v1/files/{files[0].id}"} if len(files) == 1 else {}
    return answer(FileList(items=files), status, location)


@router.get(
    "", summary="List files", response_model=FilePage, responses=problems.answers(*problems.KEYED, "invalid_request")
)
async def list_files(
    request: Request,
    service: ServiceDep,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> Response:
    """Newest first."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        files = await service.files.page(transaction, before=paging.decode_id(cursor), limit=limit)
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.FILE_LISTED, files=files)
    return answer(FilePage(items=files, next_cursor=paging.encode(files[-1].id) if len(files) == limit else None))


@router.head(
    "/sha256:{sha256}",
    summary="Ask whether you hold these bytes",
    response_class=Response,
    responses={**problems.answers(*problems.KEYED, "invalid_request"), 404: {"description": "It does not"}},
)
async def held(request: Request, service: ServiceDep, principal: Reader, sha256: str) -> Response:
    """200 where your tenant holds these bytes, 404 where not. Says nothing of other tenants."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        found = await service.files.holds(transaction, _digest(sha256))
        await service.audit.record(
            transaction, principal, request.scope["request_id"], Action.FILE_SEEN, sha256=[_digest(sha256)]
        )
    return Response(status_code=200 if found else 404)


@router.post(
    "/sha256:{sha256}",
    summary="Add a file of bytes you hold",
    response_model=File,
    status_code=201,
    responses={
        201: headers.sent("Location"),
        **problems.answers(*problems.KEYED, "forbidden", "not_found", "invalid_request", *problems.IDEMPOTENT, "gone"),
    },
)
async def add_known(
    request: Request,
    service: ServiceDep,
    principal: Writer,
    sha256: str,
    filename: str | None = None,
    expires_in: ExpiresIn = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new file on bytes that your tenant holds already: nothing is sent."""
    tenant, request_id = principal.tenant_id, request.scope["request_id"]
    fields = {"filename": filename, **_asked(expires_in=expires_in)}
    wanted = idempotency.fingerprint("POST /v1/files/sha256", fields, [_digest(sha256)])
    async with stage("commit"), service.database.transaction(tenant) as transaction:
        if replay := await idempotency.begin(transaction, tenant, idempotency_key, wanted):
            [file] = await _again(service, transaction, replay.resource)
            await service.audit.record(
                transaction, principal, request_id, Action.FILE_ADDED, outcome=Outcome.REPLAYED, files=[file]
            )
            return answer(file, replay.status, {"Location": f"/v1/files/{file.id}"})
        known = await service.files.keep_known(
            transaction, tenant, _digest(sha256), body.clean_filename(filename), kept_for=expires_in
        )
        if known is None:
            raise CustodyError("not_found", "You hold no file of these bytes. Upload it with POST /v1/files.")
        await idempotency.record(transaction, tenant, idempotency_key, status=201, resource=[known.id])
        await service.audit.record(transaction, principal, request_id, Action.FILE_ADDED, files=[known])
    return answer(known, 201, {"Location": f"/v1/files/{known.id}"})


@router.get(
    "/{file_id}",
    summary="Describe a file",
    response_model=File,
    responses=problems.answers(*problems.KEYED, "not_found"),
)
async def get(request: Request, service: ServiceDep, principal: Reader, file_id: str) -> Response:
    """Its size, dimensions, name and state, and until when it is kept."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        file = await _file(service, transaction, file_id)
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.FILE_SEEN, files=[file])
    return answer(file)


@router.get(
    "/{file_id}/content",
    summary="Download a file's bytes",
    response_class=StreamingResponse,
    responses={
        200: {"description": "All of them", "content": PICTURES, **BYTES},
        206: {"description": "Those of the range", "content": PICTURES, **PART},
        304: {"description": "You have them", **BYTES},
        **problems.answers(*problems.KEYED, "not_found", "file_corrupt", "range_not_satisfiable", "volume_unavailable"),
    },
    openapi_extra=headers.read("Range", "If-Range", "If-None-Match"),
)
async def content(request: Request, service: ServiceDep, principal: Reader, file_id: str) -> Response:
    """The bytes. `Range` (one range) and `If-None-Match` work; the ETag is the SHA-256."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        file = await _file(service, transaction, file_id)
    if file.state is not FileState.PRESENT:
        raise damaged(file)
    etag = f'"{file.sha256}"'
    described = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
    }
    matched = request.headers.get("if-none-match", "")
    if etag in matched or matched.strip() == "*":
        return Response(status_code=304, headers=described)
    ranged = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
    span = _span(ranged, file.size)
    described["Content-Length"] = str(len(span))
    if len(span) < file.size:
        described["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
    descriptor = await service.volume.open(bytes.fromhex(file.sha256), file.size)
    if descriptor is None:
        raise damaged(file)
    try:
        await _record_read(request, service, principal, file, described.get("Content-Range"))
    except BaseException:
        os.close(descriptor)
        raise
    status = 206 if "Content-Range" in described else 200
    return StreamingResponse(_chunks(service, descriptor, span), status, described, media_type=file.media_type)


@router.patch(
    "/{file_id}",
    summary="Pin a file, or change its expiry",
    response_model=File,
    responses=problems.answers(*problems.KEYED, "forbidden", "not_found", *problems.JSON_BODY),
    openapi_extra=PATCH_BODY,
)
async def change(request: Request, service: ServiceDep, principal: Writer, file_id: str) -> Response:
    """When it expires, and whether it is pinned."""
    wanted = parse_id(file_id, "file")
    patch = await body.read_json(request, FilePatch, service.settings)
    _check_expiry(patch)
    async with service.database.transaction(principal.tenant_id) as transaction:
        file = await service.files.change(transaction, wanted, patch)
        if file is None:
            raise no_such("file")
        await service.audit.record(
            transaction,
            principal,
            request.scope["request_id"],
            Action.FILE_CHANGED,
            files=[file],
            details=patch.model_dump(mode="json", exclude_unset=True),
        )
    return answer(file)


@router.delete(
    "/sha256:{sha256}", summary="Purge bytes and all made of them", response_model=PurgeReceipt, responses=LET_GO
)
async def purge_content(
    request: Request, service: ServiceDep, principal: Writer, sha256: str, purge: Annotated[bool, Query()]
) -> Response:
    """As a purge by one of its files, also where your tenant has only results of these bytes."""
    if not purge:
        raise CustodyError("invalid_request", "Files are deleted by their ids; bytes are only purged.", field="purge")
    async with service.database.transaction(principal.tenant_id) as transaction:
        purged = await erasure.purge_content(transaction, _digest(sha256), gone_within=_gone_within(service))
        if purged is None:
            raise CustodyError("not_found", "You have nothing of these bytes.")
        await _record_purge(request, service, transaction, principal, purged)
    return await _purge_answer(service, principal.tenant_id, purged)


@router.delete(
    "/{file_id}",
    summary="Delete or purge a file",
    status_code=204,
    responses={200: {"model": PurgeReceipt, "description": "Purged, now or by the same request before"}, **LET_GO},
)
async def delete(
    request: Request, service: ServiceDep, principal: Writer, file_id: str, purge: bool = False
) -> Response:
    """Lets go of the file. Jobs that run on it keep its bytes until they end. With `purge=true` all that your
    tenant has of its bytes goes at once: every file of them, their results and filenames; what has not ended is
    cancelled."""
    wanted = parse_id(file_id, "file")
    async with service.database.transaction(principal.tenant_id) as transaction:
        if not purge:
            file = await service.files.delete(transaction, wanted)
            if file is None:
                raise no_such("file")
            await service.audit.record(
                transaction, principal, request.scope["request_id"], Action.FILE_DELETED, files=[file]
            )
            return Response(status_code=204)
        purged = await erasure.purge_file(transaction, wanted, gone_within=_gone_within(service))
        if purged is None:
            raise no_such("file")
        await _record_purge(request, service, transaction, principal, purged)
    return await _purge_answer(service, principal.tenant_id, purged)


async def _record_purge(
    request: Request, service: Service, transaction: Transaction, principal: Principal, purged: Purged
) -> None:
    await service.audit.record(
        transaction,
        principal,
        request.scope["request_id"],
        Action.FILE_PURGED,
        outcome=Outcome.REPLAYED if purged.again else Outcome.DONE,
        files=purged.files,
        sha256=() if purged.files else [bytes.fromhex(purged.receipt.sha256)],
        details=purged.receipt.model_dump(mode="json", include={"id", "results", "tasks_cancelled"}),
    )


async def _purge_answer(service: Service, tenant: UUID, purged: Purged) -> Response:
    """The answer to a purge that is committed. Its jobs end here, as they do at a worker's end of their last task."""
    for job_id in purged.jobs[:JOBS_FINISHED]:
        async with service.database.transaction(tenant) as transaction:
            ended = await service.jobs.finish(transaction, job_id)
        if ended:
            service.notices.tell(job_ended(job_id))
    return answer(purged.receipt)


def _gone_within(service: Service) -> float:
    return service.settings.purge_hours * 3600


def _check_expiry(patch: FilePatch) -> None:
    now = datetime.now(UTC)
    if patch.expires_at is not None and not now < patch.expires_at <= now + timedelta(days=MOST_DAYS):
        raise CustodyError(
            "invalid_request",
            f"`expires_at` lies at most {MOST_DAYS} days ahead, and not in the past. Pin a file that shall stay for "
            "longer; delete one that shall go.",
            field="expires_at",
        )


def _asked(**fields: float | None) -> dict[str, float]:
    """Those that were given: the others are no part of an idempotency key's request, as before they were known."""
    return {name: value for name, value in fields.items() if value is not None}


async def _again(service: Service, transaction: Transaction, ids: Sequence[UUID]) -> list[File]:
    files = [await service.files.get(transaction, file_id) for file_id in ids]
    if None in files:
        raise CustodyError("gone", "This key's files were deleted since. Take a new key to upload them again.")
    return [file for file in files if file is not None]


async def _file(service: Service, transaction: Transaction, file_id: str) -> File:
    file = await service.files.get(transaction, parse_id(file_id, "file"))
    if file is None:
        raise no_such("file")
    return file


async def _record_read(
    request: Request, service: Service, principal: Principal, file: File, content_range: str | None
) -> None:
    """In a transaction of its own: none is open while the volume is waited for."""
    if service.audit.keeps(Action.FILE_READ):
        async with service.database.transaction(principal.tenant_id) as transaction:
            await service.audit.record(
                transaction,
                principal,
                request.scope["request_id"],
                Action.FILE_READ,
                files=[file],
                details={"range": content_range} if content_range else None,
            )


def _digest(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise CustodyError("invalid_request", "A SHA-256 is 64 lower-case hex digits.", field="sha256")
    return bytes.fromhex(text)


def _span(ranged: str | None, size: int) -> range:
    """The bytes that one range of a `Range` header names (RFC 9110, 14.1.2); all of them where it names several."""
    found = re.fullmatch(r"bytes=(\d{0,19})-(\d{0,19})", ranged or "")
    first, last = found.groups() if found else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return range(size)
    start, stop = (int(first), int(last) + 1 if last else size) if first else (size - int(last), size)
    span = range(max(start, 0), min(stop, size))
    if not span:
        raise CustodyError("range_not_satisfiable", f"The file has {size} bytes.", field="Range", size=size)
    return span


async def _chunks(service: Service, descriptor: int, span: range) -> AsyncIterator[bytes]:
    try:
        for offset in range(span.start, span.stop, CHUNK):
            yield await service.volume.read(descriptor, offset, min(CHUNK, span.stop - offset))
    finally:
        os.close(descriptor)
