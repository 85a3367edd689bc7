"""/v1/audit: receipts of who did and read what, for admins."""

import re
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator

from broker import paging, problems
from broker.access import Admin
from broker.answers import answer
from broker.service import ServiceDep
from custody import audit
from custody.audit import Action
from custody.wire import ReceiptPage


def _rfc3339(text: str) -> str:
    """Else a number would be a time, in whatever unit."""
    if not re.match(r"\d{4}-\d\d-\d\d[T ]", text):
        raise ValueError("a time is RFC 3339, as 2026-11-30T12:00:00Z")
    return text


Moment = Annotated[AwareDatetime | None, BeforeValidator(_rfc3339)]

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get(
    "",
    summary="List receipts",
    response_model=ReceiptPage,
    responses=problems.answers(*problems.KEYED, "forbidden", "invalid_request"),
)
async def list_receipts(
    request: Request,
    service: ServiceDep,
    principal: Admin,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
    object: Annotated[UUID | None, Query(description="A file, job or key that they name")] = None,
    key: Annotated[UUID | None, Query(description="Of the key that asked")] = None,
    action: Annotated[str | None, Query(pattern=r"^[a-z]+\.[a-z_]+$", max_length=40)] = None,
    request_id: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._-]{1,128}$")] = None,
    since: Moment = None,
    until: Annotated[Moment, Query(description="Not included")] = None,
) -> Response:
    """Newest first."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        receipts = await audit.page(
            transaction,
            before=paging.decode_id(cursor),
            limit=limit,
            object_id=object,
            key_id=key,
            action=action,
            request_id=request_id,
            since=since,
            until=until,
        )
        await service.audit.record(transaction, principal, request.scope["request_id"], Action.AUDIT_LISTED)
    following = paging.encode(receipts[-1].id) if len(receipts) == limit else None
    return answer(ReceiptPage(items=receipts, next_cursor=following))
