"""`wharf tenant`: how long your tenant's things are kept. For admins."""

from typing import Annotated

import typer

from custody.wire import MOST_DAYS, Tenant
from wharfinger.commands.options import Json, Server, connect
from wharfinger.commands.output import print_document, print_facts

app = typer.Typer(no_args_is_help=True, help="Your tenant, for admins: show, set.")


def _days(text: str) -> int | str:
    if text == "default":
        return text
    if not (text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MOST_DAYS):
        raise typer.BadParameter(f"1 to {MOST_DAYS}, or `default` for as long as the service keeps them")
    return int(text)


@app.command()
def show(server: Server = None, json: Json = False) -> None:
    """Tell how long files and jobs are kept."""
    with connect(server) as client:
        _print(client.tenant.get(), json)


@app.command("set")
def set_(
    file_retention_days: Annotated[
        str | None, typer.Option(metavar="DAYS", help="Files that are uploaded from now on; or `default`.")
    ] = None,
    job_retention_days: Annotated[
        str | None, typer.Option(metavar="DAYS", help="Jobs with their results, from their end; or `default`.")
    ] = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Say how long files and jobs are kept."""
    asked = {"file_retention_days": file_retention_days, "job_retention_days": job_retention_days}
    days = {name: _days(text) for name, text in asked.items() if text is not None}
    with connect(server) as client:
        tenant = client.tenant.set_retention(
            **{name: each if isinstance(each, int) else None for name, each in days.items()}
        )
    _print(tenant, json)


def _print(tenant: Tenant, json: bool) -> None:
    if json:
        print_document(tenant)
        return
    print_facts(
        [
            ("tenant", tenant.name),
            ("files", _shown(tenant.file_retention_days)),
            ("jobs", _shown(tenant.job_retention_days)),
        ]
    )


def _shown(days: int | None) -> str:
    return "kept as long as the service says" if days is None else f"kept for {days} days"
