"""Who is asking, and may they? No key, no answer."""

from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Request

from broker.service import service_of
from broker.stages import stage
from custody import tenants
from custody.errors import CustodyError
from custody.tenants import Principal
from custody.wire import Role

RANK = {Role.READER: 0, Role.WRITER: 1, Role.ADMIN: 2}


@dataclass(frozen=True)
class Require:
    """A dependency that gives the principal of the request's API key, or refuses with 401 or 403."""

    least: Role

    async def __call__(self, request: Request) -> Principal:
        service = await service_of(request)
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise CustodyError("unauthenticated", "Send an API key: `Authorization: Bearer KEY`.")
        async with stage("authenticate"), service.database.statements() as statements:
            principal = await tenants.authenticate(statements, secret.strip())
        if principal is None:
            raise CustodyError("unauthenticated", "This API key is unknown or revoked. Ask an admin for a new one.")
        structlog.contextvars.bind_contextvars(tenant_id=str(principal.tenant_id), key_id=str(principal.key_id))
        if RANK[principal.role] < RANK[self.least]:
            raise CustodyError("forbidden", f"The key's role is {principal.role.value}; this needs {self.least.value}.")
        return principal


Reader = Annotated[Principal, Depends(Require(Role.READER))]
Writer = Annotated[Principal, Depends(Require(Role.WRITER))]
Admin = Annotated[Principal, Depends(Require(Role.ADMIN))]
