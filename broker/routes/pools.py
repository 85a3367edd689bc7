"""/v1/pools: what waits for each model and who works on it; operators pause, drain and resume."""

from fastapi import APIRouter, Request, Response

from broker import problems
from broker.access import Admin, Reader
from broker.answers import answer
from broker.service import Service, ServiceDep
from custody import pools
from custody.audit import Action
from custody.notices import tasks_queued
from custody.tenants import Principal
from custody.wire import Pool, PoolList, PoolState, Priority

router = APIRouter(prefix="/v1/pools", tags=["pools"])

RECEIPTS = {
    PoolState.PAUSED: Action.POOL_PAUSED,
    PoolState.DRAINING: Action.POOL_DRAINED,
    PoolState.ACTIVE: Action.POOL_RESUMED,
}
OPERATED = problems.answers(*problems.KEYED, "forbidden", "not_found")


@router.get("", summary="List pools", response_model=PoolList, responses=problems.answers(*problems.KEYED))
async def list_pools(request: Request, service: ServiceDep, principal: Reader) -> Response:
    """Each model's state, the inputs that wait and run, and the workers. The counts are of all tenants."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        listed = await pools.list_pools(transaction, service.backlog.waiting)
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.POOL_LISTED)
    return answer(PoolList(items=listed))


@router.post("/{name}/pause", summary="Pause a pool", response_model=Pool, responses=OPERATED)
async def pause(request: Request, service: ServiceDep, principal: Admin, name: str) -> Response:
    """Jobs are accepted, and nothing of them begins. What has begun ends."""
    return await _set_state(request, service, principal, name, PoolState.PAUSED)


@router.post("/{name}/drain", summary="Drain a pool", response_model=Pool, responses=OPERATED)
async def drain(request: Request, service: ServiceDep, principal: Admin, name: str) -> Response:
    """No job is accepted (503, `pool_draining`); what waits is worked off."""
    return await _set_state(request, service, principal, name, PoolState.DRAINING)


@router.post("/{name}/resume", summary="Resume a pool", response_model=Pool, responses=OPERATED)
async def resume(request: Request, service: ServiceDep, principal: Admin, name: str) -> Response:
    """Back to accepting and working."""
    return await _set_state(request, service, principal, name, PoolState.ACTIVE)


async def _set_state(request: Request, service: Service, principal: Principal, name: str, state: PoolState) -> Response:
    # PostgreSQL takes no NUL, and no name has one.
    if "\0" in name:
        raise pools.no_such_pool()
    async with service.database.transaction(principal.tenant_id) as transaction:
        await pools.set_state(transaction, name, state)
        [pool] = await pools.list_pools(transaction, service.backlog.waiting, name)
        await service.audit.record(transaction, principal, request.scope["request_id"], RECEIPTS[state], names=[name])
    if state is not PoolState.PAUSED:
        for priority in Priority:
            service.notices.tell(tasks_queued(name, priority))
    return answer(pool)
