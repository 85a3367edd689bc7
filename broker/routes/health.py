"""Probes, health and metrics: is the process alive, can it take work, what should somebody look at, what has it
counted."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker import fleet
from broker.access import Reader
from broker.service import ServiceDep
from custody.wire import Health, HealthDetails, HealthState

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", responses={503: {}})
async def readyz(service: ServiceDep) -> Response:
    """The process can take work: database, transport and volume answer."""
    checks = await service.readiness.checks()
    ready = all(outcome == "ok" for outcome in checks.values())
    return JSONResponse({"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503)


@router.get("/health", response_model=Health, responses={503: {"model": Health}})
async def health(service: ServiceDep) -> Response:
    """For people and status pages: what /readyz says."""
    checks = await service.readiness.checks()
    ready = all(outcome == "ok" for outcome in checks.values())
    return _readable(Health(status=HealthState.OK if ready else HealthState.UNAVAILABLE, checks=dict(checks)))


@router.get("/health/detailed", response_model=HealthDetails, responses={503: {"model": HealthDetails}})
async def health_detailed(service: ServiceDep, principal: Reader) -> Response:
    """All parts, what waits for each model, and what somebody should look at."""
    return _readable(await fleet.look(service, principal.tenant_id))


@router.get("/metrics")
async def metrics(service: ServiceDep, principal: Reader) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _readable(health: Health) -> Response:
    status = 503 if health.status is HealthState.UNAVAILABLE else 200
    return Response(health.model_dump_json(indent=2) + "\n", status, media_type="application/json")
