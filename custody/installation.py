"""The bond between database and volume: both carry the same random id."""

from custody.database import Transaction
from custody.errors import StartError
from custody.volume import Volume


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
