"""A process that falls silent inside a transaction, paused or cut off, does not keep its locks."""

import psycopg
import pytest

from custody.database import Database
from custody.errors import CustodyError
from tests.conftest import Installation


async def test_the_server_ends_a_silent_transaction_and_its_process_is_told(installation: Installation) -> None:
    async with Database(installation.url("wharf_worker"), name="test", idle_seconds=0.3) as database:

        async def fall_silent() -> None:
            async with database.transaction() as transaction:
                await transaction.execute("LOCK TABLE wharf.workers IN ROW EXCLUSIVE MODE")
                assert not await locks(installation, seconds=0)
                assert await locks(installation, seconds=5)
                await transaction.execute("SELECT 1")

        with pytest.raises(CustodyError) as told:
            await fall_silent()
        assert told.value.code == "database_unavailable"
        async with database.transaction() as again:
            await again.execute("SELECT 1")


async def locks(installation: Installation, *, seconds: float) -> bool:
    """Whether the table can be had for oneself within this time."""
    connection = await psycopg.AsyncConnection.connect(installation.url())
    async with connection:
        await connection.execute(f"SET lock_timeout = '{max(1, round(seconds * 1000))}ms'")
        try:
            await connection.execute("LOCK TABLE wharf.workers IN ACCESS EXCLUSIVE MODE")
        except psycopg.errors.LockNotAvailable:
            return False
        return True
