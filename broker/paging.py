"""Cursors of lists: opaque to clients, the last item's key inside."""

import base64
import binascii
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from custody.errors import CustodyError
from custody.reruns import Walk

K = TypeVar("K")


def encode(key: object) -> str:
    return base64.urlsafe_b64encode(str(key).encode()).decode().rstrip("=")


def decode_id(cursor: str | None) -> UUID | None:
    return None if cursor is None else _decoded(cursor, UUID)


def decode_number(cursor: str | None) -> int | None:
    return None if cursor is None else _decoded(cursor, _number)


def decode_walk(cursor: str) -> Walk:
    return _decoded(cursor, _walk)


def _walk(text: str) -> Walk:
    began, _, after = text.partition(" ")
    moment = datetime.fromisoformat(began)
    if moment.tzinfo is None:
        raise ValueError(text)
    return Walk(moment, UUID(after))


def _number(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**31:
        raise ValueError(text)
    return number


def _decoded(cursor: str, kind: Callable[[str], K]) -> K:
    try:
        key = kind(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode())
        # Python reads many spellings of a number or an id; ours is one.
        if encode(key) != cursor:
            raise ValueError(cursor)
    except (binascii.Error, ValueError):
        raise CustodyError(
            "invalid_request", "This cursor is none of ours. Start without one.", field="cursor"
        ) from None
    return key
