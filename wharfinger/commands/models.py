"""`wharf models`: what the service can infer with."""

from typing import Annotated

import typer

from custody.wire import Model
from wharfinger.commands.options import Json, Server, connect
from wharfinger.commands.output import cell, print_document, print_items, print_table, shown_time, table

app = typer.Typer(no_args_is_help=True, help="Models: list, show, add, retire.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name, from `wharf models list`.")]


@app.command("list")
def list_models(server: Server = None, json: Json = False) -> None:
    """List the models and how many workers serve them."""
    with connect(server) as client:
        models = list(client.models.list())
    if json:
        print_items(models)
        return
    shown = table("Model", "Version", "Task", "Classes", "Input", "Workers", right=("Version", "Classes", "Workers"))
    for model in models:
        newest = model.versions[0] if model.versions else None
        shown.add_row(
            cell(model.name),
            cell(newest.version if newest else ""),
            cell(newest.task if newest else ""),
            cell(len(newest.classes) if newest else ""),
            cell(f"{newest.input_width} x {newest.input_height}" if newest else ""),
            cell(model.ready_workers),
        )
    print_table(shown)


@app.command()
def show(name: Name, server: Server = None, json: Json = False) -> None:
    """Tell all about one model: its versions and classes."""
    with connect(server) as client:
        model = client.models.get(name)
    if json:
        print_document(model)
    else:
        _print(model)


@app.command()
def retire(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="This version alone; otherwise all.")] = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Accept no more jobs for a model; what waits still runs. For admins of the operator's tenant."""
    with connect(server) as client:
        model = client.models.retire(name, version)
    if json:
        print_document(model)
    else:
        _print(model)


def _print(model: Model) -> None:
    workers = f"{model.ready_workers} ready worker{'s' * (model.ready_workers != 1)}"
    shown = table("Version", "State", "Task", "Input", "Digest", "Created", "Classes", title=f"{model.name}: {workers}")
    for version in model.versions:
        shown.add_row(
            cell(version.version),
            cell(version.state),
            cell(version.task),
            cell(f"{version.input_width} x {version.input_height}"),
            cell(version.digest[:12]),
            cell(shown_time(version.created_at)),
            cell(", ".join(version.classes)),
        )
    print_table(shown)
