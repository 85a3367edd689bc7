"""Receipts: who uploaded, read, inferred and deleted what. They are added in the transaction of their effect, and never
changed."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from custody.database import UNAVAILABLE, UNAVAILABLE_CLASSES, Transaction
from custody.erasure import PurgedFile
from custody.errors import CustodyError
from custody.ids import new_id
from custody.tenants import Principal
from custody.wire import File, Outcome, Receipt, ReceiptFile

YOUNGEST_FORGOTTEN_DAYS = 30
"""The database refuses to remove a younger receipt."""

ADD = """
    WITH receipt AS (
        INSERT INTO wharf.audit
            (tenant_id, id, at, key_id, request_id, action, outcome, files, sha256, jobs, keys, names, details)
        VALUES (wharf.current_tenant(), %(id)s, %(at)s, %(key)s, %(request)s, %(action)s, %(outcome)s,
            %(files)s::uuid[], %(sha256)s::bytea[], %(jobs)s::uuid[], %(keys)s::uuid[], %(names)s::text[], %(details)s)
    )
    INSERT INTO wharf.audit_objects (tenant_id, object_id, receipt_id)
    SELECT wharf.current_tenant(), object_id, %(id)s
    FROM unnest(%(files)s::uuid[] || %(jobs)s::uuid[] || %(keys)s::uuid[]) AS object_id
"""

COLUMNS = (
    "a.id, a.at, a.key_id, a.request_id, a.action, a.outcome, a.files, a.sha256, a.jobs, a.keys, a.names, a.details"
)


OF_OBJECT = """
    wharf.audit_objects o JOIN wharf.audit a ON a.tenant_id = o.tenant_id AND a.id = o.receipt_id
"""


class Action(StrEnum):
    """What was done, as `noun.deed`. `SEEN` and `LISTED` are reads of what is no content: see `WHARF_AUDIT_READS`."""

    FILE_UPLOADED = "file.uploaded"
    FILE_ADDED = "file.added"
    FILE_READ = "file.read"
    FILE_CHANGED = "file.changed"
    FILE_DELETED = "file.deleted"
    FILE_PURGED = "file.purged"
    FILE_SEEN = "file.seen"
    FILE_LISTED = "file.listed"
    JOB_PREDICTED = "job.predicted"
    JOB_SUBMITTED = "job.submitted"
    JOB_RERUN = "job.rerun"
    JOB_RETRIED = "job.retried"
    JOB_CANCELLED = "job.cancelled"
    JOB_SEEN = "job.seen"
    JOB_LISTED = "job.listed"
    RESULTS_READ = "results.read"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    KEY_LISTED = "key.listed"
    MODEL_RETIRED = "model.retired"
    MODEL_SEEN = "model.seen"
    MODEL_LISTED = "model.listed"
    POOL_PAUSED = "pool.paused"
    POOL_DRAINED = "pool.drained"
    POOL_RESUMED = "pool.resumed"
    POOL_LISTED = "pool.listed"
    CLUSTER_SEEN = "cluster.seen"
    TENANT_CHANGED = "tenant.changed"
    TENANT_SEEN = "tenant.seen"
    AUDIT_LISTED = "audit.listed"


READS = MappingProxyType(
    {
        "none": frozenset[Action](),
        "content": frozenset({Action.FILE_READ, Action.RESULTS_READ}),
        "all": frozenset(action for action in Action if action.value.endswith((".read", ".seen", ".listed"))),
    }
)
"""By the value of `WHARF_AUDIT_READS`: which reads have a receipt. Everything that is no read has one."""


class Audit:
    def __init__(self, reads: Literal["none", "content", "all"]) -> None:
        self._left_out = READS["all"] - READS[reads]

    def keeps(self, action: Action) -> bool:
        return action not in self._left_out

    async def record(
        self,
        transaction: Transaction,
        principal: Principal,
        request_id: str,
        action: Action,
        *,
        outcome: Outcome = Outcome.DONE,
        files: Sequence[File | PurgedFile] = (),
        sha256: Sequence[bytes] = (),
        jobs: Sequence[UUID] = (),
        keys: Sequence[UUID] = (),
        names: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """A receipt of the tenant that the transaction sees, unless it is of a read that is left out. A file that is
        named twice is in it once. `sha256`: bytes that were asked for, and no file. `details`: a few words, nothing
        secret.

        Raises `CustodyError("audit_unavailable")` where it cannot be written: then nothing may be done or told."""
        if not self.keeps(action):
            return
        receipt_id = new_id()
        distinct = {file.id: file.sha256 for file in files}
        digests = [*distinct.values(), *(each.hex() for each in sha256)]
        values = {
            "id": receipt_id,
            "at": _time_in(receipt_id),
            "key": principal.key_id,
            "request": request_id,
            "action": action.value,
            "outcome": outcome.value,
            "files": _array(distinct),
            "sha256": _array(f'"\\\\x{digest}"' for digest in digests),
            "jobs": _array(jobs),
            "keys": _array(keys),
            "names": list(names) or None,
            "details": Jsonb(dict(details)) if details else None,
        }
        try:
            await transaction.execute(ADD, values)
        except psycopg.Error as error:
            if isinstance(error, UNAVAILABLE) or (error.sqlstate or "")[:2] in UNAVAILABLE_CLASSES:
                raise
            raise CustodyError(
                "audit_unavailable",
                "The receipt of this request cannot be written, so it was refused. Nothing was changed.",
                retry_after=5,
            ) from error


async def page(
    transaction: Transaction,
    *,
    before: UUID | None,
    limit: int,
    object_id: UUID | None = None,
    key_id: UUID | None = None,
    action: str | None = None,
    request_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Receipt]:
    """Newest first; `before`: the last id of the page before; `object_id`: of a file, job or key that they name;
    `since` is included, `until` is not."""
    below = [bound for bound in (before, None if until is None else _first_id_at(until)) if bound is not None]
    wanted: list[tuple[str, object]] = [
        ("a.id < %s", min(below, default=None)),
        ("a.id >= %s", None if since is None else _first_id_at(since)),
        ("a.key_id = %s", key_id),
        ("a.action = %s", action),
        ("a.request_id = %s", request_id),
        ("o.object_id = %s", object_id),
        ("o.receipt_id < %s", min(below, default=None) if object_id else None),
    ]
    named = [(condition, value) for condition, value in wanted if value is not None]
    # What is not asked for is left out, and each is planned for its own values: one plan would fit no two of them.
    found = await transaction.execute(
        f"""
        SELECT {COLUMNS} FROM {"wharf.audit a" if object_id is None else OF_OBJECT}
        WHERE {" AND ".join(condition for condition, _ in named) or "true"}
        ORDER BY {"a.id" if object_id is None else "o.receipt_id"} DESC LIMIT %s
        """,
        [*(value for _, value in named), limit],
        prepare=False,
    )
    return [_receipt(row) for row in await found.fetchall()]


async def forget(transaction: Transaction, *, older_than_days: int, limit: int) -> int:
    """Removes up to `limit` receipts of all tenants, the oldest of each first; gives how many. For the cleanup's role;
    younger than `YOUNGEST_FORGOTTEN_DAYS` stay, whatever is asked."""
    found = await transaction.execute("SELECT wharf.forget_receipts(%s, %s) AS gone", [older_than_days, limit])
    row = await found.fetchone()
    assert row is not None
    return int(row["gone"])


def _array(values: Iterable[object]) -> str | None:
    """Of ids or digests, as PostgreSQL reads it; None for an empty one. psycopg's own way costs as much as the rest of
    the receipt."""
    return "{" + joined + "}" if (joined := ",".join(map(str, values))) else None


def _receipt(row: DictRow) -> Receipt:
    ids, digests = row["files"] or [], row["sha256"] or []
    return Receipt(
        id=row["id"],
        at=row["at"],
        key_id=row["key_id"],
        request_id=row["request_id"],
        action=row["action"],
        outcome=row["outcome"],
        files=[
            ReceiptFile(id=file_id, sha256=None if digest is None else digest.hex())
            for file_id, digest in zip_longest(ids, digests)
        ],
        jobs=row["jobs"] or [],
        keys=row["keys"] or [],
        names=row["names"] or [],
        details=row["details"] or {},
    )


def _time_in(receipt_id: UUID) -> datetime:
    """One time for all: the order, the filters and what is shown never disagree."""
    return datetime.fromtimestamp((receipt_id.int >> 80) / 1000, UTC)


def _first_id_at(moment: datetime) -> UUID:
    milliseconds = -(-int(moment.timestamp() * 1_000_000) // 1000)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)
