"""/v1/models: what can be asked for, and who serves it now."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from broker import problems
from broker.access import Admin, Reader
from broker.answers import answer
from broker.service import ServiceDep
from custody import models
from custody.audit import Action
from custody.errors import CustodyError
from custody.wire import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List models", response_model=ModelList, responses=problems.answers(*problems.KEYED))
async def list_models(request: Request, service: ServiceDep, principal: Reader) -> Response:
    """With their versions, and how many living workers serve each."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        listed = await models.list_models(transaction)
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.MODEL_LISTED)
    return answer(ModelList(items=listed))


@router.get(
    "/{name}",
    summary="Describe a model",
    response_model=Model,
    responses=problems.answers(*problems.KEYED, "not_found"),
)
async def get(request: Request, service: ServiceDep, principal: Reader, name: str) -> Response:
    """Its versions, and how many living workers serve each."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        found = await models.list_models(transaction, _storable(name))
        if not found:
            raise _no_such_model()
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.MODEL_SEEN, names=[name])
    return answer(found[0])


@router.post(
    "/{name}/retire",
    summary="Retire a model or one version",
    response_model=Model,
    responses=problems.answers(*problems.KEYED, "forbidden", "not_found", "invalid_request"),
)
async def retire(
    request: Request,
    service: ServiceDep,
    principal: Admin,
    name: str,
    version: Annotated[int | None, Query(ge=1, lt=2**31, description="This one alone; all where absent")] = None,
) -> Response:
    """No job is accepted for it any more, and what waits still runs. Says the same however often it is sent."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        await models.retire(transaction, _storable(name), version)
        [model] = await models.list_models(transaction, name)
        await service.audit.record(
            transaction,
            principal,
            request.scope["request_id"],
            Action.MODEL_RETIRED,
            names=[name],
            details=None if version is None else {"version": version},
        )
    return answer(model)


def _storable(name: str) -> str:
    """PostgreSQL takes no NUL, and no name has one."""
    if "\0" in name:
        raise _no_such_model()
    return name


def _no_such_model() -> CustodyError:
    return CustodyError("not_found", "There is no model by this name. GET /v1/models lists them.")
