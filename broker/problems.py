"""Errors as RFC 9457 problem details: every one has a stable code, and none says more than the caller may know."""

from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from broker import headers
from custody.errors import KINDS, CustodyError
from custody.wire import Problem

log = structlog.get_logger()

CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed"}

ANY = ("malformed_request", "request_timeout", "request_head_too_large", "internal_error")
"""What every address can answer, whatever is asked."""

KEYED = (*ANY, "unauthenticated", "database_unavailable", "audit_unavailable")
"""What every address with a key can answer; with `forbidden` where not every role will do."""

IDEMPOTENT = ("invalid_request", "idempotency_conflict")
JSON_BODY = ("invalid_request", "request_too_large")
UPLOAD = (
    "invalid_request",
    "malformed_body",
    "missing_part",
    "empty_file",
    "too_many_parts",
    "file_too_large",
    "request_too_large",
    "unsupported_media_type",
    "damaged_image",
    "too_many_pixels",
    "volume_unavailable",
    "storage_full",
)
"""What a body that brings pictures can be refused with."""

ADMISSION = ("model_not_found", "tenant_backlog_full", "pool_backlog_full", "pool_draining")
"""What a job can be refused with, however good its inputs are."""

SUBMITTED = (*KEYED, "forbidden", *IDEMPOTENT, "gone", *ADMISSION)
"""What every way to a new job can be refused with."""


def install(app: FastAPI) -> None:
    app.add_exception_handler(CustodyError, _custody_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)


def answers(*codes: str) -> dict[int | str, dict[str, Any]]:
    """These refusals as an operation of the OpenAPI document lists them: by status, each with its codes."""
    by_status: dict[int | str, list[str]] = {}
    for code in sorted(set(codes), key=list(KINDS).index):
        by_status.setdefault(KINDS[code].status, []).append(f"`{code}`: {KINDS[code].title}")
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": "\n\n".join(lines),
            "content": {"application/problem+json": {"schema": schema}},
            **headers.sent(*headers.OF_STATUS.get(int(status), ())),
        }
        for status, lines in by_status.items()
    }


def invalid(error: ValidationError | RequestValidationError) -> CustodyError:
    """The first fault of a failed validation, with the name of its field."""
    faults = error.errors(include_input=False) if isinstance(error, ValidationError) else error.errors()
    fault = faults[0]
    place = [str(part) for part in fault["loc"] if part not in ("query", "path", "header", "body")]
    field = ".".join(place) or None
    more = len(faults) - 1
    detail = f"{field or 'The body'}: {fault['msg']}." + (f" {more} more like it." if more else "")
    return CustodyError("invalid_request", detail, field=field)


def render(request: Request, error: CustodyError) -> Response:
    return answer_to(request.scope.get("request_id", ""), error)


def answer_to(request_id: str, error: CustodyError) -> Response:
    problem = Problem(
        type=f"urn:wharfinger:problem:{error.code}",
        title=error.kind.title,
        status=error.kind.status,
        code=error.code,
        detail=error.detail,
        request_id=request_id,
        field=error.field,
    )
    carried = {}
    if error.kind.status == 401:
        carried["WWW-Authenticate"] = "Bearer"
    if error.kind.status == 408:
        carried["Connection"] = "close"  # the rest of the body may still come: it is no next request
    if error.size is not None:
        carried["Content-Range"] = f"bytes */{error.size}"
    if error.retry_after is not None:
        carried["Retry-After"] = str(error.retry_after)
    return Response(
        problem.model_dump_json(exclude_none=True), error.kind.status, carried, media_type="application/problem+json"
    )


def unexpected(request: Request, error: Exception) -> Response:
    """What nobody foresaw: logged with its traceback, told without."""
    log.error("request_broke", exc_info=error)
    return render(
        request,
        CustodyError("internal_error", "An error we did not foresee; it is in the log under this request id."),
    )


async def _custody_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CustodyError)
    if error.kind.status >= 500:
        log.warning("request_failed", code=error.code, detail=error.detail, cause=repr(error.__cause__))
    return render(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return render(request, invalid(error))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODE_OF_STATUS.get(error.status_code, "invalid_request")
    response = render(request, CustodyError(code, f"{KINDS[code].title}: {request.method} {request.url.path}"))
    response.headers.update(error.headers or {})
    return response
