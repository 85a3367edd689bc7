"""Every error a user can meet: one table of stable codes, and the exception that carries one."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Kind:
    """`status`: the HTTP status. `retryable`: the same request may succeed later, with nothing changed."""

    status: int
    title: str
    retryable: bool = False


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # The request
        "invalid_request": Kind(422, "The request is not valid"),
        "malformed_request": Kind(400, "This is no HTTP request"),
        "request_head_too_large": Kind(431, "The head of the request is larger than allowed"),
        "request_timeout": Kind(408, "The request did not come in time", retryable=True),
        "malformed_body": Kind(400, "The body cannot be parsed"),
        "missing_part": Kind(422, "The body has no such part"),
        "empty_file": Kind(422, "The file is empty"),
        "too_many_parts": Kind(413, "Too many parts in one request"),
        "file_too_large": Kind(413, "The file is larger than allowed"),
        "request_too_large": Kind(413, "The request is larger than allowed"),
        "unsupported_media_type": Kind(415, "The bytes are of no accepted format"),
        "damaged_image": Kind(422, "The picture is damaged or incomplete"),
        "too_many_pixels": Kind(422, "The picture has more pixels than allowed"),
        "unauthenticated": Kind(401, "No valid API key"),
        "forbidden": Kind(403, "The key's role does not allow this"),
        "idempotency_conflict": Kind(409, "The idempotency key was used for another request"),
        "not_found": Kind(404, "Nothing here by that name"),
        "method_not_allowed": Kind(405, "The method does not fit this address"),
        "file_corrupt": Kind(410, "The file's bytes are damaged"),
        "gone": Kind(410, "What this key created has been deleted since"),
        "input_gone": Kind(410, "The bytes of an input are not held any more"),
        "job_not_ended": Kind(409, "The job has not ended"),
        "nothing_to_rerun": Kind(409, "No input of the job has failed"),
        "model_not_found": Kind(422, "No active model by that name"),
        "tenant_backlog_full": Kind(429, "Too much of yours waits for this model already", retryable=True),
        "range_not_satisfiable": Kind(416, "The range lies outside the file"),
        "client_disconnected": Kind(499, "The client went away before the end of its request"),
        # The service
        "internal_error": Kind(500, "Something broke on our side", retryable=True),
        "database_unavailable": Kind(503, "The database does not answer", retryable=True),
        "audit_unavailable": Kind(503, "The receipt cannot be written", retryable=True),
        "volume_unavailable": Kind(503, "The volume does not answer", retryable=True),
        "storage_full": Kind(507, "The volume has no room left", retryable=True),
        "pool_backlog_full": Kind(503, "Too much waits for this model already", retryable=True),
        "pool_draining": Kind(503, "This model accepts no jobs now", retryable=True),
        # The work
        "undecodable_image": Kind(422, "The picture cannot be decoded"),
        "file_unreadable": Kind(503, "The file cannot be read from the volume", retryable=True),
        "inference_failed": Kind(500, "The engine refused the picture"),
        "worker_crashed": Kind(500, "The process working on the picture died", retryable=True),
        "worker_lost": Kind(500, "The worker holding the task went silent", retryable=True),
        "time_limit_exceeded": Kind(500, "Working on the picture took longer than allowed", retryable=True),
    }
)


class CustodyError(Exception):
    """A refusal or failure with a code of `KINDS`. `detail` says what happened, where, and what to do next; `field`
    names the part of the request at fault; `retry_after` is in seconds; `size`, in bytes, is that of the file whose
    range was asked for."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
        size: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.kind = KINDS[code]
        self.detail = detail
        self.field = field
        self.retry_after = retry_after
        self.size = size


class StartError(Exception):
    """A process cannot start as it is set up. The message says which setting or part is at fault and what to do."""
