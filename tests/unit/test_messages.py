"""The message that names a task: its contract is schema/messages/task.v1.json, and it stays small."""

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from custody.messages import MOST_BYTES, MessageError, decode, encode
from custody.releases import Released
from tests.conftest import ROOT

SCHEMA = json.loads((ROOT / "schema" / "messages" / "task.v1.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)

TASKS = st.builds(
    Released,
    task_id=st.uuids().map(str),
    tenant_id=st.uuids().map(str),
    model=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
    sha256=st.binary(min_size=32, max_size=32),
    size=st.integers(1, 2**63 - 1),
    media_type=st.sampled_from(["image/jpeg", "image/png", "image/vnd.microsoft.icon", "video/quicktime"]),
    traceparent=st.none(),
)


@given(TASKS)
def test_every_message_keeps_the_contract_and_is_read_again(task: Released) -> None:
    body = encode(task)
    VALIDATOR.validate(json.loads(body))
    assert len(body) < MOST_BYTES
    message = decode(body, model=task.model)
    assert (str(message.task), message.model) == (task.task_id, task.model)


def test_the_largest_message_is_under_600_bytes() -> None:
    task = Released(
        str(UUID(int=0)), str(UUID(int=0)), "m" * 63, b"\xff" * 32, 2**63 - 1, "video/" + "x" * 40, "0" * 55
    )  # fmt: skip
    assert len(encode(task)) < 600


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(task="no uuid"), "malformed"),
        (lambda d: d.update(task=7), "malformed"),
        (lambda d: d.update(task=f"{{{d['task']}}}"), "malformed"),
        (lambda d: d.pop("task"), "malformed"),
        (lambda d: d.pop("file"), "malformed"),
        (lambda d: d.update(file=[]), "malformed"),
        (lambda d: d["file"].pop("sha256"), "malformed"),
        (lambda d: d.update(image="aGVsbG8="), "malformed"),
        (lambda d: d["file"].update(bytes="aGVsbG8="), "malformed"),
        (lambda d: d.update(model=["digits"]), "malformed"),
        (lambda d: d.update(model="birds"), "foreign"),
        (lambda d: d.update(model="x" * 600), "oversized"),
    ],
)
def test_what_breaks_the_contract_is_rejected_with_a_reason(change, reason: str) -> None:
    document = json.loads(a_message())
    change(document)
    assert reason_for(json.dumps(document).encode()) == reason
    if reason == "malformed":
        assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xd8\xff", b"null", b"[]", b"7", b'"task"', b"{}", b"[" * 500, b'{"task": NaN}', b"\0" * 100]
)
def test_what_is_no_json_object_is_malformed(body: bytes) -> None:
    assert reason_for(body) == "malformed"


@given(st.binary(max_size=700))
def test_no_bytes_whatever_break_the_reader(body: bytes) -> None:
    assert reason_for(body) in ("malformed", "oversized")


def a_message() -> bytes:
    return encode(Released(str(UUID(int=1)), str(UUID(int=2)), "digits", b"\1" * 32, 10, "image/png", None))


def reason_for(body: bytes) -> str:
    with pytest.raises(MessageError) as refused:
        decode(body, model="digits")
    return refused.value.reason
