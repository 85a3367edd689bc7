"""One module a noun of the API. They parse and answer: no SQL, no paths."""

from typing import Annotated

from fastapi import Header

IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="1 to 255 characters, the same for each attempt"),
]
"""What a client gives every attempt of one POST, so that it has one effect."""
