"""Notices: told after the commit, gathered on the way, and never missed for good."""

import asyncio
import time

import psycopg
import pytest

from custody.ids import new_id
from custody.notices import CHANNEL, Notices, job_ended, tasks_queued
from custody.wire import Priority

PROMPT_SECONDS = 2.0
"""Well before a waiter would have looked again by itself."""


@pytest.fixture
async def listening(domain, notices):
    """Notices that are known to listen."""
    await until_listening(domain)
    return notices


async def test_who_waits_in_another_process_is_woken(domain, listening):
    async with Notices(domain.installation.url("wharf_worker"), name="worker") as worker:
        with listening.subscribe("job:1") as subscription:
            worker.tell("job:1")
            assert await waited(subscription) < PROMPT_SECONDS


async def test_only_who_waits_for_the_topic_is_woken(listening):
    with (
        listening.subscribe("job:1") as one,
        listening.subscribe("job:1") as two,
        listening.subscribe("job:2") as other,
    ):
        waiting = [asyncio.create_task(waited(subscription)) for subscription in (one, two)]
        bystander = asyncio.create_task(waited(other))
        listening.tell("job:1")
        assert max(await asyncio.gather(*waiting)) < PROMPT_SECONDS
        await asyncio.sleep(0.2)
        assert not bystander.done()
        listening.tell("job:2")
        await bystander


async def test_what_was_told_between_subscription_and_wait_is_not_missed(listening):
    with listening.subscribe("job:1") as subscription:
        listening.tell("job:1")
        await asyncio.sleep(0.3)
        assert await waited(subscription) < PROMPT_SECONDS


async def test_a_wait_ends_when_its_time_is_over(listening):
    with listening.subscribe("job:1") as subscription:
        began = time.monotonic()
        await subscription.wait(0.2)
        assert 0.15 < time.monotonic() - began < PROMPT_SECONDS


async def test_ten_thousand_notices_of_one_topic_travel_together(domain, listening):
    async with heard(domain) as payloads:
        for _ in range(10_000):
            listening.tell(tasks_queued("digits", Priority.BATCH))
        listening.tell("last")
        await until_heard(payloads, "last")
    assert len(payloads) <= 3
    assert {topic for payload in payloads for topic in payload.split("\n")} == {"pool:digits:batch", "last"}


async def test_ten_thousand_topics_travel_in_few_notices_and_none_is_lost(domain, listening):
    topics = {job_ended(new_id()) for _ in range(10_000)}
    async with heard(domain) as payloads:
        for topic in topics:
            listening.tell(topic)
        listening.tell("last")
        await until_heard(payloads, "last")
    assert {topic for payload in payloads for topic in payload.split("\n")} == {*topics, "last"}
    assert len(payloads) < 100
    # The server refuses payloads of 8,000 bytes.
    assert max(len(payload) for payload in payloads) < 8000


async def test_notices_in_a_row_are_at_least_five_milliseconds_apart(domain, listening):
    async with heard(domain) as payloads:
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < 0.5:
            listening.tell(f"job:{number % 50}")
            number += 1
            await asyncio.sleep(0)
        listening.tell("last")
        await until_heard(payloads, "last")
    assert number > 500
    assert len(payloads) <= (time.monotonic() - began) / 0.005 + 2


async def test_who_waits_is_woken_when_the_connection_is_back(domain, listening):
    """What was told while nobody listened is found by reading again: everybody who waits must."""
    with listening.subscribe("job:1") as subscription:
        waiting = asyncio.create_task(waited(subscription))
        await asyncio.sleep(0.1)
        terminate(domain, "query = 'LISTEN wharf'")
        assert await waiting < PROMPT_SECONDS


async def test_notices_go_on_after_the_server_has_ended_every_connection(domain, listening):
    for _ in range(2):
        terminate(domain, "application_name = 'test notices'")
        await until_listening(domain)
        with listening.subscribe("job:1") as subscription:
            listening.tell("job:1")
            assert await waited(subscription) < PROMPT_SECONDS


async def test_what_was_told_while_the_server_was_away_is_told_when_it_is_back(domain, listening):
    database = domain.installation.database
    with psycopg.connect(domain.installation.postgres.url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        terminate(domain, "application_name = 'test notices'", connection)
        listening.tell("job:1")
        await asyncio.sleep(0.5)
        connection.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    async with heard(domain) as payloads:
        await until_heard(payloads, "job:1")


async def test_nobody_is_remembered_who_no_longer_waits(listening):
    with listening.subscribe("job:1"), listening.subscribe("job:1"):
        pass
    assert not listening._waiting


class heard:  # noqa: N801 - used as a function
    """The payloads that arrive from the server, as a list that grows."""

    def __init__(self, domain) -> None:
        self._url = domain.installation.url()

    async def __aenter__(self) -> list[str]:
        self._connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        await self._connection.execute(f"LISTEN {CHANNEL}")
        payloads: list[str] = []
        self._listening = asyncio.create_task(self._listen(payloads))
        return payloads

    async def _listen(self, payloads: list[str]) -> None:
        async for notice in self._connection.notifies():
            payloads.append(notice.payload)

    async def __aexit__(self, *error) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        await self._connection.close()


async def until_heard(payloads: list[str], topic: str) -> None:
    for _ in range(500):
        if any(topic in payload.split("\n") for payload in payloads):
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"{topic} was not heard")


async def until_listening(domain) -> None:
    listening = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'test notices' AND query = 'LISTEN wharf' AND state = 'idle'"
    )
    for _ in range(500):
        if domain.rows(listening):
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("nobody listens")


async def waited(subscription) -> float:
    began = time.monotonic()
    await subscription.wait()
    return time.monotonic() - began


def terminate(domain, condition: str, connection: psycopg.Connection | None = None) -> None:
    statement = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND {condition}"
    if connection is None:
        assert domain.rows(statement, [domain.installation.database])
    else:
        assert connection.execute(statement, [domain.installation.database]).fetchall()
