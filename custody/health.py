"""Probes and metrics of a process that serves nothing else, on a small port of their own."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

DEAF_SECONDS = 30.0
"""A process whose event loop has not turned for longer is not alive."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class HealthServer:
    """/livez: `is_alive()`; /readyz: `is_ready()`; /metrics. One named thread."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        *,
        is_alive: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        self._checks = {"/livez": is_alive, "/readyz": is_ready}
        self._metrics = make_wsgi_app(registry)
        self._server = make_server(host, port, self._answer, WSGIServer, _QuietHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            metrics: Iterable[bytes] = self._metrics(environ, start_response)
            return metrics
        check = self._checks.get(path)
        status = "404 Not Found" if check is None else "200 OK" if check() else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode()]


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Probes are no news."""


class Pulse:
    """Tells a thread outside whether the event loop still turns."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    async def beat(self) -> None:
        while True:
            self._last = time.monotonic()
            await asyncio.sleep(1)

    def is_recent(self) -> bool:
        return time.monotonic() - self._last < DEAF_SECONDS
