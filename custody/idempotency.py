"""Idempotency keys: a request sent twice has one effect."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from custody.database import Transaction
from custody.errors import CustodyError


@dataclass(frozen=True)
class Replay:
    """What the first request with this key brought about, and when it came, by the database's clock."""

    status: int
    resource: Sequence[UUID]
    began: datetime


def fingerprint(route: str, fields: Mapping[str, Any], parts: Iterable[bytes]) -> bytes:
    """What makes two requests the same one: the route, its fields in any order, and the SHA-256 of each part. The
    body itself would not do: a multipart boundary changes with every retry."""
    digest = hashlib.sha256(f"{route}\n{json.dumps(fields, sort_keys=True)}\n".encode())
    for part in parts:
        digest.update(part)
    return digest.digest()


async def begin(transaction: Transaction, tenant: UUID, key: str | None, wanted: bytes) -> Replay | None:
    """None: this request is the first, and `record` must follow in the same transaction. A concurrent duplicate waits
    here until the first has committed.

    Raises `CustodyError("idempotency_conflict")` where the key stands for another request."""
    if key is None:
        return None
    if not 1 <= len(key) <= 255:
        raise CustodyError("invalid_request", "An idempotency key has 1 to 255 characters.", field="Idempotency-Key")
    inserted = await transaction.execute(
        """
        INSERT INTO wharf.idempotency_keys (tenant_id, key, fingerprint, status, resource) VALUES (%s, %s, %s, 0, '{}')
        ON CONFLICT DO NOTHING
        """,
        [tenant, key, wanted],
    )
    if inserted.rowcount == 1:
        return None
    found = await transaction.execute(
        """
        SELECT fingerprint, status, resource, created_at FROM wharf.idempotency_keys
        WHERE tenant_id = %s AND key = %s
        """,
        [tenant, key],
    )
    row = await found.fetchone()
    assert row is not None
    if row["fingerprint"] != wanted:
        raise CustodyError(
            "idempotency_conflict",
            "This key was used for a request with another body. Take a new key for a new request.",
            field="Idempotency-Key",
        )
    return Replay(row["status"], row["resource"], row["created_at"])


async def record(
    transaction: Transaction, tenant: UUID, key: str | None, *, status: int, resource: Sequence[UUID]
) -> None:
    if key is not None:
        await transaction.execute(
            "UPDATE wharf.idempotency_keys SET status = %s, resource = %s WHERE tenant_id = %s AND key = %s",
            [status, list(resource), tenant, key],
        )
