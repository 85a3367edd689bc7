"""Whether there are spans, which the environment says."""

import os
import sys

import pytest

from custody.errors import StartError
from custody.spans import Stage, tracing
from inference_worker.child import handed_on
from tests.support.collector import Collector

BEGAN = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def span(parent: str | None = None) -> str | None:
    """The traceparent of one that a process of its own makes and ends; None where it makes none."""
    with tracing("test", instance="one", release="1.2") as traced:
        if traced is None:
            return None
        begun = traced.begin("work", "server", parent=parent, at_ns=BEGAN)
        begun.end(at_ns=BEGAN + 2_000, attributes={"n": 1}, stages=[Stage("part", BEGAN + 500, BEGAN + 1_500)])
        return begun.traceparent


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_SAMPLER": "always_on"},
    ],
)
def test_nobody_asks_for_spans(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert span() is None


def test_the_last_spans_are_sent_before_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=collectors-own")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        traceparent = span(parent)
        assert traceparent is not None
        work, part = collector.trace("ab" * 16)
        assert (work.name, work.service, work.parent, work.kind) == ("work", "wharf-test", "cd" * 8, "server")
        assert (work.began_ns, work.ended_ns, work.attributes) == (BEGAN, BEGAN + 2_000, {"n": 1})
        assert (part.name, part.parent, part.kind) == ("part", work.id, "internal")
        assert (part.began_ns, part.ended_ns) == (BEGAN + 500, BEGAN + 1_500)
        assert traceparent.split("-")[1:3] == [work.trace, work.id]
        [headers] = collector.headers
        assert headers["api-key"] == "collectors-own"
        for attribute in (b"deployment.environment.name", b"service.instance.id", b"1.2"):
            assert attribute in collector.bodies[0]


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
        span()
        assert {each.service for each in collector.spans} == {"pictures"}


def test_the_environment_chooses_which_traces_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
        own, callers = span(), span(f"00-{'ab' * 16}-{'cd' * 8}-01")
        assert own is not None
        assert not int(own[-2:], 16) & 1
        assert callers is not None
        assert {each.trace for each in collector.spans} == {"ab" * 16}


@pytest.mark.parametrize("given", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-é-1-1"])
def test_a_malformed_parent_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        assert span(given)
        assert collector.spans[-1].parent == ""


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "http://collector:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
    ],
)
def test_a_collector_that_cannot_be_spoken_to_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], word: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=rf"OTEL_EXPORTER_OTLP_.*{word}"):
        span()


def test_a_library_that_is_not_installed_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(StartError, match=r"wharfinger\[telemetry\]"):
        span()


def test_slots_are_not_told_the_collectors_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=collectors-own")
    assert "collectors-own" not in str(handed_on())
