"""Erasure: a tenant takes a picture back, with all that was made of it, and gets a receipt."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from custody.database import Transaction
from custody.ids import new_id
from custody.wire import PurgeReceipt

RECEIPT = "p.id, p.sha256, p.file_ids, p.results, p.tasks_cancelled, p.purged_at, p.bytes_gone_by"


@dataclass(frozen=True)
class PurgedFile:
    id: UUID
    sha256: str


@dataclass(frozen=True)
class Purged:
    """`jobs`: those of which inputs were cancelled. `Jobs.finish` them after the commit; what nobody does for them, a
    reconcile will. `again`: it was done before, and this is the receipt of that."""

    receipt: PurgeReceipt
    jobs: Sequence[UUID] = ()
    again: bool = False

    @property
    def files(self) -> Sequence[PurgedFile]:
        return [PurgedFile(file_id, self.receipt.sha256) for file_id in self.receipt.file_ids]


async def purge_file(transaction: Transaction, file_id: UUID, *, gone_within: float) -> Purged | None:
    """Takes away all that the tenant has of this file's bytes; where that was done before, its receipt. None where the
    tenant has no such file. `gone_within`: seconds until a cleanup will have removed the bytes."""
    found = await transaction.execute("SELECT sha256 FROM wharf.files WHERE id = %s", [file_id])
    row = await found.fetchone()
    purged = None if row is None else await _purge(transaction, row["sha256"], gone_within)
    if purged is not None:
        return purged
    return await _known(
        transaction, "JOIN wharf.purged_files f ON f.purge_id = p.id WHERE f.file_id = %s LIMIT 1", file_id
    )


async def purge_content(transaction: Transaction, sha256: bytes, *, gone_within: float) -> Purged | None:
    """`purge_file` by the bytes: for what no file speaks of any more, the results of jobs say."""
    purged = await _purge(transaction, sha256, gone_within)
    return purged or await _known(transaction, "WHERE p.sha256 = %s ORDER BY p.id DESC LIMIT 1", sha256)


async def _purge(transaction: Transaction, sha256: bytes, gone_within: float) -> Purged | None:
    receipt_id = new_id()
    changed = await transaction.execute(
        "SELECT wharf.purge(%s, %s, make_interval(secs => %s::float8)) AS jobs", [sha256, receipt_id, gone_within]
    )
    row = await changed.fetchone()
    assert row is not None
    if row["jobs"] is None:
        return None
    purged = await _known(transaction, "WHERE p.id = %s", receipt_id)
    assert purged is not None
    return Purged(purged.receipt, row["jobs"])


async def _known(transaction: Transaction, condition: str, value: UUID | bytes) -> Purged | None:
    found = await transaction.execute(f"SELECT {RECEIPT} FROM wharf.purges p {condition}", [value])
    row = await found.fetchone()
    if row is None:
        return None
    receipt = PurgeReceipt(**{**row, "sha256": row["sha256"].hex(), "files": len(row["file_ids"])})
    return Purged(receipt, again=True)
