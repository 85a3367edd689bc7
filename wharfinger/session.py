"""One service over HTTP: the key on every request, problems as exceptions, and calls that are safe to try again."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import ValidationError

from custody.wire import FilePage, JobPage, Problem, ReceiptPage, ResultPage, Wire
from wharfinger.discovery import Connection
from wharfinger.errors import AnswerError, ConfigurationError, UnreachableError, from_problem, problem_of_status
from wharfinger.patience import Backoff, Patience

W = TypeVar("W", bound=Wire)
P = TypeVar("P", FilePage, JobPage, ReceiptPage, ResultPage)

# Makes the body of one attempt, as httpx's arguments; what it opens goes on the stack and is closed after the attempt.
Body = Callable[[ExitStack], dict[str, Any]]


class Session:
    """Sends requests until they are answered or patience ends.

    Every POST carries an Idempotency-Key that stays the same over its attempts: a request whose answer was lost is
    replayed by the service, never done twice. Safe to use from several threads.
    """

    def __init__(
        self,
        connection: Connection,
        timeout: float,
        patience: Patience,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.server = connection.server
        self.patience = patience
        self._timeout = timeout
        self._reached = False
        headers = {"User-Agent": f"wharfinger/{version('wharfinger')}"}
        if connection.api_key is not None:
            headers["Authorization"] = f"Bearer {connection.api_key}"
        try:
            self._http = httpx.Client(
                base_url=connection.server, headers=headers, transport=transport, trust_env=not connection.local
            )
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{connection.server!r} is not a server's URL: {error}") from error

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, answer: type[W], *, params: Mapping[str, Any] | None = None, wait: float = 0) -> W:
        """`wait`: seconds for which the service may hold its answer back (RFC 7240), 0 for an answer at once."""
        return self._parse(self.call("GET", path, params=params, wait=wait), answer)

    def post(
        self,
        path: str,
        answer: type[W],
        body: Body | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        wait: float = 0,
    ) -> W:
        return self._parse(self.call("POST", path, body, headers=headers, params=params, wait=wait), answer)

    def patch(self, path: str, answer: type[W], changes: Mapping[str, Any]) -> W:
        return self._parse(self.call("PATCH", path, lambda _: {"json": dict(changes)}), answer)

    def delete(self, path: str, answer: type[W], *, params: Mapping[str, Any]) -> W:
        """A DELETE that is answered with a document, also where it was done before."""
        response = self.call("DELETE", path, params=params)
        if not response.is_success:
            raise self._failure(response, None)
        return self._parse(response, answer)

    def pages(self, path: str, page: type[P], params: Mapping[str, Any]) -> Iterator[P]:
        """The pages of a list, each asked for when it is needed."""
        cursor: str | None = None
        while True:
            answer = self.get(path, page, params={**params, "cursor": cursor} if cursor else params)
            yield answer
            cursor = answer.next_cursor
            if cursor is None:
                return

    @contextmanager
    def stream(self, path: str) -> Iterator[httpx.Response]:
        """An answer whose body has not been read yet; a connection that breaks inside raises UnreachableError."""
        response = self.call("GET", path, stream=True)
        try:
            yield response
        except httpx.TransportError as error:
            raise UnreachableError(self.server, _reason(error)) from error
        finally:
            response.close()

    def call(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        wait: float = 0,
        stream: bool = False,
        also: tuple[int, ...] = (),
    ) -> httpx.Response:
        """The answer, if its status is 2xx or one of `also`.

        Raises UnreachableError, AnswerError, or the ProblemError that fits the status.
        """
        lines = dict(headers or {})
        if method == "POST":
            lines["Idempotency-Key"] = str(uuid4())
        if wait > 0:
            lines["Prefer"] = f"wait={math.ceil(wait)}"
        timeout = httpx.Timeout(self._timeout, read=self._timeout + wait)
        backoff = Backoff(self.patience)
        lost = False
        while True:
            try:
                with ExitStack() as stack:
                    content = body(stack) if body else {}
                    request = self._http.build_request(
                        method, path, headers=lines, params=params, timeout=timeout, **content
                    )
                    response = self._http.send(request, stream=True)
                    if not (stream and response.is_success):
                        response.read()
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError) as error:
                raise AnswerError(f"{method} {path} at {self.server} failed ({_reason(error)})") from error
            except httpx.TransportError as error:
                lost = True
                if backoff.pause(self.patience.reconnect if self._reached else self.patience.first_contact):
                    continue
                raise UnreachableError(self.server, _reason(error)) from error
            self._reached = True
            if response.is_success or response.status_code in also:
                return response
            if method == "DELETE" and lost and response.status_code == 404:
                return response  # The attempt whose answer was lost has deleted it.
            retry_after = _retry_after(response)
            budget = self._budget(response.status_code, retry_after)
            if budget is None or not backoff.pause(budget, retry_after or 0.0):
                raise self._failure(response, retry_after)
            lost = lost or response.status_code in (502, 504)

    def _budget(self, status: int, retry_after: float | None) -> float | None:
        """Seconds for which an answer of this status is worth another attempt; None: it is final."""
        if status == 429 or (status == 503 and retry_after is not None):
            return self.patience.backlog
        # A part of the service is away: the database, or all that a proxy stands in front of.
        return self.patience.reconnect if status in (502, 503, 504) else None

    def _failure(self, response: httpx.Response, retry_after: float | None) -> Exception:
        if response.status_code < 400:
            target = response.headers.get("Location", "nowhere")
            return AnswerError(
                f"{self.server} answered {response.status_code}, pointing to {target}: name the server by its final URL"
            )
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            problem = problem_of_status(response.status_code, response.headers.get("X-Request-ID", ""))
        return from_problem(problem, retry_after)

    def _parse(self, response: httpx.Response, answer: type[W]) -> W:
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise AnswerError(
                f"{response.request.method} {response.request.url} answered {response.status_code} with something that"
                f" is not a {answer.__name__}: is this Wharfinger, in a version that fits?"
            ) from error


def segment(value: object) -> str:
    """A value as one segment of a path, whatever characters it holds."""
    return quote(str(value), safe="")


def json_body(value: Wire) -> Body:
    """The fields of `value` that were set, as JSON; the service fills in its own defaults."""
    fields = value.model_dump(mode="json", exclude_unset=True)
    return lambda _: {"json": fields}


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form of RFC 9110, section 10.2.3."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _reason(error: Exception) -> str:
    match error:
        case httpx.ConnectTimeout():
            return "no connection within the time limit"
        case httpx.TimeoutException():
            return "no answer within the time limit"
        case httpx.ConnectError():
            return "connection refused" if "refused" in str(error).lower() else str(error) or "no connection"
        case httpx.ReadError() | httpx.WriteError() | httpx.RemoteProtocolError():
            return "the connection broke"
        case _:
            return str(error) or type(error).__name__
