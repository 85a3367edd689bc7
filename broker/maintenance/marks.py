"""The mark that shows that database and volume were not put back to different moments."""

from custody import installation
from custody.database import Database
from custody.ids import new_id
from custody.removal import Removal


async def leave_mark(database: Database, removal: Removal) -> None:
    """A new one on both: from now on they belong together as they are."""
    mark = new_id()
    former = await removal.read_mark()
    async with database.transaction() as transaction:
        await installation.announce_mark(transaction, mark, former[0] if former else None)
    await removal.write_mark(mark)
    async with database.transaction() as transaction:
        await installation.settle_mark(transaction, mark)


async def suspected_restore(database: Database, removal: Removal) -> str | None:
    """As `custody.installation.suspected_restore`, while cleanups may go on: a mark that one of them left between the
    look at the volume and that at the database is no suspicion."""
    while True:
        mark = await removal.read_mark()
        async with database.transaction() as transaction:
            reason = await installation.suspected_restore(transaction, mark[0] if mark else None)
        if reason is None or await removal.read_mark() == mark:
            return reason
