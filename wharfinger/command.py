"""The command line `wharf`: names the commands, and turns errors into lines and exit codes."""

import os
import signal
import sys
from importlib.metadata import entry_points, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wharfinger.commands import files, jobs, keys, models, pools, server, tenant
from wharfinger.commands.audit import audit
from wharfinger.commands.failures import exit_code, explain
from wharfinger.commands.output import say
from wharfinger.commands.predict import predict
from wharfinger.commands.upload import upload
from wharfinger.errors import WharfError


class _Commands(TyperGroup):
    """Commands whose errors are told in a line or two, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except WharfError as error:
            say(explain(error))
            raise typer.Exit(exit_code(error)) from error


def main() -> None:
    if sys.platform != "win32":
        _be_contained()
    app(prog_name="wharf")


def _be_contained() -> None:
    """What a container asks for where there is no shell to do it."""
    # Its uid is the cluster's choice, and may be another one tomorrow; the group is always 0.
    if os.getuid() != 0 and os.getgid() == 0:
        os.umask(0o002)
    # The kernel keeps signals from its first process that this does not handle: a pod that only waits, or is about to
    # start, would be there until its grace is over.
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("wharfinger"))
        raise typer.Exit


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _wharf(
    version_wanted: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Wharfinger takes custody of pictures once and brings the model to them.

    A `wharf up` on this machine is found by itself. For another service
    set WHARF_SERVER, and WHARF_API_KEY or WHARF_API_KEY_FILE.
    """


app.command()(predict)
app.command()(upload)
app.command()(audit)
_NOUNS = {"files": files, "jobs": jobs, "models": models, "pools": pools, "keys": keys, "tenant": tenant}
for _noun, _commands in _NOUNS.items():
    app.add_typer(_commands.app, name=_noun)
server.register(app, entry_points(group=server.GROUP))
