"""/v1/cluster: where the service's processes run, for the operator."""

from fastapi import APIRouter, Request, Response

from broker import problems
from broker.access import Admin
from broker.answers import answer
from broker.service import ServiceDep
from custody import pools, relays, tenants
from custody.audit import Action
from custody.wire import Cluster

router = APIRouter(prefix="/v1/cluster", tags=["cluster"])


@router.get(
    "",
    summary="Describe the cluster",
    response_model=Cluster,
    responses=problems.answers(*problems.KEYED, "forbidden"),
)
async def describe(request: Request, service: ServiceDep, principal: Admin) -> Response:
    """Each pool's pods, with their restarts, GPUs, versions and last heartbeats, beside what waits and how many there
    should be. Without rights in a Kubernetes cluster: the heartbeats, and a `notice` that says why."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        await tenants.require_operator(transaction, principal.tenant_id, "sees the cluster")
        known_pools = await pools.list_pools(transaction, service.backlog.waiting)
        known_relays = await relays.list_relays(transaction)
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.CLUSTER_SEEN)
    return answer(await service.cluster.look(known_pools, known_relays))
