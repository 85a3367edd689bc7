"""What the OpenAPI document says of headers: each is described once, and operations and answers refer to it."""

from typing import Any

REQUEST = {
    "X-Request-ID": "A name for the request, of up to 128 letters, digits, `.`, `_` and `-`, in the answer, log and "
    "receipts. One is made where it is missing or malformed.",
    "traceparent": "W3C trace context, version 00. One is made where it is missing or malformed.",
    "Prefer": "`wait=SECONDS` (RFC 7240): answer when the job has ended, or after so many seconds.",
    "Range": "One range of bytes, as `bytes=0-1023`. Several, or what cannot be read: the whole file.",
    "If-Range": "An ETag: `Range` counts only where it is the file's.",
    "If-None-Match": "ETags that you have, or `*`: 304 where the file's is one of them.",
    "Content-Disposition": 'For a raw body: `attachment; filename="a.jpg"`, or `filename*` (RFC 6266), names the file.',
}
"""Headers that operations read, by name."""

_TEXT = {"type": "string"}
_SECONDS = {"type": "integer", "minimum": 1}
ANSWER: dict[str, dict[str, Any]] = {
    "X-Request-ID": {"description": "The request's, or the one made for it", "required": True, "schema": _TEXT},
    "traceparent": {"description": "W3C trace context; absent where the request could not be read", "schema": _TEXT},
    "Server-Timing": {
        "description": "Milliseconds up to the answer, by stage (`receive;dur=1.2, commit;dur=3.4, total;dur=5.0`); "
        "absent from probes' answers and where the request could not be read",
        "schema": _TEXT,
    },
    "Location": {"description": "The address of what was made", "required": True, "schema": _TEXT},
    "Preference-Applied": {"description": "`wait=SECONDS`: the wait that `Prefer` was granted", "schema": _TEXT},
    "Retry-After": {"description": "Seconds after which to send it again", "schema": _SECONDS},
    "WWW-Authenticate": {"description": "`Bearer`", "required": True, "schema": _TEXT},
    "Connection": {"description": "`close` where the rest of what comes is no next request", "schema": _TEXT},
    "ETag": {"description": "The SHA-256 of all bytes, in quotes", "required": True, "schema": _TEXT},
    "Accept-Ranges": {"description": "`bytes`", "required": True, "schema": _TEXT},
    "Content-Range": {
        "description": "`bytes FIRST-LAST/SIZE`; with status 416 `bytes */SIZE`",
        "required": True,
        "schema": _TEXT,
    },
    "Content-Disposition": {"description": "`attachment`: shown by no browser", "required": True, "schema": _TEXT},
    "X-Content-Type-Options": {"description": "`nosniff`", "required": True, "schema": _TEXT},
    "Cache-Control": {"description": "`no-store`: the body has a secret", "required": True, "schema": _TEXT},
    "Link": {"description": '`<ADDRESS>; rel="next"` where a next page is', "schema": _TEXT},
}
"""Headers that answers carry, by name. Those that are `required` are in each answer that lists them."""

EVERYWHERE = ("X-Request-ID", "traceparent")
"""Read by every operation."""
SENT_EVERYWHERE = (*EVERYWHERE, "Server-Timing")
"""With every answer."""

OF_STATUS = {
    400: ("Connection",),
    401: ("WWW-Authenticate",),
    408: ("Connection",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    431: ("Connection",),
    503: ("Retry-After",),
    507: ("Retry-After",),
}
"""What a refusal carries beside its problem."""


def read(*names: str) -> dict[str, Any]:
    """The part of an operation that says which headers it reads."""
    return {"parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names]}


def sent(*names: str) -> dict[str, Any]:
    """The part of an answer that says which headers it carries."""
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}}


def components() -> dict[str, Any]:
    """What `read` and `sent` refer to."""
    parameters = {
        name: {"name": name, "in": "header", "description": text, "schema": _TEXT} for name, text in REQUEST.items()
    }
    return {"parameters": parameters, "headers": ANSWER}
