"""A collector that counts the spans that come and keeps none, in a process of its own whose cost is nobody's:
`python -m bench.collector PORT`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.service import Part, answers, free_port


@dataclass(frozen=True)
class Collector:
    url: str

    def spans(self) -> int:
        """So far."""
        return int(httpx.get(self.url, trust_env=False).raise_for_status().text)


@contextmanager
def collector(folder: Path) -> Iterator[Collector]:
    folder.mkdir()
    port = free_port()
    part = Part(
        "collector", ("-m", "bench.collector", str(port)), os.environ, folder / "collector.log", (sys.executable,)
    )
    url = f"http://127.0.0.1:{port}"
    try:
        part.start()
        part.until(lambda: answers(url))
        yield Collector(url)
    finally:
        part.stop()


class _Counter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    spans = 0

    def do_GET(self) -> None:
        self._answer(str(_Counter.spans).encode())

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        _Counter.spans += sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
        self._answer(b"")

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Counter).serve_forever()
