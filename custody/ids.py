"""Identifiers: UUIDv7, so that ids sort by the time they were made."""

from uuid import UUID

import uuid_utils.compat


def new_id() -> UUID:
    return uuid_utils.compat.uuid7()


def id_time(id: UUID) -> float:
    """When a UUIDv7 was made, in seconds since 1970."""
    return int.from_bytes(id.bytes[:6], "big") / 1000
