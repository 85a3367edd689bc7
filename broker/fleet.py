"""The whole service as somebody who looks after it wants to see it: its parts, its pools, and what is wrong."""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from uuid import UUID

from broker.readiness import MOST_QUARANTINED
from broker.room import Room
from broker.service import Service
from custody import database, pools, relays
from custody.installation import SweepOff, sweep_off
from custody.integrity import seen_quarantined
from custody.pressure import ADVICE
from custody.wire import (
    CustodyHealth,
    DatabaseHealth,
    HealthDetails,
    HealthState,
    Pool,
    PoolState,
    Relay,
    VolumeHealth,
)

OK = "ok"


async def look(service: Service, tenant: UUID) -> HealthDetails:
    """Raises `CustodyError("database_unavailable")`: without the database there is nothing to tell."""
    checks = await service.readiness.checks()
    async with service.database.transaction(tenant) as transaction:
        began = time.perf_counter()
        server = await database.describe(transaction)
        latency = time.perf_counter() - began
        off = await sweep_off(transaction)
        quarantined = await seen_quarantined(transaction, most=MOST_QUARANTINED)
        known_relays = await relays.list_relays(transaction)
        known_pools = await pools.list_pools(transaction, service.backlog.waiting)
    warnings = [
        *_of_volume(service.room),
        *_of_custody(off, quarantined),
        *_of_relays(known_relays),
        *(warning for pool in known_pools for warning in _of_pool(pool)),
    ]
    usage = service.room.usage if checks["volume"] == OK else None
    return HealthDetails(
        status=_status(checks, warnings),
        checks=dict(checks),
        warnings=warnings,
        database=DatabaseHealth(version=server.version, latency_ms=round(latency * 1000, 3)),
        volume=None
        if usage is None
        else VolumeHealth(used_bytes=usage.used, free_bytes=usage.free, takes_uploads=not service.room.is_pressed),
        custody=CustodyHealth(quarantined=quarantined, sweep_off=off.reason if off else None),
        relays=known_relays,
        pools=known_pools,
    )


def _status(checks: Mapping[str, str], warnings: Sequence[str]) -> HealthState:
    if any(outcome != OK for outcome in checks.values()):
        return HealthState.UNAVAILABLE
    return HealthState.DEGRADED if warnings else HealthState.OK


def _of_volume(room: Room) -> Iterator[str]:
    if room.is_pressed and room.usage is not None:
        free = f"{room.usage.free / 2**30:.1f} GiB of {room.usage.total / 2**30:.1f} GiB are free"
        yield f"The volume is nearly full ({free}): uploads are refused. {ADVICE}"


def _of_custody(off: SweepOff | None, quarantined: int) -> Iterator[str]:
    if off is not None:
        yield (
            f"Since {off.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC no bytes without a row are removed. {off.reason} "
            "Look at what is missing with `wharf verify`, then accept it with `wharf verify --accept`."
        )
    if quarantined:
        many = f"{quarantined}{' or more' * (quarantined == MOST_QUARANTINED)}"
        yield (
            f"Contents with damaged or missing bytes: {many}. `wharf verify` says whose files they are; an upload of "
            "the same bytes heals them."
        )


def _of_relays(known: Sequence[Relay]) -> Iterator[str]:
    if known and not any(relay.living for relay in known):
        yield "No relay lives: nothing new reaches the queue. Start `wharf relay`."
    for relay in known:
        if relay.living and relay.fault is not None:
            yield f"The relay {relay.name} reaches no queue: {relay.fault}"


def _of_pool(pool: Pool) -> Iterator[str]:
    waiting = f"{pool.waiting} input{'s' * (pool.waiting != 1)} wait{'s' * (pool.waiting == 1)} for {pool.name}"
    if pool.waiting and not pool.workers:
        yield f"{waiting}, and no worker serves it. Start one: wharf worker --model {pool.name}"
    if pool.waiting and pool.state is PoolState.PAUSED:
        yield f"{waiting}, which is paused. To go on: wharf pools resume {pool.name}"
