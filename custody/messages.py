"""The message that names a task: a reference to its file, never bytes. `schema/messages/task.v1.json` is its contract.

It travels with the properties `message_id` (the task), `content_type`, `type` and a header `traceparent` (W3C).
"""

import json
import re
from dataclasses import dataclass
from uuid import UUID

from custody.releases import Releasable
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


def encode(task: Releasable) -> bytes:
    return json.dumps(
        {
            "task": str(task.task_id),
            "tenant": str(task.tenant_id),
            "model": task.model,
            "file": {
                "sha256": task.sha256.hex(),
                "path": blob_path(task.sha256),
                "size": task.size,
                "media_type": task.media_type,
            },
        },
        separators=(",", ":"),
    ).encode()


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
