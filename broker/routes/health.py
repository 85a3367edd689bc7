"""Probes, health and metrics: is the process alive, can it take work, what should somebody look at, what has it
counted."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker import fleet, problems
from broker.access import Reader
from broker.service import ServiceDep
from custody.wire import Health, HealthDetails, HealthState

router = APIRouter(tags=["health"])

OPEN: dict[str, list[str]] = {"security": []}
"""Answers without a key."""


@router.get(
    "/livez", summary="Probe whether the process lives", responses=problems.answers(*problems.ANY), openapi_extra=OPEN
)
async def livez() -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz",
    summary="Probe whether it can take work",
    responses={**problems.answers(*problems.ANY), 503: {"content": {"application/json": {"schema": {}}}}},
    openapi_extra=OPEN,
)
async def readyz(service: ServiceDep) -> Response:
    """The process can take work: database, transport and volume answer."""
    checks = await service.readiness.checks()
    ready = all(outcome == "ok" for outcome in checks.values())
    return JSONResponse({"status": "ok" if ready else "unavailable", "checks": checks}, 200 if ready else 503)


@router.get(
    "/health",
    summary="Tell whether the service works",
    response_model=Health,
    responses={**problems.answers(*problems.ANY), 503: {"model": Health}},
    openapi_extra=OPEN,
)
async def health(service: ServiceDep) -> Response:
    """For people and status pages: what /readyz says."""
    checks = await service.readiness.checks()
    ready = all(outcome == "ok" for outcome in checks.values())
    return _readable(Health(status=HealthState.OK if ready else HealthState.UNAVAILABLE, checks=dict(checks)))


@router.get(
    "/health/detailed",
    summary="Tell how all parts are",
    response_model=HealthDetails,
    responses={
        **(refused := problems.answers(*problems.KEYED)),
        503: {**refused[503], "model": HealthDetails},
    },
)
async def health_detailed(service: ServiceDep, principal: Reader) -> Response:
    """All parts, what waits for each model, and what somebody should look at."""
    return _readable(await fleet.look(service, principal.tenant_id))


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses=problems.answers(*problems.KEYED),
)
async def metrics(service: ServiceDep, principal: Reader) -> Response:
    """Counters, gauges and histograms of this process, in Prometheus' text format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _readable(health: Health) -> Response:
    status = 503 if health.status is HealthState.UNAVAILABLE else 200
    return Response(health.model_dump_json(indent=2) + "\n", status, media_type="application/json")
