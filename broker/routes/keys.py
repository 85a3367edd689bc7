"""/v1/keys: API keys, for admins."""

from fastapi import APIRouter, Request, Response

from broker import body, problems
from broker.access import Admin
from broker.answers import answer, no_such, parse_id
from broker.routes import IdempotencyKey
from broker.service import ServiceDep
from custody import idempotency, tenants
from custody.wire import KeyList, KeyRequest, NewKey

router = APIRouter(prefix="/v1/keys", tags=["keys"])

KEY_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/KeyRequest"}}},
    }
}


@router.post(
    "",
    response_model=NewKey,
    status_code=201,
    responses=problems.answers(*problems.KEYED, "forbidden", *problems.JSON_BODY, *problems.IDEMPOTENT),
    openapi_extra=KEY_BODY,
)
async def create(
    request: Request, service: ServiceDep, principal: Admin, idempotency_key: IdempotencyKey = None
) -> Response:
    """The secret is in this answer and nowhere else, not even in a replay of it. The operator's admins may name another
    tenant."""
    wish = await body.read_json(request, KeyRequest, service.settings)
    tenant = principal.tenant_id
    wanted = idempotency.fingerprint("POST /v1/keys", wish.model_dump(mode="json"), [])
    async with service.database.transaction(tenant) as transaction:
        if replay := await idempotency.begin(transaction, tenant, idempotency_key, wanted):
            known = await tenants.get_key(transaction, principal, replay.resource[0], wish.tenant)
            return answer(NewKey(**known.model_dump(), secret=None), replay.status)
        key = await tenants.create_key(transaction, principal, wish.name, wish.role, wish.tenant)
        await idempotency.record(transaction, tenant, idempotency_key, status=201, resource=[key.id])
    return answer(key, 201, {"Cache-Control": "no-store"})


@router.get("", response_model=KeyList, responses=problems.answers(*problems.KEYED, "forbidden"))
async def list_keys(service: ServiceDep, principal: Admin) -> Response:
    async with service.database.transaction(principal.tenant_id) as transaction:
        return answer(KeyList(items=await tenants.list_keys(transaction, principal)))


@router.delete("/{key_id}", status_code=204, responses=problems.answers(*problems.KEYED, "forbidden", "not_found"))
async def revoke(service: ServiceDep, principal: Admin, key_id: str) -> Response:
    """From now on nobody gets an answer with it."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        if not await tenants.revoke_key(transaction, principal, parse_id(key_id, "key")):
            raise no_such("key")
    return Response(status_code=204)
