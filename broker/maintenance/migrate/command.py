"""`wharf migrate`: database and volume brought to the present shape."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from broker.maintenance.migrate.logins import ensure_logins
from broker.maintenance.migrate.migration import (
    NewerSchemaError,
    admit_key,
    first_key,
    read_key,
    roles_script,
    wait_until_migrated,
    write_key,
)
from broker.maintenance.migrate.migration import migrate as bring_up
from broker.maintenance.migrate.settings import MigrateSettings
from custody.errors import StartError
from custody.settings import load
from custody.telemetry import configure_logging
from custody.volume import Volume

WAIT_SECONDS = 600.0


def migrate(
    print_roles: Annotated[bool, typer.Option("--print-roles", help="Print the roles for a DBA and end")] = False,
    key_file: Annotated[
        Path | None, typer.Option("--first-key", help="Write an admin's API key of --tenant to this new file (0600)")
    ] = None,
    admitted: Annotated[
        Path | None, typer.Option("--admit-key", help="The API key in this file is an admin's of --tenant from now on")
    ] = None,
    tenant: Annotated[str, typer.Option(help="The operator's tenant, made where it is missing")] = "default",
    logins: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Files named wharf_api, wharf_relay, wharf_worker, wharf_cleanup: the user of the URL in each may log "
            "in with its password, and has that role",
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Change nothing: wait until another has migrated, and prepared WHARF_VOLUME where that is set. Any "
            "process's URL will do",
        ),
    ] = False,
    allow_newer: Annotated[
        bool,
        typer.Option("--allow-newer", help="Where a newer release has migrated, do nothing and be content: a rollback"),
    ] = False,
    seconds: Annotated[float | None, typer.Argument(help="With --wait: how long at most [600]", min=0)] = None,
) -> None:
    """Bring the database and the volume up to date. WHARF_DATABASE_URL is the owner's here."""
    if print_roles:
        typer.echo(roles_script(), nl=False)
        return
    if seconds is not None and not wait:
        raise typer.BadParameter("SECONDS goes with --wait")
    configure_logging(process="migrate", format="text", level="warning")
    try:
        settings = load(MigrateSettings)
        url = settings.owner_url
        volume = Volume(settings.volume, instance="migrate") if settings.volume else None
        told = "The database is up to date." + (f" The volume {volume.root} is ready." if volume else "")
        if wait:
            any_url = settings.database_url.get_secret_value()
            asyncio.run(wait_until_migrated(any_url, WAIT_SECONDS if seconds is None else seconds, volume))
            typer.echo(told)
            return
        applied = asyncio.run(bring_up(url, volume))
        for name in applied:
            typer.echo(f"applied {name}")
        typer.echo(told)
        if logins is not None:
            typer.echo(f"These may log in: {', '.join(asyncio.run(ensure_logins(url, logins)))}.")
        if admitted is not None:
            asyncio.run(admit_key(url, tenant, read_key(admitted)))
            typer.echo(f"The key in {admitted} is an admin's of tenant {tenant}.")
        if key_file is not None:
            write_key(key_file, asyncio.run(first_key(url, tenant)))
            typer.echo(f"An admin's key of tenant {tenant} is in {key_file}.")
    except NewerSchemaError as error:
        if not allow_newer:
            sys.exit(f"wharf migrate: {error}")
        typer.echo("A newer release has migrated, which suits this one too. Nothing was done.")
    except StartError as error:
        sys.exit(f"wharf migrate: {error}")
