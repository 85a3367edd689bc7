"""Answers: wire types as JSON, rendered once."""

from collections.abc import Mapping
from uuid import UUID

from fastapi import Response
from pydantic import BaseModel

from custody.errors import CustodyError


def answer(value: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(value.model_dump_json(), status, dict(headers or {}), media_type="application/json")


def parse_id(text: str, kind: str) -> UUID:
    """An id from the address. What is no id names nothing: the same 404 as an unknown one."""
    try:
        return UUID(text)
    except ValueError:
        raise no_such(kind) from None


def no_such(kind: str) -> CustodyError:
    """Says the same whether it never was, is gone, or is another tenant's."""
    return CustodyError("not_found", f"You have no {kind} by this id.")
