"""/v1/tenant: what an admin says of the own tenant."""

from fastapi import APIRouter, Request, Response

from broker import body, problems
from broker.access import Admin
from broker.answers import answer
from broker.service import ServiceDep
from custody import tenants
from custody.audit import Action
from custody.wire import Tenant, TenantPatch

router = APIRouter(prefix="/v1/tenant", tags=["tenant"])

PATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TenantPatch"}}},
    }
}


@router.get(
    "", summary="Describe your tenant", response_model=Tenant, responses=problems.answers(*problems.KEYED, "forbidden")
)
async def get(request: Request, service: ServiceDep, principal: Admin) -> Response:
    """How long the tenant's files and jobs are kept."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        tenant = await tenants.get_tenant(transaction, principal.tenant_id)
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.TENANT_SEEN)
    return answer(tenant)


@router.patch(
    "",
    summary="Change how long things are kept",
    response_model=Tenant,
    responses=problems.answers(*problems.KEYED, "forbidden", *problems.JSON_BODY),
    openapi_extra=PATCH_BODY,
)
async def change(request: Request, service: ServiceDep, principal: Admin) -> Response:
    """How long files are kept that are uploaded from now on, and how long jobs, also those that have ended."""
    patch = await body.read_json(request, TenantPatch, service.settings)
    async with service.database.transaction(principal.tenant_id) as transaction:
        tenant = await tenants.change_tenant(transaction, principal.tenant_id, patch)
        await service.audit.record(
            transaction,
            principal,
            request.scope["request_id"],
            Action.TENANT_CHANGED,
            details=patch.model_dump(exclude_unset=True),
        )
    return answer(tenant)
