"""What holds on every route: nonsense in any place of a request is refused as documented or does no harm, is never an
error of ours, and leaves nothing behind. The table is `tests.e2e.routes.ROWS`."""

import base64
import json
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from starlette.routing import BaseRoute

from broker.app import build_app
from broker.metrics import BrokerMetrics
from starter_model import PAGE
from tests.conftest import ROOT
from tests.e2e.problems import assert_problem, code_of
from tests.e2e.routes import ROWS, SHA256, Row
from tests.e2e.service import Service, Strict

schema = schemathesis.openapi.from_path(ROOT / "schema" / "openapi.json")
HEADER = schema.raw_schema["components"]["headers"]


@pytest.fixture(scope="module")
def http(up: Service) -> Iterator[httpx.Client]:
    """A tenant's admin, who may not pause the only pool that the tests have."""
    with up.client(up.new_key("admin")) as client:
        yield client


@pytest.fixture
def held(http: httpx.Client) -> dict[str, str]:
    """A file and a job that has ended, for the places of an address."""
    two = [("image", PAGE.read_bytes())] * 2
    answer = http.post("/v1/predict", files=two, headers={"Prefer": "wait=30"})
    result, _ = answer.json()["results"]
    return {"job_id": answer.json()["id"], "file_id": result["file_id"], "sha256": result["sha256"]}


def base64ed(text: str | bytes) -> str:
    return base64.urlsafe_b64encode(text.encode() if isinstance(text, str) else text).decode().rstrip("=")


OF_HTTP = {"content-length", "content-type", "date", "server", "transfer-encoding"}
"""Headers that need no description."""

ASKED = [
    {},
    {"Prefer": "wait=30"},
    {"Range": "bytes=0-9"},
    {"Range": "bytes=99999999-"},
    {"If-None-Match": "*"},
    {"Authorization": "none"},
]
"""Request headers that bring others into the answer."""

JSON_LINES = {"format": "jsonl", "limit": "1"}

LONG_NUMBER = "9" * 5000
GARBAGE = {
    "nothing": "",
    "NUL": "%00",
    "NUL within": "a%00b",
    "no UTF-8": "%ff%fe",
    "half a surrogate pair": "%ed%a0%80",
    "right to left": "%e2%80%ae%e2%81%a6",
    "way up": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "5,000 characters": "x" * 5000,
    "huge number": LONG_NUMBER,
    "over 64 bits": "9223372036854775808",
    "negative": "-1",
    "NaN": "NaN",
    "infinity": "1e999",
    "line break": "a%0d%0aX-Evil:%201",
    "quote": "%27%3b%20DROP%20TABLE%20wharf.files%3b%20--",
    "base64 of nonsense": base64ed("nonsense"),
    "base64 of NUL": base64ed("\0"),
    "base64 of bytes": base64ed(bytes(range(256))),
    "base64 of a long number": base64ed(LONG_NUMBER),
    "base64 of a negative number": base64ed("-1"),
    "base64 of digits that are none of ASCII's": base64ed("٣"),
    "base64 of 2**31": base64ed(str(2**31)),
    "base64 of a UUID with braces": base64ed("{01a1ffff-0000-7000-8000-000000000000}"),
    "no base64": "%2b%2f===",
    "one character": "A",
    "deep JSON": "[" * 5000,
    "JSON with NUL": "%7b%22a%22:%22%5cu0000%22%7d",
    "JSON with half a pair": "%7b%22a%22:%22%5cud800%22%7d",
    "not an ID": "17",
}
HEADERS = {
    "Range": ["bytes", "bytes=", "bytes=-", "bytes=5-1", "bytes=-0", "bytes=0-0,5-6", "lines=1-2",
              f"bytes={LONG_NUMBER}-",
              f"bytes=-{'9' * 19}", "bytes=٣-", "bytes=0-\xff"],
    "If-Range": ['"x"', "W/", "Mon, 99 Foo 2020"],
    "If-None-Match": ["*", "", '"', 'W/"x"', '"x",' * 1000, "\xff"],
    "Prefer": ["wait", "wait=", "wait=-1", "wait=NaN", f"wait={LONG_NUMBER}", "wait=1e9",
               "respond-async, wait=0", "\xff"],
    "traceparent": ["", "00", "00-" + "0" * 32 + "-" + "0" * 16 + "-00", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01",
                    "x" * 5000, "\xff"],
    "X-Request-ID": ["", "a b", "x" * 5000, "\xff", "../../etc"],
    "Idempotency-Key": ["", "x" * 256, "x" * 5000, "\xff", "a\tb"],
    "Content-Type": ["", "x", "text/plain; charset=\xff", "application/json; charset=utf-32", "multipart/form-data",
                     "multipart/form-data; boundary=" + "b" * 5000],
    "Content-Disposition": ["", "attachment; filename*=\xff''%ff%00", "attachment; filename=" + "x" * 5000,
                            "attachment; filename*0*=utf-8''%00; filename*1*=%2e%2e%2f"],
    "Content-Encoding": ["gzip", "x"],
    "Accept": ["", "image/png", "x;q=9"],
    "Expect": ["100-continue", "x"],
    "Cookie": ["a=b;" * 500],
    "Host": ["", "evil.example", "[::1"],
    "X-Forwarded-For": ["' OR 1=1", "127.0.0.1"],
}  # fmt: skip


def test_the_table_has_every_route_of_the_application() -> None:
    app = build_app(SimpleNamespace(metrics=BrokerMetrics()))
    assert {(row.method, row.path) for row in ROWS} == set(routes_of(app.routes))


def routes_of(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from routes_of(included.routes)
        else:
            yield from ((method, route.path) for method in getattr(route, "methods", None) or {"GET"})


def assert_promised(row: Row, answer: httpx.Response) -> None:
    """No error of ours; a refusal is a problem, and every answer is one that the document has for this route, with
    the headers that it must have and no others."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and row.method != "HEAD":
        code_of(answer)
    if row.path in schema.raw_schema["paths"]:
        schema[row.path][row.method].validate_response(answer)
        described = schema.raw_schema["paths"][row.path][row.method.lower()]["responses"][str(answer.status_code)]
        shared = {name for name, header in described["headers"].items() if "$ref" in header}
        missing = {name for name in shared if HEADER[name].get("required") and name not in answer.headers}
        assert missing == set(), (row, answer.status_code)
        unknown = set(answer.headers) - {name.lower() for name in described["headers"]} - OF_HTTP
        assert unknown == set(), (row, answer.status_code)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_answer_has_the_headers_that_are_documented_and_no_others(
    http: httpx.Client, page: bytes, held: dict[str, str], row: Row
) -> None:
    address = row.address(**held) if row.method != "DELETE" else row.address()
    good = {"json": {"inputs": [{"sha256": held["sha256"]}]}} if (row.method, row.path) == ("POST", "/v1/jobs") else {}
    for headers in [*ASKED, {"Idempotency-Key": f"headers {row}"}, {"Idempotency-Key": f"headers {row}"}]:
        assert_promised(row, row.send(http, page, address, headers=headers, **good))
    assert_promised(row, row.send(http, page, address, params=JSON_LINES if "format" in row.query else row.query))


@pytest.mark.parametrize("row", [row for row in ROWS if row.places], ids=str)
@pytest.mark.usefixtures("untouched")
def test_garbage_in_an_address_names_nothing(http: httpx.Client, page: bytes, row: Row) -> None:
    for place in row.places:
        for name, garbage in GARBAGE.items():
            answer = row.send(http, page, row.address(**{place: garbage}))
            assert answer.status_code in (403, 404, 405, 422), (name, answer.text)
            if row.method != "HEAD":
                code_of(answer)


@pytest.mark.parametrize("row", [row for row in ROWS if row.query], ids=str)
def test_garbage_in_a_query_is_refused_or_finds_nothing(
    http: httpx.Client, page: bytes, held: dict[str, str], row: Row
) -> None:
    for name in row.query:
        for meaning, garbage in GARBAGE.items():
            answer = row.send(http, page, f"{row.address(**held)}?{name}={garbage}")
            assert_promised(row, answer)
            if name in ("limit", "cursor", "state", "format") and (name, meaning) != ("limit", "not an ID"):
                assert_problem(answer, 422, "invalid_request", name)


@pytest.mark.parametrize("row", [row for row in ROWS if row.method != "POST"], ids=str)
def test_a_query_that_is_none_of_the_routes_does_no_harm(http: httpx.Client, page: bytes, row: Row) -> None:
    good = row.send(http, page)
    odd = row.send(http, page, f"{row.address()}?%00=%ff&limit&&=&a=" + "x" * 5000)
    assert_promised(row, odd)
    assert odd.status_code == good.status_code or "limit" in row.query


@pytest.mark.parametrize("header", HEADERS)
def test_strange_headers_do_no_harm_on_any_route(
    http: httpx.Client, page: bytes, held: dict[str, str], header: str
) -> None:
    for row in ROWS:
        address = row.address(**held) if row.method != "DELETE" else None
        for value in HEADERS[header]:
            headers = {header: value.encode("utf-8" if max(value, default="") > "\xff" else "latin-1")}
            if header == "Content-Type" and row.picture:
                answer = row.send(http, page, address, headers=headers, content=page)
            else:
                answer = row.send(http, page, address, headers=headers)
            assert_promised(row, answer)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, and the place of a new field in each object."""
    yield place
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*place, name))
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, (*place, number))


def with_text(value: Any, place: tuple[Any, ...], text: str) -> str:
    """The value as JSON with this text in that place, whether it is JSON or not."""
    marked = {"": deepcopy(value)}
    inner: Any = marked
    for step in ("", *place)[:-1]:
        inner = inner[step]
    inner[("", *place)[-1]] = "\x01here"
    return json.dumps(marked[""]).replace(json.dumps("\x01here"), text)


NEVER = {
    "NUL": '"a\\u0000b"',
    "NUL in a name": '{"\\u0000": 1}',
    "half a surrogate pair": '"\\ud800"',
    "NaN": "NaN",
    "infinity": "1e999",
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "long number": LONG_NUMBER,
    "no JSON": "{",
    "no UTF-8": "\udcff",
}
"""What no field takes."""

HARDLY = {
    "negative": "-1", "over 64 bits": "18446744073709551616", "true": "true", "null": "null",
    "number in a text": '"0.5"',
    "empty text": '""', "empty list": "[]", "empty object": "{}", "tiny": "1e-400", "unknown field": '{"no_such": 1}',
    "text": '"\\u202e"', "long text": json.dumps("x" * 100_000), "fraction": "0.5", "list of nulls": "[null]",
}  # fmt: skip
"""What some fields take."""


@pytest.mark.parametrize("row", [row for row in ROWS if row.json], ids=str)
def test_a_json_body_with_nonsense_anywhere_is_refused(up: Service, http: httpx.Client, page: bytes, row: Row) -> None:
    before = up.rows()["jobs"]
    for place in leaves(row.json):
        for name, text in {**NEVER, **HARDLY}.items():
            content = with_text(row.json, place, text).encode("utf-8", "surrogateescape")
            answer = row.send(http, page, content=content)
            assert_promised(row, answer)
            if name in NEVER:
                assert code_of(answer) in ("invalid_request", "request_too_large"), (place, name, answer.text)
    assert up.rows()["jobs"] == before


@pytest.mark.parametrize(
    ("path", "place"),
    [("/v1/jobs", ("params", "conf")), ("/v1/jobs", ("params", "max_detections")), ("/v1/jobs", ("expires_in",)),
     ("/v1/jobs", ("inputs", 0, "sha256")), ("/v1/jobs", ("model",)), ("/v1/keys", ("name",))],
)  # fmt: skip
def test_a_value_of_another_json_type_is_refused(http: httpx.Client, path: str, place: tuple[Any, ...]) -> None:
    [row] = [row for row in ROWS if (row.method, row.path) == ("POST", path)]
    number = place[-1] in ("conf", "max_detections", "expires_in")
    for wrong in ('"1"', "true", "[1]", "{}") if number else ("1", "true", "[]", "{}"):
        answer = http.post(path, content=with_text(row.json, place, wrong))
        assert_problem(answer, 422, "invalid_request", ".".join(map(str, place)))


@pytest.mark.parametrize("row", [row for row in ROWS if row.keyed], ids=str)
def test_a_key_that_is_used_again_for_another_body_is_refused(
    up: Service, http: httpx.Client, page: bytes, held: dict[str, str], row: Row
) -> None:
    first, other = another(row, page, held["sha256"])
    headers = {"Idempotency-Key": f"again {row}"}
    assert row.send(http, page, row.address(**held), headers=headers, **first).is_success
    before = rows(up)
    refused = row.send(http, page, row.address(**held), headers=headers, **other)
    assert_problem(refused, 409, "idempotency_conflict", "Idempotency-Key")
    assert rows(up) == before


def another(row: Row, page: bytes, sha256: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two requests that would both be granted, and differ."""
    match row.path:
        case "/v1/jobs":
            return {"json": (job := {"inputs": [{"sha256": sha256}]})}, {"json": {**job, "expires_in": 5}}
        case "/v1/keys":
            return {"json": (key := {"name": "x", "role": "reader"})}, {"json": {**key, "name": "y"}}
    if row.json is not None:
        return {}, {"json": {**row.json, "limit": 7}}
    return ({}, {"files": {row.picture: page + b"more"}}) if row.picture else ({}, {"params": row.query})


def rows(service: Service) -> dict[str, int]:
    """Without the results, which may still come of what was asked for before."""
    return {table: count for table, count in service.rows().items() if table != "results"}


def test_a_thousand_million_inputs_are_refused_before_they_cost_memory(strict: Strict) -> None:
    broker = psutil.Process(strict.broker.pid)
    before = broker.memory_info().rss
    one = b'{"sha256":"' + SHA256.encode() + b'"},'

    def endless() -> Iterator[bytes]:
        yield b'{"inputs":['
        for _ in range(10**9):
            yield one * 100

    with strict.service.client() as http:
        assert_problem(http.post("/v1/jobs", content=endless()), 413, "request_too_large")
    assert broker.memory_info().rss - before < 64 << 20


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_another_method_is_refused_and_told_which_would_do(http: httpx.Client, row: Row) -> None:
    others = {"PUT", "PATCH", "DELETE", "POST", "GET"} - {each.method for each in ROWS if each.path == row.path}
    for method in others:
        answer = http.request(method, row.address())
        assert code_of(answer) in ("method_not_allowed", "not_found"), (method, answer.text)
