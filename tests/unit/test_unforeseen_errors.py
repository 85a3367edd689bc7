"""An error that nobody foresaw: the client gets a problem with the request's id, and the log gets no secret."""

import json
import subprocess
import sys
from typing import Any

import pytest

from broker.metrics import BrokerMetrics
from broker.tracing import RequestTracing

SECRET = "wharf_a-key-that-must-not-be-logged"
BREAK = f"""
import structlog
from custody.telemetry import configure_logging

configure_logging(process="test", format=FORMAT, level="info")
try:
    secret = {SECRET[::-1]!r}[::-1]
    raise RuntimeError("what broke")
except RuntimeError as error:
    structlog.get_logger().error("request_broke", exc_info=error)
"""


async def sent_by(app: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"x-request-id", b"order-17")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    await RequestTracing(app, BrokerMetrics())(scope, receive_nothing, send)
    return sent


async def receive_nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def test_the_client_gets_a_problem_with_the_id_of_its_request() -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError(SECRET)

    start, body = await sent_by(breaks)
    assert start["status"] == 500
    headers = dict(start["headers"])
    assert headers[b"x-request-id"] == b"order-17"
    assert headers[b"content-type"] == b"application/problem+json"
    problem = json.loads(body["body"])
    assert (problem["code"], problem["request_id"]) == ("internal_error", "order-17")
    assert SECRET not in body["body"].decode()


async def test_an_answer_that_has_begun_is_broken_off_and_not_followed_by_another() -> None:
    async def breaks_in_the_middle(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await sent_by(breaks_in_the_middle)


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_traceback_in_the_log_shows_no_variables(format: str) -> None:
    command = [sys.executable, "-c", BREAK.replace("FORMAT", repr(format))]
    logged = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "RuntimeError: what broke" in logged
    assert SECRET not in logged
