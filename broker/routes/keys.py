"""/v1/keys: API keys, for admins."""

from fastapi import APIRouter, Request, Response

from broker import body, headers, problems
from broker.access import Admin
from broker.answers import answer, no_such, parse_id
from broker.routes import IdempotencyKey
from broker.service import ServiceDep
from custody import idempotency, tenants
from custody.audit import Action
from custody.wire import KeyList, KeyRequest, NewKey, Outcome

router = APIRouter(prefix="/v1/keys", tags=["keys"])

KEY_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/KeyRequest"}}},
    }
}


@router.post(
    "",
    summary="Create an API key",
    response_model=NewKey,
    status_code=201,
    responses={
        201: headers.sent("Cache-Control"),
        **problems.answers(*problems.KEYED, "forbidden", *problems.JSON_BODY, *problems.IDEMPOTENT),
    },
    openapi_extra=KEY_BODY,
)
async def create(
    request: Request, service: ServiceDep, principal: Admin, idempotency_key: IdempotencyKey = None
) -> Response:
    """The secret is in this answer and nowhere else, not even in a replay of it. The operator's admins may name another
    tenant."""
    wish = await body.read_json(request, KeyRequest, service.settings)
    tenant, request_id = principal.tenant_id, request.scope["request_id"]
    wanted = idempotency.fingerprint("POST /v1/keys", wish.model_dump(mode="json"), [])
    async with service.database.transaction(tenant) as transaction:
        if replay := await idempotency.begin(transaction, tenant, idempotency_key, wanted):
            known = await tenants.get_key(transaction, principal, replay.resource[0], wish.tenant)
            await service.audit.record(
                transaction, principal, request_id, Action.KEY_CREATED, outcome=Outcome.REPLAYED, keys=[known.id]
            )
            return _made(NewKey(**known.model_dump(), secret=None))
        key = await tenants.create_key(transaction, principal, wish.name, wish.role, wish.tenant)
        await idempotency.record(transaction, tenant, idempotency_key, status=201, resource=[key.id])
        # In the tenant that the key opens as well: it is the operator who made it.
        for receiver in sorted({principal.tenant, key.tenant}):
            async with tenants.within(transaction, principal, receiver):
                await service.audit.record(
                    transaction,
                    principal,
                    request_id,
                    Action.KEY_CREATED,
                    keys=[key.id],
                    names=[key.tenant],
                    details={"role": key.role.value},
                )
    return _made(key)


def _made(key: NewKey) -> Response:
    return answer(key, 201, {"Cache-Control": "no-store"})


@router.get(
    "", summary="List API keys", response_model=KeyList, responses=problems.answers(*problems.KEYED, "forbidden")
)
async def list_keys(request: Request, service: ServiceDep, principal: Admin) -> Response:
    """Your tenant's, without their secrets, and those that are revoked too."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        keys = await tenants.list_keys(transaction, principal)
        await service.audit.record(
            transaction, principal, request.scope["request_id"], Action.KEY_LISTED, keys=[key.id for key in keys]
        )
    return answer(KeyList(items=keys))


@router.delete(
    "/{key_id}",
    summary="Revoke an API key",
    status_code=204,
    responses=problems.answers(*problems.KEYED, "forbidden", "not_found"),
)
async def revoke(request: Request, service: ServiceDep, principal: Admin, key_id: str) -> Response:
    """From now on nobody gets an answer with it."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        revoked = parse_id(key_id, "key")
        if not await tenants.revoke_key(transaction, principal, revoked):
            raise no_such("key")
        await service.audit.record(
            transaction, principal, request.scope["request_id"], Action.KEY_REVOKED, keys=[revoked]
        )
    return Response(status_code=204)
