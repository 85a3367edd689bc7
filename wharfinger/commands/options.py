"""What the commands have in common: their options, and the client that these make."""

from typing import Annotated, TypeAlias

import typer

from wharfinger.client import Client
from wharfinger.patience import Patience

Server: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="The service; otherwise WHARF_SERVER, or the `wharf up` of this machine."
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", min=1, help="How many to list, the newest first.")]


def connect(server: str | None) -> Client:
    """A client that gives up a little sooner than a program would: somebody is watching."""
    return Client(server, patience=Patience(first_contact=0.5, reconnect=20.0, backlog=120.0))
