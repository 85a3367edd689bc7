"""The probes of processes that serve nothing else: they tell a loop that stands still from one that has much to do."""

import asyncio
import time

import httpx
import pytest
from prometheus_client import CollectorRegistry

from custody import health
from custody.health import HealthServer, Pulse
from tests.e2e.service import free_port


async def test_a_loop_that_stands_still_is_not_alive_and_one_that_waits_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEAF_SECONDS", 2.0)
    port, pulse = free_port(), Pulse()
    beating = asyncio.create_task(pulse.beat())

    def probe() -> int:
        return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=10, trust_env=False).status_code

    def stands_still() -> asyncio.Future[int]:
        asked = asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(3), probe())[1])
        time.sleep(4)
        return asked

    with HealthServer("127.0.0.1", port, CollectorRegistry(), is_alive=pulse.is_recent, is_ready=lambda: False):
        await asyncio.sleep(3)  # nothing to do is no standstill
        assert await asyncio.to_thread(probe) == 200
        assert await stands_still() == 503
        await asyncio.sleep(1.5)
        assert await asyncio.to_thread(probe) == 200
    beating.cancel()
