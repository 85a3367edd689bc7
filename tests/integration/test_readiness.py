"""Readiness: what it says of parts that answer, and of one that hangs."""

import asyncio
import threading

from broker import readiness
from broker.readiness import Readiness
from broker.room import Room
from custody.pressure import Watermarks
from custody.volume import Volume


class HangingVolume(Volume):
    """As on a mount whose server is gone: the call keeps its thread."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.answers = threading.Event()
        self.asked = 0

    async def check_writable(self):
        self.asked += 1
        await self.run(self.answers.wait)


async def test_a_volume_that_hangs_is_told_in_time_asked_once_and_ready_when_it_answers(
    installation, api_database, monkeypatch
):
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.3)
    monkeypatch.setattr(readiness, "GOOD_SECONDS", 0)
    volume = HangingVolume(installation.volume, instance="broker")
    room = Room(volume, Watermarks(0.95, 0.9, 1 << 30))
    ready = Readiness(api_database, volume, room, needs_worker=False)
    try:
        for _ in range(3):
            checks = await ready.checks()
            assert checks["volume"].startswith("no answer")
            assert (checks["database"], checks["transport"]) == ("ok", "ok")
        assert (volume.asked, room.usage) == (1, None)
    finally:
        volume.answers.set()
    assert set((await ready.checks()).values()) == {"ok"}
    assert room.usage.free > 0


async def test_a_broker_that_leaves_says_so_at_once_whatever_hangs(installation, api_database):
    volume = HangingVolume(installation.volume, instance="broker")
    ready = Readiness(api_database, volume, Room(volume, Watermarks(0.95, 0.9, 1 << 30)), needs_worker=False)
    looking = asyncio.create_task(ready.checks())
    try:
        await asyncio.sleep(0)
        ready.leave()
        assert await asyncio.wait_for(ready.checks(), readiness.CHECK_SECONDS / 2) == {"broker": "was asked to end"}
    finally:
        volume.answers.set()
        await looking
