"""The message that names a task: a reference to its file, never bytes. `schema/messages/task.v1.json` is its contract.

It travels with the properties `message_id` (the task), `content_type`, `type` and a header `traceparent` (W3C).
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from uuid import UUID

from custody.releases import Released
from custody.volume import blob_path

TYPE = "wharf.task.v1"
CONTENT_TYPE = "application/json"

MOST_BYTES = 600
"""Of a message: it does not grow with the file."""

FIELDS = frozenset({"task", "tenant", "model", "file"})
FILE_FIELDS = frozenset({"sha256", "path", "size", "media_type"})


class MessageError(Exception):
    """What came is no message of ours. `reason`: one word for the metrics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class TaskMessage:
    """What a receiver needs of it; the rest it reads from the task's row."""

    task: UUID
    model: str


def encode(task: Released) -> bytes:
    """By hand, since relays do little else: only two of the values are not made of hex digits."""
    sha256 = task.sha256.hex()
    return (
        f'{{"task":"{task.task_id}","tenant":"{task.tenant_id}","model":{_quoted(task.model)},"file":{{"sha256":"{sha256}",'
        f'"path":"{blob_path(task.sha256)}","size":{task.size:d},"media_type":{_quoted(task.media_type)}}}}}'
    ).encode()


@cache
def _quoted(text: str) -> str:
    return json.dumps(text)


def decode(body: bytes, *, model: str | None = None) -> TaskMessage:
    """Raises `MessageError` for what is oversized, malformed, or, where a `model` is named, another one's."""
    if len(body) > MOST_BYTES:
        raise MessageError("oversized")
    try:
        document = json.loads(body)
        message = TaskMessage(UUID(document["task"]), document["model"])
        known = document.keys() == FIELDS and document["file"].keys() == FILE_FIELDS
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MessageError("malformed") from None
    if not known or not isinstance(message.model, str) or not re.fullmatch(r"[0-9a-f-]{36}", document["task"]):
        raise MessageError("malformed")
    if model not in (None, message.model):
        raise MessageError("foreign")
    return message
