"""What the commands have in common: their options, and the client that these make."""

import re
from datetime import UTC, datetime, timedelta
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


SINCE = "Created since: a time (2026-01-31T18:00) or how long ago (90m, 6h, 3d)."

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> datetime:
    """As `SINCE` describes it; a time without a zone is this machine's."""
    if ago := re.fullmatch(r"(\d{1,5})([mhd])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither a time, as 2026-01-31T18:00, nor how long ago, as 90m, 6h or 3d."
        ) from None


def seconds_of(text: str) -> float:
    """Of 90s, 30m, 12h or 7d."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration: 90s, 30m, 12h or 7d, say")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def connect(server: str | None) -> Client:
    """A client that gives up a little sooner than a program would: somebody is watching."""
    return Client(server, patience=Patience(first_contact=0.5, reconnect=20.0, backlog=120.0))
