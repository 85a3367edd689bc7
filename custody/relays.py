"""Relays: which of them live, and whether they reach the queue."""

from custody.database import Transaction
from custody.wire import Relay

RELAY_SILENT_SECONDS = 30.0
"""A relay that has not been seen for longer does not count as living."""


async def report_relay(transaction: Transaction, relay: str, fault: str | None, *, release: str) -> None:
    """This relay lives: said at its start and every few seconds. `fault`: why it reaches no queue; None: it does. Those
    that were killed and never came back are forgotten after a day."""
    await transaction.execute(
        """
        WITH long_gone AS (DELETE FROM wharf.relays WHERE seen_at < now() - interval '1 day')
        INSERT INTO wharf.relays (name, fault, release) VALUES (%s, %s, %s)
        ON CONFLICT (name) DO UPDATE SET fault = excluded.fault, release = excluded.release, seen_at = now()
        """,
        [relay, fault, release],
    )


async def list_relays(transaction: Transaction) -> list[Relay]:
    found = await transaction.execute(
        """
        SELECT name, started_at, seen_at, fault, release, seen_at > now() - make_interval(secs => %s) AS living
        FROM wharf.relays ORDER BY name
        """,
        [RELAY_SILENT_SECONDS],
    )
    return [Relay(**row) for row in await found.fetchall()]


async def forget_relay(transaction: Transaction, relay: str) -> None:
    await transaction.execute("DELETE FROM wharf.relays WHERE name = %s", [relay])
