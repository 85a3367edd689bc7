"""What the SDK raises.

WharfError
├── ConfigurationError         the server's URL or the API key's file cannot be used
├── UnreachableError           nothing answers at the server's address, or the connection broke
├── AnswerError                something answers, but not as Wharfinger does
├── FileChangedError           a file's bytes changed while they were on their way
├── DrawingError               a picture could not be annotated
└── ProblemError               the service refused the request (RFC 9457)
    ├── InvalidRequestError    400, 413, 415, 422 and every other 4xx
    ├── AuthenticationError    401
    ├── PermissionDeniedError  403
    ├── NotFoundError          404
    ├── ConflictError          409
    ├── BusyError              429, 503; `retry_after` in seconds where the service named it
    └── ServerError            every other 5xx
"""

from http.client import responses

from custody.wire import Problem


class WharfError(Exception):
    """Whatever goes wrong between this program and the service."""


class ConfigurationError(WharfError):
    """The server's URL or the API key's file cannot be used."""


class UnreachableError(WharfError):
    """Nothing answers at `server`, or the connection broke and did not come back."""

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(f"no Wharfinger answers at {server} ({reason})")
        self.server = server
        self.reason = reason


class AnswerError(WharfError):
    """Something answers at the server's address, but not as Wharfinger does."""


class FileChangedError(WharfError):
    """A file's bytes changed while they were on their way: what arrived is not what was asked for."""


class DrawingError(WharfError):
    """A picture could not be annotated."""


class ProblemError(WharfError):
    """The service refused the request: `code` is stable, `detail` says what happened and what to do next."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.detail} [{problem.code}]")
        self.problem = problem
        self.code = problem.code
        self.status = problem.status
        self.detail = problem.detail
        self.request_id = problem.request_id
        self.field = problem.field
        self.retry_after = retry_after


class InvalidRequestError(ProblemError):
    """400, 413, 415, 422 and every other 4xx."""


class AuthenticationError(ProblemError):
    """401: no API key, or one that the service does not know."""


class PermissionDeniedError(ProblemError):
    """403: the key's role does not allow this."""


class NotFoundError(ProblemError):
    """404: it does not exist, or belongs to another tenant."""


class ConflictError(ProblemError):
    """409: the request contradicts what is there."""


class BusyError(ProblemError):
    """429 or 503: no room now; `retry_after` in seconds where the service named it."""


class ServerError(ProblemError):
    """A 5xx other than 503: the service's fault; its log has the request id."""


def from_problem(problem: Problem, retry_after: float | None = None) -> ProblemError:
    """The exception of the tree above that fits the problem's status."""
    return _class_of(problem.status)(problem, retry_after)


def problem_of_status(status: int, request_id: str) -> Problem:
    """A problem, with the code `http_<status>`, for an answer without one: to HEAD, or from a proxy in between."""
    phrase = responses.get(status, "an unknown status")
    return Problem(
        type="about:blank",
        title=phrase,
        status=status,
        code=f"http_{status}",
        detail=f"the server answered {status} {phrase} without saying why",
        request_id=request_id,
    )


_BY_STATUS: dict[int, type[ProblemError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: BusyError,
    503: BusyError,
}


def _class_of(status: int) -> type[ProblemError]:
    return _BY_STATUS.get(status, ServerError if status >= 500 else InvalidRequestError)
