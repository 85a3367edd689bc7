"""Through a transaction pooler: each transaction may be on another session of the server, and nothing outlasts it."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest

from custody.database import Database
from custody.ids import new_id
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


async def test_a_statement_by_itself_is_seen_by_its_tenant_and_the_next_one_on_that_session_is_not(pooled: str) -> None:
    """The tenant and the statement go out together, without a BEGIN: the pooler keeps them together."""
    seen = "SELECT nullif(current_setting('wharf.tenant', true), '') AS tenant"
    async with Database(pooled, name="test", role="wharf_api", size=4, prepares=False) as database:

        async def ask(tenant: UUID | None) -> None:
            for _ in range(20):
                async with database.statements(tenant) as statements:
                    found = await statements.execute(seen)
                    assert await found.fetchone() == {"tenant": tenant and str(tenant)}

        await asyncio.gather(*(ask(tenant) for tenant in (new_id(), None, new_id(), None, new_id(), None)))


async def test_a_notice_is_heard_from_the_server_itself_alone(installation: Installation, pooled: str) -> None:
    assert await are_heard(installation.url("wharf_api"))
    assert not await are_heard(pooled)
