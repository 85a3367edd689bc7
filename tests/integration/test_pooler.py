"""Through a transaction pooler: each transaction may be on another session of the server, and nothing outlasts it."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from custody.database import Database
from custody.notices import are_heard
from tests.conftest import Installation
from tests.support.pgbouncer import pgbouncer


@pytest.fixture
def pooled(installation: Installation) -> Iterator[str]:
    with pgbouncer(installation.url()) as through:
        yield through(installation.url("wharf_api"))


async def ask_often(url: str, *, prepares: bool) -> None:
    """The same statements again and again, in more transactions at a time than the pooler has sessions."""
    async with Database(url, name="test", role="wharf_api", size=4, prepares=prepares) as database:

        async def ask(number: int) -> None:
            for _ in range(20):
                async with database.transaction() as transaction:
                    found = await transaction.execute("SELECT %s::int AS number", [number])
                    assert await found.fetchone() == {"number": number}

        await asyncio.gather(*(ask(number) for number in range(8)))


async def test_statements_come_through_where_none_is_prepared(pooled: str) -> None:
    await ask_often(pooled, prepares=False)


async def test_prepared_ones_would_not(pooled: str) -> None:
    """By an old PgBouncer, at least: else the test above proves nothing, and says so here."""
    try:
        await ask_often(pooled, prepares=True)
    except (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName):
        return
    pytest.skip("this pgbouncer knows prepared statements")


async def test_a_notice_is_heard_from_the_server_itself_alone(installation: Installation, pooled: str) -> None:
    assert await are_heard(installation.url("wharf_api"))
    assert not await are_heard(pooled)
