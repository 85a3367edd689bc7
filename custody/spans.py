"""Spans: what a process tells a collector of its work (OpenTelemetry, OTLP over HTTP), where the environment names one.

The only place that knows the library, and it is imported only then. Times are taken anyway, for `Server-Timing` and for
results: a span is made of them when its work is over, and nothing else in the code runs inside of one. The standard
variables apply (OTEL_TRACES_SAMPLER, OTEL_BSP_MAX_QUEUE_SIZE and so on): the library reads them.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import structlog

from custody.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as LibrarySpan

log = structlog.get_logger()

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"

CLOSE_SECONDS = 2.0
"""At the end of a process, for the spans that were not sent yet."""

Kind = Literal["server", "producer", "consumer"]
Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Stage:
    """A part of some work. Nanoseconds since 1970."""

    name: str
    began_ns: int
    ended_ns: int

    @property
    def milliseconds(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e6


@contextmanager
def tracing(process: str, *, instance: str, release: str) -> Iterator["Tracing | None"]:
    """None where the environment names no collector. A collector that is slow or away costs spans, and nothing else: a
    bounded queue drops them, and the end waits for `CLOSE_SECONDS` at most. Raises `StartError` for a collector that
    this process could not speak to."""
    if not _is_asked_for():
        yield None
        return
    ours = {"service.name": f"wharf-{process}", "service.instance.id": instance, "service.version": release}
    provider = _provider(ours)
    log.info("tracing", sampler=os.environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on"))
    try:
        yield Tracing(provider)
    finally:
        # The library would wait for half a minute. What hangs in its thread does not hold the process.
        closing = threading.Thread(target=provider.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class Tracing:
    """Where spans go to."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("wharfinger")
        self._kinds = {kind.name.lower(): kind for kind in trace.SpanKind}
        self._error = trace.StatusCode.ERROR
        self._within = trace.set_span_in_context
        self._nowhere = Context()
        self._read = TraceContextTextMapPropagator().extract

    def begin(self, name: str, kind: Kind, *, parent: str | None, at_ns: int) -> "Span":
        """`parent`: a `traceparent` (W3C); without one, or with one that is malformed, a trace begins. Nothing of it is
        told before its end."""
        context = self._read({"traceparent": parent}, self._nowhere) if parent else self._nowhere
        return Span(self, self._tracer.start_span(name, context, self._kinds[kind], start_time=at_ns))

    def end(self, begun: "LibrarySpan", at_ns: int, error: str | None, stages: Sequence[Stage]) -> None:
        if stages:
            context = self._within(begun, self._nowhere)
            for stage in stages:
                child = self._tracer.start_span(stage.name, context, start_time=stage.began_ns)
                child.end(stage.ended_ns)
        if error:
            begun.set_attribute("error.type", error)
            begun.set_status(self._error)
        begun.end(at_ns)


class Span:
    """One that goes on."""

    def __init__(self, tracing: Tracing, begun: "LibrarySpan") -> None:
        self._tracing = tracing
        self._begun = begun

    @property
    def traceparent(self) -> str:
        """The name of this span to what it causes, elsewhere and later (W3C). It says whether the trace is sampled."""
        context = self._begun.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(
        self,
        *,
        at_ns: int,
        name: str | None = None,
        attributes: Attributes | None = None,
        error: str | None = None,
        stages: Sequence[Stage] = (),
    ) -> None:
        """`error`: a stable code; `stages` become its children."""
        if not self._begun.is_recording():
            return
        if name:
            self._begun.update_name(name)
        if attributes:
            self._begun.set_attributes(dict(attributes))
        self._tracing.end(self._begun, at_ns, error, stages)


def _is_asked_for() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return os.environ.get("OTEL_TRACES_EXPORTER", "").strip() != "none" and _first_of(ENDPOINTS)[1] != ""


def _first_of(names: Sequence[str]) -> tuple[str, str]:
    """The first of these variables that is set, and its value."""
    return next(((name, value) for name in names if (value := os.environ.get(name, "").strip())), ("", ""))


def _provider(ours: Mapping[str, str]) -> "TracerProvider":
    name, endpoint = _first_of(ENDPOINTS)
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise StartError(f"{name}: a URL is wanted, like http://collector:4318.")
    name, protocol = _first_of(PROTOCOLS)
    if protocol not in ("", PROTOCOL):
        raise StartError(f"{name}: {protocol} is not spoken here, only {PROTOCOL}: a collector's port 4318, as a rule.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartError(
            f"{_first_of(ENDPOINTS)[0]} is set, and {error.name} is not installed: pip install 'wharfinger[telemetry]'."
        ) from error
    # It logs each try to send; that a batch was not sent is enough.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    # What the environment says of the resource (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) wins.
    resource = Resource.create().merge(Resource(ours)).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
