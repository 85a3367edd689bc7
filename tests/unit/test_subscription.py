"""Waiting for a notice: whoever is told to end while it waits ends."""

import asyncio

import pytest

from custody.notices import Subscription


async def test_a_wait_that_is_cancelled_just_as_it_is_told_is_cancelled() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(Subscription(event).wait(60))
    await asyncio.sleep(0.01)
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_wait_ends_in_time_and_when_it_is_told() -> None:
    event = asyncio.Event()
    subscription = Subscription(event)
    await asyncio.wait_for(subscription.wait(0.01), 5)
    event.set()
    await asyncio.wait_for(subscription.wait(60), 5)
    assert not event.is_set()
