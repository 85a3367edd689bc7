"""/v1/models: what can be asked for, and who serves it now."""

from fastapi import APIRouter, Response

from broker.access import Reader
from broker.answers import answer
from broker.service import ServiceDep
from custody import models
from custody.errors import CustodyError
from custody.wire import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", response_model=ModelList)
async def list_models(service: ServiceDep, principal: Reader) -> Response:
    async with service.database.transaction(principal.tenant_id) as transaction:
        return answer(ModelList(items=await models.list_models(transaction)))


@router.get("/{name}", response_model=Model)
async def get(service: ServiceDep, principal: Reader, name: str) -> Response:
    async with service.database.transaction(principal.tenant_id) as transaction:
        # PostgreSQL takes no NUL, and no name has one.
        found = [] if "\0" in name else await models.list_models(transaction, name)
    if not found:
        raise CustodyError("not_found", "There is no model by this name. GET /v1/models lists them.")
    return answer(found[0])
