"""`wharf upload`: files into custody."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from wharfinger.commands.failures import FAILED
from wharfinger.commands.files import files_table
from wharfinger.commands.inputs import gather
from wharfinger.commands.options import Json, Server, connect, seconds_of
from wharfinger.commands.output import print_items, print_table
from wharfinger.commands.sending import send


def upload(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Files, folders of pictures, - for stdin.")],
    expires_in: Annotated[
        float | None,
        typer.Option(metavar="DURATION", parser=seconds_of, help="Keep them so long: 90s, 30m, 12h or 7d, say."),
    ] = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Put files into the service's custody. Bytes that it holds already are not sent again."""
    with ExitStack() as stack:
        inputs = gather(paths, stack)
        client = stack.enter_context(connect(server))
        sent = [each.file for each in send(client, inputs, expires_in=expires_in)]
    if json:
        print_items(sent)
    elif sent:
        print_table(files_table(sent))
    if len(sent) < len(inputs):
        raise typer.Exit(FAILED)
