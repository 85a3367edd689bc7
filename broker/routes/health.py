"""Probes and metrics: is the process alive, can it take work, what has it counted."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker.access import Reader
from broker.service import ServiceDep

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


@router.get("/metrics")
async def metrics(service: ServiceDep, principal: Reader) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
