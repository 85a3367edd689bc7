"""Bodies, fields, headers and addresses that are wrong in every way we could think of: a 4xx with a stable code, never
a 5xx, and nothing is left of them."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.problems import assert_problem, code_of
from tests.e2e.routes import rows_of
from tests.e2e.service import Service, Strict
from tests.e2e.wire import exchange, head

pytestmark = pytest.mark.usefixtures("untouched")

NUL = "\\u0000"
HALF_A_PAIR = "\\ud800"
DEEP = "[" * 100_000 + "]" * 100_000
LONG_NUMBER = "9" * 5000


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key("admin")) as client:
        yield client


def part(name: str, content: bytes, *more: str) -> bytes:
    headers = "\r\n".join((f'Content-Disposition: form-data; name="{name}"; filename="a.png"', *more))
    return b"--b\r\n" + headers.encode() + b"\r\n\r\n" + content + b"\r\n"


MULTIPART = "multipart/form-data; boundary=b"
MALFORMED = {  # Each of these spoils a good part before it as well.
    "no end": (MULTIPART, part("file", b"x")),
    "an end in the boundary": (MULTIPART, part("file", b"x") + b"--b"),
    "headers only": (MULTIPART, b'--b\r\nContent-Disposition: form-data; name="file"\r\n'),
    "half a header": (MULTIPART, b"--b\r\nContent-Dis"),
    "a header without colon": (MULTIPART, b"--b\r\nContent-Disposition\r\n\r\nx\r\n--b--\r\n"),
    "a header without name": (MULTIPART, b"--b\r\n: form-data\r\n\r\nx\r\n--b--\r\n"),
    "a header with NUL": (MULTIPART, b"--b\r\nContent-\0Type: a\r\nContent-Disposition: x\r\n\r\nx\r\n--b--\r\n"),
    "no Content-Disposition": (MULTIPART, b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n"),
    "an attachment": (MULTIPART, b'--b\r\nContent-Disposition: attachment; name="file"\r\n\r\nx\r\n--b--\r\n'),
    "bare line feeds": (MULTIPART, part("file", b"x").replace(b"\r\n", b"\n") + b"--b--\n"),
    "a huge header": (MULTIPART, part("file", b"x", "X-A: " + "a" * 20_000) + b"--b--\r\n"),
    "an endless header": (MULTIPART, b"--b\r\nX-A: " + b"a" * 200_000),
    "many headers": (MULTIPART, part("file", b"x", *[f"X-{n}: a" for n in range(100)]) + b"--b--\r\n"),
    "a header that is not UTF-8": (MULTIPART, part("file", b"x").replace(b"a.png", b"\xff\xfe") + b"--b--\r\n"),
    "a length that lies": (MULTIPART, part("file", b"x", "Content-Length: 5000") + b"--b--\r\n"),
    "a length that is none": (MULTIPART, part("file", b"x", "Content-Length: -1") + b"--b--\r\n"),
    "a transfer encoding": (MULTIPART, part("file", b"x", "Content-Transfer-Encoding: base64") + b"--b--\r\n"),
    "an unknown charset": (MULTIPART, part("file", b"x", "Content-Type: text/plain; charset=x\0y") + b"--b--\r\n"),
    "a nested multipart": (
        MULTIPART,
        part("file", b"--c\r\n\r\n\r\n--c--", f"Content-Type: {MULTIPART}") + b"--b--\r\n",
    ),
    "many parts": (MULTIPART, b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 500 + b"--b--\r\n"),
    "a long field": (
        MULTIPART,
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + b"a" * 70_000 + b"\r\n--b--\r\n",
    ),
}
WITHOUT_A_FILE = {
    "no boundary": ("multipart/form-data", b"--b--"),
    "empty boundary": ("multipart/form-data; boundary=", b"--b--"),
    "a boundary of one quote": ('multipart/form-data; boundary="', b'--"--'),
    "another boundary": ("multipart/form-data; boundary=c", part("file", b"x") + b"--b--\r\n"),
    "no part at all": (MULTIPART, b"--b--\r\n"),
    "a part without name": (MULTIPART, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
    "bytes before the boundary": (MULTIPART, b"junk" + part("file", b"x") + b"--b--\r\n"),
    "nothing": (MULTIPART, b""),
    "only text": (MULTIPART, b"hello"),
    "only line breaks": (MULTIPART, b"\r\n" * 10_000),
}


@pytest.mark.parametrize("address", ["/v1/files", "/v1/predict"])
@pytest.mark.parametrize("before", ["alone", "after a good part"])
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_multipart_body(http: httpx.Client, page: bytes, address: str, before: str, case: str) -> None:
    content_type, body = MALFORMED[case]
    good = b"" if before == "alone" else part("file", page)
    assert_refused(http, address, content_type, good + body)


@pytest.mark.parametrize("address", ["/v1/files", "/v1/predict"])
@pytest.mark.parametrize("case", WITHOUT_A_FILE)
def test_a_multipart_body_in_which_there_is_no_file(http: httpx.Client, address: str, case: str) -> None:
    assert_refused(http, address, *WITHOUT_A_FILE[case])


def assert_refused(http: httpx.Client, address: str, content_type: str, body: bytes) -> None:
    if address == "/v1/predict":
        body = body.replace(b'"file"', b'"image"')
    answer = http.post(address, content=body, headers={"Content-Type": content_type})
    assert code_of(answer) in (
        "malformed_body", "missing_part", "too_many_parts", "request_too_large", "unsupported_media_type",
    )  # fmt: skip


def test_a_body_without_the_part_that_is_wanted(http: httpx.Client, page: bytes) -> None:
    for address, wrong, wanted in (("/v1/predict", "file", "image"), ("/v1/files", "image", "file")):
        assert_problem(http.post(address, files={wrong: ("a.png", page)}), 422, "missing_part", wanted)
    no_file = http.post("/v1/predict", content=b'--b\r\nContent-Disposition: form-data; name="conf"\r\n\r\n1\r\n--b--',
                        headers={"Content-Type": MULTIPART})  # fmt: skip
    assert_problem(no_file, 422, "missing_part", "image")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("conf", value) for value in ("7", "-1", "NaN", "abc", "inf", "-inf", "1e999", "", "0,5", "\0", "0x1")],
        *[("iou", value) for value in ("1.01", "-0.1", "-1", "nan", "inf", "[]")],
        *[("max_detections", value) for value in ("0", "1001", "2.5", "-3", LONG_NUMBER, "one")],
        *[("priority", value) for value in ("urgent", "", "\0")],
        *[("expires_in", value) for value in ("0", "-1", "nan", "inf", "1e999", "soon", "", "2592001", LONG_NUMBER)],
        *[("metadata", value) for value in ("[1]", "x", "{", "", "null", '{"a": NaN}', '{"a": 1e999}')],
        *[("metadata", f'{{"a": "{value}"}}') for value in (NUL, HALF_A_PAIR)],
        *[("metadata", f'{{"{value}": 1}}') for value in (NUL, HALF_A_PAIR)],
        *[("metadata", f'{{"a": {value}}}') for value in (DEEP[:30_000], LONG_NUMBER)],
        ("no_such_field", "1"),
        ("nul\0field", "1"),
        ("model", "a\0b"),
    ],
)
def test_a_field_of_predict_that_is_wrong_is_named(http: httpx.Client, page: bytes, field: str, value: str) -> None:
    answer = http.post("/v1/predict", files={"image": page}, data={field: value})
    assert_problem(answer, 422, "invalid_request", httpx.QueryParams({field: ""}).__str__()[:-1].replace("+", " "))


@pytest.mark.parametrize("model", ["none", "a/b", "..", "digits ", "DIGITS", "'; DROP TABLE wharf.jobs; --", "ß" * 500])
def test_an_unknown_model(http: httpx.Client, page: bytes, model: str) -> None:
    assert_problem(
        http.post("/v1/predict", files={"image": page}, data={"model": model}), 422, "model_not_found", "model"
    )
    answer = http.post("/v1/jobs", json={"model": model, "inputs": [{"sha256": "0" * 64}]})
    assert_problem(answer, 422, "model_not_found", "model")


GOOD_INPUT = '"inputs": [{"sha256": "' + "0" * 64 + '"}]'


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        "17",
        '"inputs"',
        "\0",
        "\ufeff{}",
        "{}",
        '{"inputs": []}',
        '{"inputs": {}}',
        '{"inputs": [{}]}',
        '{"inputs": [null]}',
        '{"inputs": [{"file": "17"}]}',
        '{"inputs": [{"sha256": "XYZ"}]}',
        '{"inputs": [{"sha256": "' + "0" * 64 + '", "file": "01a1ffff-0000-7000-8000-000000000000"}]}',
        '{"inputs": [{"path": "/etc/passwd"}]}',
        '{"inputs": [{"file": null}]}',
        f'{{{GOOD_INPUT}, "no_such_field": 1}}',
        f'{{{GOOD_INPUT}, "params": {{"conf": 7}}}}',
        f'{{{GOOD_INPUT}, "params": {{"conf": NaN}}}}',
        f'{{{GOOD_INPUT}, "params": {{"conf": -1}}}}',
        f'{{{GOOD_INPUT}, "params": {{"size": 1}}}}',
        f'{{{GOOD_INPUT}, "priority": "urgent"}}',
        f'{{{GOOD_INPUT}, "expires_in": 0}}',
        f'{{{GOOD_INPUT}, "expires_in": -5}}',
        f'{{{GOOD_INPUT}, "expires_in": NaN}}',
        f'{{{GOOD_INPUT}, "expires_in": 1e999}}',
        f'{{{GOOD_INPUT}, "expires_in": 2592001}}',
        f'{{{GOOD_INPUT}, "expires_in": "P1D"}}',
        f'{{{GOOD_INPUT}, "metadata": []}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": "{NUL}"}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": ["{NUL}"]}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": "\\\\{NUL}"}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"{NUL}": 1}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": "{HALF_A_PAIR}"}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": NaN}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": -Infinity}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": 1e999}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": {LONG_NUMBER}}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": {DEEP}}}}}',
        f'{{{GOOD_INPUT}, "metadata": {{"a": "{"x" * 65_536}"}}}}',
        f'{{{GOOD_INPUT}, "model": "{NUL}"}}',
        f'{{{GOOD_INPUT}, "model": "{HALF_A_PAIR}"}}',
        DEEP,
        LONG_NUMBER,
    ],
    ids=lambda body: body[:90].encode("unicode_escape").decode(),
)
def test_a_job_that_is_wrong(http: httpx.Client, body: str) -> None:
    assert_problem(http.post("/v1/jobs", content=body.encode()), 422, "invalid_request")


def test_bytes_that_are_no_json(http: httpx.Client) -> None:
    for body in (b"\xff\xfe{}", b'{"inputs": "\xff"}', b"\x1f\x8b\x08\0", bytes(1000)):
        assert_problem(http.post("/v1/jobs", content=body), 422, "invalid_request")
        assert_problem(http.post("/v1/keys", content=body), 422, "invalid_request")


def test_json_over_the_limit(strict: Strict) -> None:
    with strict.service.client() as http:
        for address in ("/v1/jobs", "/v1/keys"):
            assert_problem(http.post(address, content=b" " * 20_001), 413, "request_too_large")
            chunks = iter([b"[" * 15_000] * 2)
            assert_problem(http.post(address, content=chunks), 413, "request_too_large")


def test_more_inputs_than_allowed(strict: Strict) -> None:
    sha256s = ['{"sha256": "' + "0" * 64 + '"}'] * 201
    with strict.service.client() as http:
        compact = json.dumps({"inputs": [{}] * 401}, separators=(",", ":"))
        assert_problem(http.post("/v1/jobs", content=compact), 413, "request_too_large", "inputs")
        assert_problem(http.post("/v1/jobs", content=f'{{"inputs": [{",".join(sha256s)}]}}'), 404, "not_found")


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": "x"},
        {"role": "reader"},
        {"name": "", "role": "reader"},
        {"name": "x" * 101, "role": "reader"},
        {"name": "a\0b", "role": "reader"},
        {"name": 5, "role": "reader"},
        {"name": "x", "role": "owner"},
        {"name": "x", "role": "reader", "tenant": "a\0b"},
        {"name": "x", "role": "reader", "tenant": "A"},
        {"name": "x", "role": "reader", "tenant": "-a"},
        {"name": "x", "role": "reader", "tenant": "a" * 64},
        {"name": "x", "role": "reader", "tenant": "a\n"},
        {"name": "x", "role": "reader", "secret": "mine"},
    ],
)
def test_a_key_that_is_wrong(up: Service, http: httpx.Client, wanted: dict[str, Any]) -> None:
    before = up.ask("SELECT count(*) FROM wharf.api_keys")
    assert_problem(http.post("/v1/keys", json=wanted), 422, "invalid_request")
    assert up.ask("SELECT count(*) FROM wharf.api_keys") == before


@pytest.mark.parametrize(
    ("address", "field"),
    [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=1001", "limit"),
        ("/v1/files?limit=x", "limit"),
        (f"/v1/files?limit={LONG_NUMBER}", "limit"),
        ("/v1/files?cursor=x", "cursor"),
        ("/v1/files?cursor=%00", "cursor"),
        ("/v1/files?cursor=%C3%A9", "cursor"),
        ("/v1/files?cursor=MTc", "cursor"),
        (f"/v1/files?cursor={'A' * 5000}", "cursor"),
        ("/v1/jobs?cursor=x", "cursor"),
        ("/v1/jobs?state=done", "state"),
        ("/v1/jobs?model=%00", "model"),
        ("/v1/jobs?metadata=x", "metadata"),
        ("/v1/jobs?metadata=[1]", "metadata"),
        ("/v1/jobs?metadata={%22a%22:NaN}", "metadata"),
        (f"/v1/jobs?metadata={{%22a%22:%22{NUL}%22}}", "metadata"),
        (f"/v1/jobs?metadata={{%22a%22:%22{HALF_A_PAIR}%22}}", "metadata"),
        (f"/v1/jobs?metadata={{%22a%22:{LONG_NUMBER}}}", "metadata"),
        (f"/v1/jobs?metadata={DEEP[:20_000]}", "metadata"),
    ],
    ids=lambda text: text[:60],
)
def test_a_wrong_query_is_named(http: httpx.Client, address: str, field: str) -> None:
    assert_problem(http.get(address), 422, "invalid_request", field)


def test_a_cursor_of_another_list_is_harmless(http: httpx.Client) -> None:
    numbered = "NDI"  # 42
    assert_problem(http.get("/v1/files", params={"cursor": numbered}), 422, "invalid_request", "cursor")


@pytest.mark.parametrize(
    "wrong", ["17", "%00", "%0a", "%ff", "..", "%2e%2e%2f", "x" * 5000, "' OR 1=1", "\u202e", "{}"]
)
def test_an_id_that_is_none_names_nothing(http: httpx.Client, wrong: str) -> None:
    for method, address in (
        ("GET", "/v1/files/{}"),
        ("GET", "/v1/files/{}/content"),
        ("DELETE", "/v1/files/{}"),
        ("GET", "/v1/jobs/{}"),
        ("GET", "/v1/jobs/{}/results"),
        ("POST", "/v1/jobs/{}/cancel"),
        ("GET", "/v1/models/{}"),
        ("POST", "/v1/models/{}/retire"),
        ("POST", "/v1/pools/{}/pause"),
        ("DELETE", "/v1/keys/{}"),
    ):
        assert code_of(http.request(method, address.format(wrong))) in ("not_found", "method_not_allowed")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wharf_wrong",
        "Basic d2hhcmY6d2hhcmY=",
        "bearer\twharf",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 50_000,
        "Bearer a b",
    ],
    ids=lambda text: str(text)[:20],
)
def test_no_valid_key_no_answer_on_any_route(up: Service, page: bytes, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    with httpx.Client(base_url=up.url, headers=headers, trust_env=False) as nobody:
        for method, address in ROUTES:
            body = {"files": {"image": page, "file": page}} if method == "POST" else {}
            answer = nobody.request(method, address, **body)
            assert answer.status_code == 401, (method, address)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            if method != "HEAD":
                assert_problem(answer, 401, "unauthenticated")


READING = rows_of("reader")
WRITING = rows_of("writer")
OPERATING = rows_of("operator")
GOVERNING = [*rows_of("admin"), *OPERATING]
ROUTES = READING + WRITING + GOVERNING


@pytest.mark.parametrize(("role", "forbidden"), [("reader", WRITING + GOVERNING), ("writer", GOVERNING)])
def test_a_role_that_does_not_reach(up: Service, page: bytes, role: str, forbidden: list[tuple[str, str]]) -> None:
    with up.client(up.new_key(role)) as http:
        for method, address in forbidden:
            body = {"files": {"image": page, "file": page}} if method == "POST" else {}
            assert_problem(http.request(method, address, **body), 403, "forbidden")
        for method, address in set(ROUTES) - set(forbidden) - set(WRITING):
            assert http.request(method, address).status_code in (200, 404)


def test_what_belongs_to_no_tenant_is_for_the_operators_admins(http: httpx.Client) -> None:
    for method, address in OPERATING:
        assert_problem(http.request(method, address), 403, "forbidden")
    [pool] = http.get("/v1/pools").json()["items"]
    assert (pool["state"], http.get("/v1/models/digits").json()["versions"][0]["state"]) == ("active", "active")


def test_headers_that_come_twice_are_no_way_around_anything(up: Service, page: bytes) -> None:
    good, other = up.new_key("reader"), up.new_key("reader")
    twice = exchange(up.url, head("GET", "/v1/files", good, f"Authorization: Bearer {other}"))
    wrong = exchange(up.url, head("GET", "/v1/files", good, "Authorization: Bearer wharf_wrong"))
    assert {twice.status_code, wrong.status_code} <= {200, 400, 401}
    length = f"Content-Length: {len(page)}"
    lengths = exchange(up.url, head("POST", "/v1/files", good, length, "Content-Length: 5") + page)
    assert lengths.status_code == 400
    smuggled = exchange(up.url, head("POST", "/v1/files", good, length, "Transfer-Encoding: chunked") + b"0\r\n\r\n")
    assert smuggled.status_code in (400, 403)


@pytest.mark.parametrize(
    "request_",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/files HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET /v1/files HTTP/1.1\r\nNo colon\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_hardly_http_gets_a_4xx_and_the_service_goes_on(up: Service, request_: bytes) -> None:
    assert 400 <= exchange(up.url, request_).status_code < 500
    assert httpx.get(f"{up.url}/livez", trust_env=False).status_code == 200
