"""Requests that nobody thought of: whatever is sent, the answer is a success or a well-formed refusal, never a 5xx."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_from_bytes

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.problems import code_of
from tests.e2e.service import Service

many = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=250,
    database=None,
)


@pytest.fixture(scope="module")
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key("admin")) as client:
        yield client


PATHS = (
    "/v1/files",
    "/v1/files/{}",
    "/v1/files/{}/content",
    "/v1/files/sha256:{}",
    "/v1/predict",
    "/v1/jobs",
    "/v1/jobs/{}",
    "/v1/jobs/{}/results",
    "/v1/jobs/{}/cancel",
    "/v1/jobs/{}/rerun",
    "/v1/jobs/retry",
    "/v1/models",
    "/v1/models/{}",
    "/v1/keys",
    "/v1/keys/{}",
    "/v1/pools",
    "/v1/pools/{}/pause",
    "/v1/models/{}/retire",
    "/v1/audit",
    "/v1/tenant",
    "/health",
    "/health/detailed",
    "/metrics",
    "/readyz",
)
NAMES = ("limit", "cursor", "state", "model", "metadata", "format", "filename", "conf", "iou", "max_detections",
         "priority", "inputs", "params", "file", "sha256", "name", "role", "tenant", "image",
         "only", "error_code", "created_after", "all_tenants", "dry_run",
         "purge", "pinned", "expires_at", "expires_in", "file_expires_in", "file_retention_days", "object", "key",
         "action", "since", "until")  # fmt: skip
SENSIBLE = ("1", "0", "-1", "digits", "succeeded", "jsonl", "{}", '{"a": 1}', "0.5", "reader", "batch", "0" * 64,
            "01a1ffff-0000-7000-8000-000000000000", "MDFhMWZmZmYtMDAwMC03MDAwLTgwMDAtMDAwMDAwMDAwMDAw")  # fmt: skip

encoded = st.one_of(
    st.sampled_from(SENSIBLE).map(lambda text: quote(text, safe="")),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: quote(text, safe="")),
    st.binary(max_size=12).map(lambda data: quote_from_bytes(data, safe=b"")),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(SENSIBLE)
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), inner)
    ),
    max_leaves=12,
)
objects = st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), values, max_size=6)
bodies = st.one_of(
    st.binary(max_size=300),
    values.map(lambda value: json.dumps(value).encode()),
    objects.map(lambda value: json.dumps(value).encode()),
    objects.map(lambda value: b'{"inputs": [{"sha256": "%s"}], ' % (b"0" * 64) + json.dumps(value).encode()[1:]),
)
headers = st.dictionaries(
    st.sampled_from(["Idempotency-Key", "Prefer", "Range", "If-None-Match", "If-Range", "Content-Type", "X-Request-ID",
                     "traceparent", "Content-Disposition", "Accept", "Expect"]),
    st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=40),
        st.sampled_from(["wait=1", "bytes=0-1", "multipart/form-data; boundary=b", "application/json", "a" * 300]),
    ).map(lambda text: text.encode("latin-1")),
    max_size=4,
)  # fmt: skip


@many
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"]),
    path=st.sampled_from(PATHS),
    name=encoded,
    query=st.lists(st.tuples(st.sampled_from(NAMES), encoded), max_size=3),
    header=headers,
    body=bodies,
)
def test_any_request_is_answered_or_refused_as_promised(
    http: httpx.Client,
    method: str,
    path: str,
    name: str,
    query: list[tuple[str, str]],
    header: dict[str, bytes],
    body: bytes,
) -> None:
    address = path.replace("{}", name) + "?" + "&".join(f"{key}={value}" for key, value in query)
    content = body if method in ("POST", "PUT", "PATCH") else None
    answer = http.request(method, address, content=content, headers=header)
    assert_promised(answer)


@many
@given(fields=st.dictionaries(st.sampled_from(NAMES), st.one_of(st.text(max_size=30), st.sampled_from(SENSIBLE))))
def test_any_field_beside_a_picture_is_taken_or_named(http: httpx.Client, fields: dict[str, str]) -> None:
    written = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ).encode("utf-8", "surrogatepass")
    picture = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + SMALLEST + b"\r\n--b--\r\n"
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    assert_promised(http.post("/v1/predict", content=written + picture, headers=multipart))


def assert_promised(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        code_of(answer)


# A GIF of one pixel.
SMALLEST = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")
