"""What surrounds every request: its ids, its log line, its place in the metrics."""

import re
import secrets
import time

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker import problems
from broker.metrics import BrokerMetrics
from custody.ids import new_id

log = structlog.get_logger()

TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Counted by name: there are dozens more, which no route answers, and each would be a series more for every route."""
QUIET = ("/livez", "/readyz", "/health", "/metrics")


class RequestTracing:
    """ASGI middleware. Takes over `X-Request-ID` and `traceparent` (W3C) where they are well formed, makes them where
    not, sends both back, and leaves them in the scope as `request_id` and `traceparent`."""

    def __init__(self, app: ASGIApp, metrics: BrokerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else str(new_id())
        trace = TRACEPARENT.fullmatch(headers.get(b"traceparent", ""))
        trace_id = trace[1] if trace else secrets.token_hex(16)
        traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-{trace[3] if trace else '01'}"
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
                structlog.contextvars.unbind_contextvars("tenant_id", "key_id")

    def _finished(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        level = log.debug if route in QUIET else log.info
        level("request_finished", method=scope["method"], route=route, status=status, seconds=round(seconds, 4))
