"""What every refusal looks like: RFC 9457, with a stable code and the id of its request."""

import httpx

from custody.errors import KINDS


def assert_problem(answer: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    assert (answer.status_code, code_of(answer)) == (status, code), answer.text
    if field is not None:
        assert answer.json()["field"] == field


def code_of(answer: httpx.Response) -> str:
    """The code of a well-formed problem."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert set(problem) - {"field"} == {"type", "title", "status", "code", "detail", "request_id"}
    code = problem["code"]
    assert problem["status"] == answer.status_code == KINDS[code].status
    assert problem["type"] == f"urn:wharfinger:problem:{code}"
    assert problem["request_id"] == answer.headers["X-Request-ID"] != ""
    assert problem["detail"]
    return str(code)
