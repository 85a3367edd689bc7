"""The commands of the server packages, found through entry points and imported only when they run."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint

import typer

from wharfinger.commands.failures import FAILED
from wharfinger.commands.output import say

GROUP = "wharf.commands"

# What `wharf --help` says of them: asking the commands themselves would import the server.
_HELP = {
    "up": "Run everything on this machine: database, API, worker, cleanup.",
    "doctor": "Check the set-up and say what to do.",
    "broker": "Run the API, as containers do.",
    "relay": "Run a relay to RabbitMQ, as containers do.",
    "worker": "Run a worker, as containers do.",
    "cleanup": "Remove what has expired and what nobody refers to.",
    "migrate": "Bring the database's schema up to date.",
    "plan": "Compute what a load asks for: volume, IOPS, pods, connections.",
    "verify": "Look for damaged or lost bytes on the volume.",
    "models.add": "Register a model file, so that workers can serve it by name.",
    "models.wait": "Wait until a model is registered.",
}


def register(app: typer.Typer, entries: Iterable[EntryPoint]) -> None:
    """Add each entry, a function with typer's annotations, as a command of `app` in the order of the table above; one
    whose name has a dot, `models.add`, joins the commands `wharf models`."""
    order = list(_HELP)
    for entry in sorted(
        entries, key=lambda each: (order.index(each.name) if each.name in order else len(order), each.name)
    ):
        noun, _, name = entry.name.rpartition(".")
        _add(_commands(app, noun) if noun else app, name, entry)


def _commands(app: typer.Typer, noun: str) -> typer.Typer:
    for group in app.registered_groups:
        if group.name == noun and group.typer_instance is not None:
            return group.typer_instance
    made = typer.Typer(no_args_is_help=True)
    app.add_typer(made, name=noun)
    return made


def _add(app: typer.Typer, name: str, entry: EntryPoint) -> None:
    # Everything after the name is passed on unread, --help too: the command's own parser knows what it means.
    @app.command(
        name,
        help=_HELP.get(entry.name, ""),
        rich_help_panel="Server",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def run(context: typer.Context) -> None:
        try:
            function = entry.load()
        except ImportError as error:
            say(
                f"`{context.command_path}` needs the server packages, which are not all here ({error}).\n"
                "Install them: pip install 'wharfinger[standalone]'"
            )
            raise typer.Exit(FAILED) from error
        command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        command.command(name)(function)
        command(context.args, prog_name=context.command_path)
