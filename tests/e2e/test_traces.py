"""Traces: from the upload to the result, on both transports, to a collector that speaks OTLP, is slow, or is away."""

import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import starter_model
from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.service import Installation, Service, Up, free_port, start_worker
from tests.support.collector import Collector, Span
from tests.support.rabbitmq import RabbitMQ

FILENAME = "a patient's name.png"
QUEUE = "wharf.v1.digits.interactive"


@dataclass(frozen=True)
class Traced:
    service: Service
    collector: Collector
    database: Callable[[str], str]
    """A role's connection string."""


INFERRED = {"WHARF_RESULT_CACHE": "false"}
"""Each time, though it is the same picture."""


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with Collector() as collector:
        up = Up(tmp_path_factory.mktemp("traced"), collector.environment | INFERRED)
        try:
            yield Traced(up.start(), collector, lambda _: up.database())
        finally:
            up.part.stop()


@pytest.fixture(scope="module")
def queued(rabbitmq: RabbitMQ, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    queue = {"WHARF_AMQP_URL": rabbitmq.url(rabbitmq.new_vhost())}
    with Collector() as collector, new_database(postgres) as database:
        folder = tmp_path_factory.mktemp("queued")
        installation = Installation(folder, lambda role: postgres.url(role, database), collector.environment)
        try:
            service = installation.migrate()
            installation.broker(WHARF_DEFAULT_MODEL="digits", **INFERRED)
            start_worker(installation.relay("relay", queue["WHARF_AMQP_URL"]))
            start_worker(installation.worker("worker", WHARF_MODEL=str(starter_model.MODEL), WHARF_SLOTS="1", **queue))
            yield Traced(service, collector, lambda role: postgres.url(role, database))
        finally:
            installation.stop()


@pytest.fixture(params=["embedded", "queued"])
def traced(request: pytest.FixtureRequest) -> Traced:
    found: Traced = request.getfixturevalue(request.param)
    return found


def caller(flags: str = "01") -> tuple[str, str, dict[str, str]]:
    """Trace, span, and the header that names them."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, {"traceparent": f"00-{trace}-{span}-{flags}"}


def predict(service: Service, headers: dict[str, str], content: bytes, **fields: str) -> httpx.Response:
    with service.client() as client:
        files = {"image": (FILENAME, content)}
        return client.post("/v1/predict", files=files, data=fields, headers={"Prefer": "wait=30", **headers})


def one(spans: list[Span], name: str) -> Span:
    [found] = [span for span in spans if span.name == name]
    return found


def children(spans: list[Span], parent: Span, kind: str = "internal") -> list[str]:
    """Once each, in the order of their beginnings."""
    return list(dict.fromkeys(span.name for span in spans if span.parent == parent.id and span.kind == kind))


def process_ended(spans: list[Span]) -> bool:
    """Two processes tell of one picture, each when it likes."""
    return {"POST /v1/predict", "process digits"} <= {span.name for span in spans}


def test_a_picture_is_one_trace_from_its_upload_to_its_result(traced: Traced, page: bytes) -> None:
    trace, span, headers = caller()
    answer = predict(traced.service, headers, page)
    assert answer.json()["state"] == "succeeded"
    spans = traced.collector.until(trace, process_ended)
    request, process = one(spans, "POST /v1/predict"), one(spans, "process digits")
    assert (request.service, request.kind, request.parent) == ("wharf-broker", "server", span)
    assert answer.headers["traceparent"] == f"00-{trace}-{request.id}-01"
    assert children(spans, request) == ["authenticate", "receive", "probe", "commit", "wait", "answer"]
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/predict",
        "http.response.status_code": 200,
        "wharf.request_id": answer.headers["X-Request-ID"],
    }
    assert (process.service, process.kind, process.parent) == ("wharf-worker", "consumer", request.id)
    assert children(spans, process) == ["read", "decode", "infer", "commit"]
    assert process.attributes["wharf.job_id"] == answer.json()["id"]
    assert process.attributes["wharf.state"] == "succeeded"
    assert not any(each.failed for each in spans)
    # As a clock on the wall tells it: the request waits while the task runs.
    wait = one(spans, "wait")
    assert request.began_ns <= wait.began_ns <= process.began_ns <= wait.ended_ns <= request.ended_ns
    read, infer = one(spans, "read"), one(spans, "infer")
    assert process.began_ns <= read.began_ns <= infer.ended_ns <= process.ended_ns


def test_the_messages_of_a_job_are_a_span_of_its_trace(queued: Traced, page: bytes) -> None:
    trace, _, headers = caller()
    with queued.service.client() as client:
        file = client.post("/v1/files", content=page, headers=headers).json()["items"][0]["id"]
        job = {"inputs": [{"file": file}] * 3}
        assert (
            client.post("/v1/jobs", json=job, headers={"Prefer": "wait=30", **headers}).json()["state"] == "succeeded"
        )
    # The upload before it is of the same trace, since the same caller named it.
    wanted = ["POST /v1/files", "POST /v1/jobs", f"send {QUEUE}", *["process digits"] * 3]
    spans = queued.collector.until(
        trace, lambda spans: sorted(wanted) == sorted(span.name for span in spans if span.kind != "internal")
    )
    submission, sent = one(spans, "POST /v1/jobs"), one(spans, f"send {QUEUE}")
    assert (sent.service, sent.kind, sent.parent) == ("wharf-relay", "producer", submission.id)
    assert sent.attributes["messaging.batch.message_count"] == 3
    assert {span.parent for span in spans if span.kind == "consumer"} == {submission.id}


def test_a_request_without_a_caller_begins_a_trace(embedded: Traced, page: bytes) -> None:
    answer = predict(embedded.service, {}, page)
    _, trace, span, flags = answer.headers["traceparent"].split("-")
    spans = embedded.collector.until(trace, process_ended)
    assert int(flags, 16) & 1, "not sampled"
    assert (one(spans, "POST /v1/predict").id, one(spans, "POST /v1/predict").parent) == (span, "")


def test_what_fails_is_told_by_its_code(embedded: Traced, page: bytes) -> None:
    trace, _, headers = caller()
    whole = predict(embedded.service, headers, page)
    [result] = whole.json()["results"]
    stored = embedded.service.volume / "blobs" / "sha256" / result["sha256"][:2] / result["sha256"][2]
    picture = stored / result["sha256"]
    kept = picture.read_bytes()
    picture.chmod(0o600)
    picture.write_bytes(kept[: len(kept) // 2])
    try:
        trace, _, headers = caller()
        with embedded.service.client() as client:
            job = {"inputs": [{"file": result["file_id"]}]}
            ended = client.post("/v1/jobs", json=job, headers={"Prefer": "wait=30", **headers}).json()
        code = ended["results"][0]["error"]["code"]
        spans = embedded.collector.until(trace, lambda spans: "process digits" in [span.name for span in spans])
        process = one(spans, "process digits")
        assert process.failed
        assert process.attributes["error.type"] == code
        assert children(spans, process) == ["commit"]
    finally:
        picture.write_bytes(kept)


def test_a_trace_that_its_caller_does_not_sample_is_not_sent(traced: Traced, page: bytes) -> None:
    unsampled, _, headers = caller("00")
    answer = predict(traced.service, headers, page)
    assert re.fullmatch(rf"00-{unsampled}-[0-9a-f]{{16}}-00", answer.headers["traceparent"])
    # What is sent after it has been sent, by every process.
    sampled, _, headers = caller()
    predict(traced.service, headers, page)
    traced.collector.until(sampled, process_ended)
    assert traced.collector.trace(unsampled) == []


def test_spans_tell_no_key_no_filename_and_no_query(embedded: Traced, page: bytes) -> None:
    trace, _, headers = caller()
    with embedded.service.client() as client:
        [file] = client.post("/v1/files", content=page).json()["items"]
        named = f"/v1/files/sha256:{file['sha256']}?filename=hush.png"
        assert client.post(named, headers=headers).status_code == 201
        assert client.get(f"/v1/files/{file['id']}?secret=hush", headers=headers).status_code == 200
    predict(embedded.service, headers, page)
    embedded.collector.until(trace, process_ended)
    sent = b"".join(embedded.collector.bodies)
    for secret in (embedded.service.key, FILENAME, "hush", file["sha256"], "127.0.0.1"):
        assert secret.encode() not in sent


def test_probes_are_no_spans(embedded: Traced) -> None:
    assert not {"/livez", "/readyz", "/metrics"} & {
        span.attributes.get("http.route") for span in embedded.collector.spans
    }


@pytest.mark.parametrize("collector", ["away", "silent"])
def test_without_its_collector_a_process_answers_and_ends_all_the_same(
    collector: str, queued: Traced, tmp_path: Path, page: bytes
) -> None:
    installation = Installation(tmp_path, queued.database)
    installation.volume = queued.service.volume
    with Collector(seconds=600) as silent:
        url = silent.url if collector == "silent" else f"http://127.0.0.1:{free_port()}"
        try:
            broker = installation.broker(
                WHARF_INSTANCE="traced",
                OTEL_EXPORTER_OTLP_ENDPOINT=url,
                OTEL_BSP_SCHEDULE_DELAY="50",
                OTEL_BSP_MAX_QUEUE_SIZE="8",
                OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4",
            )
            with httpx.Client(
                base_url=f"http://127.0.0.1:{installation.port}",
                headers={"Authorization": f"Bearer {queued.service.key}"},
                trust_env=False,
            ) as client:
                for _ in range(10):
                    assert client.post("/v1/files", content=page, timeout=5).is_success
            began = time.monotonic()
            broker.send(signal.SIGTERM)
            assert broker.ended(10) == 0, broker.output()
            assert time.monotonic() - began < 8
            assert "end_forced" not in broker.output()
        finally:
            installation.stop()


def test_where_nothing_is_asked_for_opentelemetry_is_not_loaded() -> None:
    """The web framework loads its API, whoever asks; nothing of ours loads that, or what makes spans and sends them."""
    program = """
import sys
from custody.spans import tracing
import inference_worker.command, broker.relay.command, standalone.cleanup
with tracing("worker", instance="w", release="1") as traced:
    assert traced is None
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
import broker.command
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
