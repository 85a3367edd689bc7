"""`wharf keys`: who may talk to the service. For admins."""

from typing import Annotated
from uuid import UUID

import typer

from custody.wire import Role
from wharfinger.commands.options import Json, Server, connect
from wharfinger.commands.output import cell, print_document, print_items, print_table, say, shown_time, table

app = typer.Typer(no_args_is_help=True, help="API keys, for admins: create, list, revoke.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    role: Annotated[
        Role,
        typer.Option(
            help="reader: look; writer: also upload, run, delete; admin: also keys, retention, receipts, retries."
        ),
    ] = Role.WRITER,
    tenant: Annotated[str | None, typer.Option(help="Another tenant: the operator's admins only.")] = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Make a key. Its secret is the only line on stdout, and is shown this once."""
    with connect(server) as client:
        try:
            key = client.keys.create(name, role, tenant=tenant)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    if json:
        print_document(key)
        return
    say(f"Key {key.id}, {key.role} of tenant {key.tenant}. Keep the secret: it is not shown again.")
    typer.echo(key.secret)


@app.command("list")
def list_keys(server: Server = None, json: Json = False) -> None:
    """List the keys, without their secrets."""
    with connect(server) as client:
        keys = list(client.keys.list())
    if json:
        print_items(keys)
        return
    shown = table("Key", "Name", "Tenant", "Role", "Created", "Revoked")
    for key in keys:
        shown.add_row(
            cell(key.id),
            cell(key.name),
            cell(key.tenant),
            cell(key.role),
            cell(shown_time(key.created_at)),
            cell(shown_time(key.revoked_at) if key.revoked_at else ""),
        )
    print_table(shown)


@app.command()
def revoke(
    key_ids: Annotated[list[UUID], typer.Argument(metavar="ID", help="Keys' ids, from `wharf keys list`.")],
    server: Server = None,
    json: Json = False,
) -> None:
    """End keys: they open nothing from now on."""
    with connect(server) as client:
        for key_id in key_ids:
            client.keys.revoke(key_id)
            if not json:
                typer.echo(f"revoked {key_id}")
