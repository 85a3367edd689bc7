"""`wharf audit`: who did and read what. For admins."""

from datetime import datetime
from itertools import islice
from typing import Annotated
from uuid import UUID

import typer

from custody.wire import Outcome, Receipt
from wharfinger.commands.options import Json, Limit, Server, connect
from wharfinger.commands.output import cell, print_items, print_table, shown_time, table


def audit(
    file: Annotated[UUID | None, typer.Option(metavar="ID", help="Receipts that name this file.")] = None,
    job: Annotated[UUID | None, typer.Option(metavar="ID", help="Receipts that name this job.")] = None,
    key: Annotated[UUID | None, typer.Option(metavar="ID", help="What was asked with this key.")] = None,
    action: Annotated[str | None, typer.Option(help="Such as file.deleted or results.read.")] = None,
    request: Annotated[str | None, typer.Option(metavar="ID", help="What one request did.")] = None,
    since: Annotated[datetime | None, typer.Option(metavar="TIME", help="A local time, 2026-11-30[T12:00:00].")] = None,
    until: Annotated[datetime | None, typer.Option(metavar="TIME", help="Not included.")] = None,
    limit: Limit = 50,
    server: Server = None,
    json: Json = False,
) -> None:
    """Show receipts of what was uploaded, read, inferred and deleted. For admins."""
    if file and job:
        raise typer.BadParameter("ask for a file or for a job")
    with connect(server) as client:
        receipts = islice(
            client.audit.list(
                object=file or job,
                key=key,
                action=action,
                request_id=request,
                since=since and since.astimezone(),
                until=until and until.astimezone(),
                page_size=min(limit, 1000),
            ),
            limit,
        )
        if json:
            print_items(receipts)
            return
        shown = table("Time", "Action", "What", "Key", "Request")
        for receipt in receipts:
            shown.add_row(
                shown_time(receipt.at),
                cell(receipt.action if receipt.outcome is Outcome.DONE else f"{receipt.action} ({receipt.outcome})"),
                cell(_what(receipt)),
                cell(receipt.key_id),
                cell(receipt.request_id),
            )
    print_table(shown)


def _what(receipt: Receipt) -> str:
    """The first that it names, and how many more."""
    files = [str(file.id or file.sha256) for file in receipt.files]
    first, *more = [*map(str, receipt.jobs), *files, *map(str, receipt.keys), *receipt.names] or [""]
    return f"{first} +{len(more)}" if more else first
