"""What surrounds every request: its ids, its log line, its place in the metrics, its span."""

import re
import secrets
import time

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker import problems
from broker.metrics import BrokerMetrics
from broker.stages import Stages
from custody.ids import new_id
from custody.spans import Span, Tracing

log = structlog.get_logger()

TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Counted by name: there are dozens more, which no route answers, and each would be a series more for every route."""
QUIET = ("/livez", "/readyz", "/health", "/metrics")


class RequestTracing:
    """ASGI middleware. Takes over `X-Request-ID` and `traceparent` (W3C) where they are well formed, makes them where
    not, sends both back, and leaves them in the scope as `request_id` and `traceparent`. Answers carry `Server-Timing`,
    but for probes; with `tracing` each request is a span, its stages within."""

    def __init__(self, app: ASGIApp, metrics: BrokerMetrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else str(new_id())
        stages = Stages()
        span, traceparent = self._begin(scope, headers.get(b"traceparent", ""), stages.began_ns)
        trace_id = traceparent.split("-")[1]
        scope["request_id"] = request_id
        scope["traceparent"] = traceparent
        status = 0

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"traceparent", traceparent.encode()),
                ]
                if _route(scope) not in QUIET:
                    message["headers"].append((b"server-timing", stages.header().encode()))
            await send(message)

        began = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id, trace_id=trace_id):
            try:
                await self._app(scope, receive, send_with_ids)
            except Exception as error:
                # Here, where the ids are known; the framework would answer without them and drop the connection.
                if status:
                    raise
                await problems.unexpected(Request(scope), error)(scope, receive, send_with_ids)
            finally:
                self._finished(scope, status or 500, time.perf_counter() - began)
                if span:
                    _end(span, scope, status or 500, stages)
                structlog.contextvars.unbind_contextvars("tenant_id", "key_id")

    def _begin(self, scope: Scope, given: str, at_ns: int) -> tuple[Span | None, str]:
        """The span, where one is wanted, and the `traceparent` of what follows from the request."""
        caller = TRACEPARENT.fullmatch(given)
        if self._tracing and scope["path"] not in QUIET:
            span = self._tracing.begin(_method(scope), "server", parent=caller and caller[0], at_ns=at_ns)
            return span, span.traceparent
        trace_id, flags = (caller[1], caller[3]) if caller else (secrets.token_hex(16), "01")
        return None, f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"

    def _finished(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = _route(scope), _method(scope)
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        level = log.debug if route in QUIET else log.info
        level("request_finished", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))


def _end(span: Span, scope: Scope, status: int, stages: Stages) -> None:
    """Not the address itself: it may hold the name of a file."""
    method, route = _method(scope), _route(scope)
    span.end(
        at_ns=time.time_ns(),
        name=f"{method} {route}",
        attributes={
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "wharf.request_id": scope["request_id"],
        },
        error=str(status) if status >= 500 else None,
        stages=stages.ended,
    )


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "unknown"))


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "other"
