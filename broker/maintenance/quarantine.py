"""The damaged copies under `quarantine/`, and when nobody needs them any more."""

import time

from custody.database import Database
from custody.integrity import Integrity
from custody.volume import Volume


async def discard_copies(database: Database, volume: Volume, keep_seconds: float) -> None:
    """Those whose content was let go of, at once: they are as much a user's picture as whole ones. Those whose content
    was healed, when they are older than `keep_seconds`. The others wait to be healed."""
    copies = await volume.quarantined()
    async with database.transaction() as transaction:
        states = await Integrity().states(transaction, [copy.sha256 for copy in copies])
    old = time.time() - keep_seconds
    await volume.discard_quarantined(
        [
            copy
            for copy in copies
            if copy.sha256 not in states or (states[copy.sha256] == "present" and copy.since <= old)
        ]
    )
