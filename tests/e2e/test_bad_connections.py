"""Clients that are slow, or send no HTTP, or more of it than anybody needs: cut off with an answer where one can still
be given, and nothing is left of what they sent."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import psutil
import pytest

from standalone.postgres import Postgres
from tests.e2e.conftest import new_database
from tests.e2e.problems import assert_problem, code_of
from tests.e2e.service import Installation, Part, Service, until
from tests.e2e.wire import answer, connection, exchange, head

IMPATIENT = {
    "WHARF_REQUEST_HEAD_SECONDS": "2",
    "WHARF_BODY_IDLE_SECONDS": "2",
    "WHARF_MIN_UPLOAD_BYTES_PER_SECOND": "1000",
}
JSON = "Content-Type: application/json"
MULTIPART = "Content-Type: multipart/form-data; boundary=b"
CHUNKED = "Transfer-Encoding: chunked"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.fixture(scope="module")
def processes(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Part]]:
    with new_database(postgres) as database:
        installation = Installation(tmp_path_factory.mktemp("slow"), lambda role: postgres.url(role, database))
        try:
            service = installation.migrate()
            yield service, installation.broker(**IMPATIENT)
        finally:
            installation.stop()


@pytest.fixture
def impatient(processes: tuple[Service, Part]) -> Iterator[Service]:
    """A broker that waits for nobody. Afterwards nothing is left of the test, and it serves."""
    service, broker = processes
    before = service.rows()
    yield service
    until(lambda: service.staged() == [], "staging is empty")
    assert list((service.volume / "dropped").iterdir()) == []
    assert service.rows() == before
    with service.client() as http:
        assert http.get("/v1/files").status_code == 200
    until(lambda: connections(broker) == 0, "no connection is left")


def connections(broker: Part) -> int:
    process = psutil.Process(broker.pid)
    port = int(broker.environment["WHARF_PORT"])
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in process.net_connections("tcp")
    )


def drip(opened: socket.socket, content: bytes, pause: float = 0.2) -> httpx.Response:
    """Sends byte after byte until there is an answer, and gives the answer."""
    opened.settimeout(pause)
    for byte in content:
        with suppress(TimeoutError):
            if opened.recv(1, socket.MSG_PEEK):
                break
        opened.sendall(bytes([byte]))
    opened.settimeout(20)
    return answer(opened)


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/files", ["Content-Length: 5000"], b"\x89PNG\r\n\x1a\n" + bytes(4000)),
        ("/v1/files", [MULTIPART, "Content-Length: 5000"], PART + bytes(4000)),
        ("/v1/files", [MULTIPART, CHUNKED], b"5\r\n--b\r\n\r\n" * 1000),
        ("/v1/predict", [MULTIPART, "Content-Length: 5000"], PART.replace(b"file", b"image") + bytes(4000)),
        ("/v1/jobs", [JSON, "Content-Length: 5000"], b'{"inputs": [' + b" " * 4000),
        ("/v1/keys", [JSON, CHUNKED], b"1\r\n \r\n" * 1000),
    ],
)
def test_a_body_that_comes_byte_by_byte_is_cut_off(
    impatient: Service, path: str, headers: list[str], body: bytes
) -> None:
    began = time.monotonic()
    with connection(impatient.url) as opened:
        opened.sendall(head("POST", path, impatient.key, *headers))
        refused = drip(opened, body)
        assert_problem(refused, 408, "request_timeout")
        assert refused.headers["Connection"] == "close"
    assert time.monotonic() - began < 30  # sent to its end it would have been minutes


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/files", ["Content-Length: 5000"], b"\x89PNG\r\n\x1a\n"),
        ("/v1/files", [MULTIPART, "Content-Length: 5000"], PART + b"x"),
        ("/v1/files", [MULTIPART, CHUNKED], b"5\r\n--b\r\n\r\n"),
        ("/v1/files", [MULTIPART, CHUNKED], b"ffffffff\r\n" + PART),
        ("/v1/jobs", [JSON, "Content-Length: 2"], b"{"),
        ("/v1/jobs", [JSON, CHUNKED], b"2\r\n{}\r\n"),
        ("/v1/keys", [JSON, "Content-Length: 9000000"], b""),
    ],
)
def test_a_body_whose_end_never_comes_is_cut_off(
    impatient: Service, path: str, headers: list[str], body: bytes
) -> None:
    with connection(impatient.url) as opened:
        opened.sendall(head("POST", path, impatient.key, *headers) + body)
        assert_problem(answer(opened), 408, "request_timeout")
        assert opened.recv(1) == b""


def test_a_slow_body_that_is_fast_enough_is_taken(impatient: Service) -> None:
    with connection(impatient.url) as opened:
        opened.sendall(head("POST", "/v1/jobs", impatient.key, JSON, "Content-Length: 15000"))
        for _ in range(10):
            opened.sendall(b" " * 1500)
            time.sleep(0.5)
        assert_problem(answer(opened), 422, "invalid_request")


def test_headers_that_come_byte_by_byte_are_cut_off(impatient: Service) -> None:
    with connection(impatient.url) as opened:
        request = head("GET", "/v1/files", impatient.key, "X-Slow: " + "a" * 1000)
        assert_problem(drip(opened, request), 408, "request_timeout")
        assert opened.recv(1) == b""


def test_headers_of_a_second_request_have_no_longer(impatient: Service) -> None:
    with connection(impatient.url) as opened:
        opened.sendall(head("GET", "/v1/files", impatient.key))
        assert answer(opened).status_code == 200
        assert_problem(drip(opened, head("GET", "/v1/files", impatient.key, "X-Slow: " + "a" * 1000)), 408,
                       "request_timeout")  # fmt: skip


def test_a_connection_on_which_nothing_is_asked_is_closed(impatient: Service) -> None:
    with connection(impatient.url) as opened:
        assert opened.recv(1) == b""


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(impatient: Service) -> None:
    with connection(impatient.url) as opened:
        opened.sendall(head("POST", "/v1/files", "wharf_wrong", "Content-Length: 50000000"))
        assert_problem(answer(opened), 401, "unauthenticated")
        until(lambda: gone(opened), "it is closed")


def gone(opened: socket.socket) -> bool:
    """Whether the other side takes no byte any more; sends one to find out."""
    try:
        opened.sendall(b"x")
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    "bomb",
    [
        "GET /v1/files HTTP/1.1\r\nHost: a\r\nX: " + "a" * 200_000 + "\r\n\r\n",
        "GET /v1/files HTTP/1.1\r\nHost: a\r\nX: " + "a" * 3_000_000,
        "GET /v1/files HTTP/1.1\r\nHost: a\r\n" + "X: a\r\n" * 100_000 + "\r\n",
        "GET /v1/files HTTP/1.1\r\nHost: a\r\n" + "a" * 200_000 + ": x\r\n\r\n",
        "GET /v1/files?" + "a" * 200_000 + " HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /" + "a" * 3_000_000,
    ],
    ids=["long header", "endless header", "many headers", "long name", "long query", "endless path"],
)
def test_a_head_that_is_a_bomb_is_refused(impatient: Service, processes: tuple[Service, Part], bomb: str) -> None:
    with connection(impatient.url) as opened:
        with suppress(ConnectionError):
            opened.sendall(bomb.encode())
        assert_problem(answer(opened), 431, "request_head_too_large")


def test_trailers_are_no_headers_and_no_bombs(impatient: Service) -> None:
    chunked = f"GET /v1/files HTTP/1.1\r\nHost: a\r\n{CHUNKED}\r\n\r\n0\r\n".encode()
    told = exchange(impatient.url, chunked + f"Authorization: Bearer {impatient.key}\r\n\r\n".encode())
    assert_problem(told, 401, "unauthenticated")
    for endless in (b"X: " + b"a" * 3_000_000, b"X: a\r\n" * 500_000):
        with connection(impatient.url) as opened:
            with suppress(ConnectionError):
                opened.sendall(head("POST", "/v1/jobs", impatient.key, JSON, CHUNKED) + b"1\r\n{\r\n0\r\n" + endless)
            assert code_of(answer(opened)) in ("request_head_too_large", "invalid_request")


def test_chunk_extensions_are_no_bombs(impatient: Service) -> None:
    with connection(impatient.url) as opened:
        with suppress(ConnectionError):
            opened.sendall(head("POST", "/v1/jobs", impatient.key, JSON, CHUNKED) + b"1;" + b"a" * 3_000_000)
        assert 400 <= answer(opened).status_code < 500


@pytest.mark.parametrize(
    "body",
    [b"ZZ\r\n{}\r\n", b"-1\r\n{}\r\n", b"1\r\n{}\r\n", b"fffffffffffffffffff\r\n{}", b"2\n{}\n",
     b"5\r\n{}\r\n0\r\n\r\n",
     b"0x2\r\n{}\r\n", b"\r\n\r\n", b"2 \r\n{}\r\n0\r\n\r\n"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/files", "/v1/predict", "/v1/jobs", "/v1/keys"])
def test_chunks_that_lie_are_refused(impatient: Service, path: str, body: bytes) -> None:
    content_type = JSON if path in ("/v1/jobs", "/v1/keys") else MULTIPART
    with connection(impatient.url) as opened:
        opened.sendall(head("POST", path, impatient.key, content_type, CHUNKED) + body)
        assert code_of(answer(opened)) in (
            "malformed_request", "invalid_request", "malformed_body", "missing_part", "request_timeout",
        )  # fmt: skip


@pytest.mark.parametrize("declared", [0, 1, 40, 100])
def test_a_length_that_is_too_short_is_refused(impatient: Service, page: bytes, declared: int) -> None:
    body = PART + page + b"\r\n--b--\r\n"
    with connection(impatient.url) as opened:
        opened.sendall(head("POST", "/v1/files", impatient.key, MULTIPART, f"Content-Length: {declared}") + body)
        assert code_of(answer(opened)) in ("malformed_body", "missing_part", "malformed_request")


def test_ten_thousand_tiny_parts_are_refused_and_cost_no_memory(
    impatient: Service, processes: tuple[Service, Part]
) -> None:
    memory = psutil.Process(processes[1].pid).memory_info().rss
    field = b'--b\r\nContent-Disposition: form-data; name="a%d"\r\n\r\nx\r\n'
    for parts in (PART * 1, b"".join(field % number for number in range(10_000)), (PART + b"\r\n") * 10_000):
        with impatient.client() as http:
            refused = http.post("/v1/files", content=parts + b"--b--\r\n", headers=dict([MULTIPART.split(": ")]))
        assert code_of(refused) in ("too_many_parts", "empty_file", "malformed_body")
    assert psutil.Process(processes[1].pid).memory_info().rss - memory < 64 << 20


@pytest.mark.parametrize(
    ("case", "length"),
    [("one long header", 3_000_000), ("many headers", 3_000_000), ("no boundary comes", 1_900_000)],
)
def test_a_part_that_is_a_bomb_is_refused(impatient: Service, case: str, length: int) -> None:
    bodies = {
        "one long header": b"--b\r\nX: " + b"a" * length,
        "many headers": b"--b\r\n" + b"X: a\r\n" * (length // 6),
        "no boundary comes": b"a" * length,
    }
    with impatient.client() as http:
        refused = http.post("/v1/files", content=bodies[case], headers=dict([MULTIPART.split(": ")]))
    assert code_of(refused) in ("malformed_body", "too_many_parts")


def test_many_bombs_at_once_leave_the_memory_bounded(impatient: Service, processes: tuple[Service, Part]) -> None:
    memory = psutil.Process(processes[1].pid).memory_info().rss
    for _ in range(30):
        with connection(impatient.url) as opened, suppress(ConnectionError):
            opened.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 5_000_000)
    assert psutil.Process(processes[1].pid).memory_info().rss - memory < 64 << 20
