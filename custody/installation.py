"""The bond between database and volume: both carry the same random id, and the mark of the last cleanup."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from custody.database import Transaction
from custody.errors import StartError
from custody.volume import Volume


@dataclass(frozen=True)
class SweepOff:
    """Why no bytes are taken for orphans, until an operator has accepted it."""

    since: datetime
    reason: str


async def check_volume(transaction: Transaction, volume: Volume) -> None:
    """Raises `StartError` where the volume belongs to another database: files would be promised that are not there."""
    found = await transaction.execute("SELECT volume_id FROM wharf.installation")
    row = await found.fetchone()
    mounted = volume.identity()
    if row is None or row["volume_id"] != mounted:
        raise StartError(
            f"WHARF_VOLUME: {volume.root} carries the id {mounted}, the database expects "
            f"{row['volume_id'] if row else 'none yet'}. Mount the volume that belongs to this database, "
            "or run `wharf migrate` for a new pair."
        )


async def sweep_off(transaction: Transaction) -> SweepOff | None:
    found = await transaction.execute("SELECT sweep_off_since, sweep_off_reason FROM wharf.installation")
    row = await found.fetchone()
    if row is None or row["sweep_off_since"] is None:
        return None
    return SweepOff(row["sweep_off_since"], row["sweep_off_reason"])


async def suspected_restore(transaction: Transaction, mark: UUID | None) -> str | None:
    """Why database or volume may have been put back to an older state; None where they are as the last cleanup left
    them. `mark`: the volume's."""
    found = await transaction.execute("SELECT checkpoint, checkpoint_next, fingerprint FROM wharf.installation")
    row = await found.fetchone()
    assert row is not None
    if mark not in (row["checkpoint"], row["checkpoint_next"]):
        return "The volume does not carry the mark of this database's last cleanup: one of the two is older."
    if row["fingerprint"] not in (None, await _fingerprint(transaction)):
        return "The database is another one, or was put back or promoted, since the last cleanup."
    return None


async def turn_sweep_off(transaction: Transaction, reason: str) -> None:
    """The first reason stands."""
    await transaction.execute(
        "UPDATE wharf.installation SET sweep_off_since = now(), sweep_off_reason = %s WHERE sweep_off_since IS NULL",
        [reason],
    )


async def turn_sweep_on(transaction: Transaction) -> None:
    """An operator has accepted what a restore has cost."""
    await transaction.execute("UPDATE wharf.installation SET sweep_off_since = NULL, sweep_off_reason = NULL")


async def announce_mark(transaction: Transaction, mark: UUID, former: UUID | None) -> None:
    """Commit it before the volume is given the mark, and `settle_mark` after: whichever of the two a crash leaves on
    the volume, the database knows it. `former`: the volume's until then, which may be one that was never settled."""
    await transaction.execute(
        """
        UPDATE wharf.installation SET checkpoint_next = %(mark)s,
            checkpoint = CASE WHEN checkpoint_next = %(former)s::uuid THEN checkpoint_next ELSE checkpoint END
        """,
        {"mark": mark, "former": former},
    )


async def settle_mark(transaction: Transaction, mark: UUID) -> None:
    await transaction.execute(
        "UPDATE wharf.installation SET checkpoint = %s, fingerprint = %s", [mark, await _fingerprint(transaction)]
    )


async def _fingerprint(transaction: Transaction) -> str:
    """Of this server, its timeline, and this database on it. A restore makes at least one of them another."""
    found = await transaction.execute("SELECT has_function_privilege('pg_control_system()', 'EXECUTE') AS allowed")
    row = await found.fetchone()
    assert row is not None
    system = "(SELECT system_identifier FROM pg_control_system())" if row["allowed"] else "0"
    found = await transaction.execute(
        f"""
        SELECT concat_ws('/', {system}, left(pg_walfile_name(pg_current_wal_lsn()), 8), d.oid) AS fingerprint
        FROM pg_database d WHERE d.datname = current_database()
        """
    )
    row = await found.fetchone()
    assert row is not None
    return str(row["fingerprint"])
