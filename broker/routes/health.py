"""Probes and metrics: is the process alive, can it take work, what has it counted."""

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker.access import Reader
from broker.service import Service, ServiceDep
from custody import models
from custody.errors import CustodyError

router = APIRouter(tags=["health"])

CHECK_SECONDS = 3.0


@router.get("/livez")
async def livez() -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", responses={503: {}})
async def readyz(service: ServiceDep) -> Response:
    """The process can take work: database, transport and volume answer."""
    checks = {
        "database": _database(service),
        "volume": service.volume.check_writable(),
    }
    if service.settings.ready_needs_worker:
        checks["worker"] = _worker(service)
    found = dict(zip(checks, await asyncio.gather(*map(_outcome, checks.values())), strict=True))
    # The embedded transport is the database: the relay's own connection joins here with RabbitMQ.
    found["transport"] = found["database"]
    ready = all(outcome == "ok" for outcome in found.values())
    return JSONResponse({"status": "ok" if ready else "unavailable", "checks": found}, 200 if ready else 503)


@router.get("/metrics")
async def metrics(service: ServiceDep, principal: Reader) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _database(service: Service) -> None:
    async with service.database.transaction():
        pass  # It has asked the server for the tenant's view already.


async def _worker(service: Service) -> None:
    async with service.database.transaction() as transaction:
        if not any(model.ready_workers for model in await models.list_models(transaction)):
            raise CustodyError("model_not_found", "no warm worker yet")


async def _outcome(check: Awaitable[None]) -> str:
    try:
        await asyncio.wait_for(check, CHECK_SECONDS)
    except CustodyError as error:
        return error.detail
    except TimeoutError:
        return f"no answer in {CHECK_SECONDS:.0f} s"
    return "ok"
