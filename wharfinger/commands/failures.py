"""From an error to what the command line says and how it exits.

Exit codes: 0 all good; 1 a job or an input failed; 2 usage; 3 the service is not there, refuses the key or has no room.
"""

from wharfinger.errors import (
    AuthenticationError,
    BusyError,
    ConfigurationError,
    PermissionDeniedError,
    ServerError,
    UnreachableError,
    WharfError,
)

FAILED = 1
USAGE = 2
NO_SERVICE = 3


def exit_code(error: WharfError) -> int:
    match error:
        case ConfigurationError():
            return USAGE
        case UnreachableError() | AuthenticationError() | PermissionDeniedError() | BusyError():
            return NO_SERVICE
        case _:
            return FAILED


def explain(error: WharfError) -> str:
    """What happened and what to do next, in one or two lines."""
    match error:
        case UnreachableError():
            return f"{error}\nStart one with `wharf up`, or name one with --server or WHARF_SERVER."
        case AuthenticationError():
            return f"{error}\nSet WHARF_API_KEY or WHARF_API_KEY_FILE; `wharf up` writes its first key to DIR/api-key."
        case PermissionDeniedError():
            return f"{error}\nUse a key of a higher role: an admin makes one with `wharf keys create NAME --role ROLE`."
        case BusyError(retry_after=float() as seconds):
            return f"{error}\nThe service has no room now: try again in {seconds:.0f} s."
        case BusyError():
            return f"{error}\nThe service has no room now: try again later."
        case ServerError(request_id=str() as request_id) if request_id:
            return f"{error}\nThe service's log tells more under the request id {request_id}."
        case _:
            return str(error)
