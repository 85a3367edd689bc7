"""/health where a part is at fault. How it looks where all is well: tests/e2e/test_fleet_api.py."""

import asyncio
from pathlib import Path

import httpx
import pytest

from broker import readiness
from broker.app import build_app
from broker.backlog import Backlog
from broker.cluster import ClusterView
from broker.media import Prober
from broker.metrics import BrokerMetrics
from broker.readiness import Readiness
from broker.room import Room
from broker.service import Service
from broker.settings import BrokerSettings
from custody import tenants
from custody.audit import Audit
from custody.ids import new_id
from custody.integrity import seen_quarantined
from custody.wire import Role
from tests.support.domain import Domain

OK = {"database": "ok", "transport": "ok", "volume": "ok"}


@pytest.fixture
async def http(domain: Domain, acme, notices):
    settings = BrokerSettings(database_url="postgresql://", volume=domain.installation.volume)
    room = Room(domain.volume, settings.watermarks)
    metrics = BrokerMetrics()
    service = Service(
        settings=settings,
        database=domain.api,
        volume=domain.volume,
        files=domain.files,
        jobs=domain.jobs,
        tasks=domain.tasks,
        audit=Audit("none"),
        backlog=Backlog(pool_limit=1000, tenant_limit=1000),
        notices=notices,
        probe=Prober(settings.max_pixels),
        readiness=Readiness(domain.api, domain.volume, room, needs_worker=False, tell=metrics.tell),
        room=room,
        metrics=metrics,
        cluster=ClusterView(None, instance="broker-1"),
        stopping=asyncio.Event(),
    )
    async with domain.api.transaction(acme) as transaction:
        owner = tenants.Principal(new_id(), Role.ADMIN, acme, "acme")
        key = await tenants.create_key(transaction, owner, "status page", Role.READER, None)
    transport = httpx.ASGITransport(build_app(service))
    headers = {"Authorization": f"Bearer {key.secret}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://broker", headers=headers) as client:
        yield client


@pytest.fixture
def broken_volume(installation) -> Path:
    staging = installation.volume / "staging"
    staging.rename(staging.with_name("gone"))
    return staging


async def test_a_volume_that_takes_no_file_makes_it_unavailable(http, broken_volume):
    for address in ("/health", "/health/detailed"):
        answer = await http.get(address)
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        checks = answer.json()["checks"]
        assert checks == {**OK, "volume": checks["volume"]}
        assert "ENOENT" in checks["volume"]
    assert answer.json()["volume"] is None
    assert answer.json()["database"]["latency_ms"] > 0


async def test_what_waits_where_nobody_works_or_may_is_a_warning_and_what_is_served_is_none(http, domain, acme):
    domain.add_worker("w1")
    await domain.submit(acme, inputs=2)
    served = (await http.get("/health/detailed")).json()
    assert (served["status"], served["checks"], served["warnings"]) == ("ok", OK, [])
    assert served["volume"]["free_bytes"] > 0
    domain.rows("UPDATE wharf.workers SET seen_at = now() - interval '31 seconds'")
    [warning] = (await http.get("/health/detailed")).json()["warnings"]
    assert warning == "2 inputs wait for digits, and no worker serves it. Start one: wharf worker --model digits"
    domain.rows("UPDATE wharf.workers SET seen_at = now()")
    domain.rows("INSERT INTO wharf.pools (name, state) VALUES ('digits', 'paused')")
    paused = (await http.get("/health/detailed")).json()
    assert paused["warnings"] == ["2 inputs wait for digits, which is paused. To go on: wharf pools resume digits"]
    assert paused["status"] == "degraded"


async def test_quarantined_bytes_and_a_sweep_that_is_off_are_told_until_they_are_set_right(http, domain, monkeypatch):
    monkeypatch.setattr(readiness, "GOOD_SECONDS", 0)

    async def told() -> tuple[dict, list[str], set[str]]:
        details = (await http.get("/health/detailed")).json()
        lines = (await http.get("/metrics")).text.splitlines()
        figures = {line for line in lines if line.startswith(("wharf_blobs_quarantined ", "wharf_last_cleanup_sweep"))}
        return details["custody"], details["warnings"], figures

    well = (
        {"quarantined": 0, "sweep_off": None}, [], {"wharf_blobs_quarantined 0.0", "wharf_last_cleanup_sweep_off 0.0"},
    )  # fmt: skip
    assert await told() == well
    await domain.change(
        """
        INSERT INTO wharf.blobs (sha256, size, state, fault)
        SELECT sha256(n::text::bytea), 1, 'quarantined', 'missing' FROM generate_series(1, 2) n
        """
    )
    await domain.change("UPDATE wharf.installation SET sweep_off_since = '2026-01-02 03:04Z', sweep_off_reason = 'Old'")
    custody, [sweep, quarantined], figures = await told()
    assert custody == {"quarantined": 2, "sweep_off": "Old"}
    assert sweep.startswith("Since 2026-01-02 03:04 UTC no bytes without a row are removed. Old ")
    assert quarantined.startswith("Contents with damaged or missing bytes: 2. ")
    assert figures == {"wharf_blobs_quarantined 2.0", "wharf_last_cleanup_sweep_off 1.0"}
    await domain.change("UPDATE wharf.installation SET sweep_off_since = NULL, sweep_off_reason = NULL")
    await domain.change("DELETE FROM wharf.blobs")
    assert await told() == well


async def test_no_more_quarantined_bytes_are_counted_than_there_is_an_interest_in(domain):
    await domain.change(
        """
        INSERT INTO wharf.blobs (sha256, size, state, fault)
        SELECT sha256(n::text::bytea), 1, 'quarantined', 'missing' FROM generate_series(1, 20) n
        """
    )
    async with domain.api.transaction() as transaction:
        assert await seen_quarantined(transaction, most=7) == 7
