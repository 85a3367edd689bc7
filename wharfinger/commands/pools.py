"""`wharf pools`: what waits for each model, and whether it may begin."""

from collections.abc import Iterable
from typing import Annotated

import typer

from custody.wire import Pool
from wharfinger.commands.options import Json, Server, connect
from wharfinger.commands.output import cell, print_document, print_items, print_table, table

app = typer.Typer(no_args_is_help=True, help="Pools, one for each model: list, pause, drain, resume.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A model's name, from `wharf pools list`.")]

_STATE_STYLE = {"paused": "yellow", "draining": "yellow"}


@app.command("list")
def list_pools(server: Server = None, json: Json = False) -> None:
    """List the pools, what waits in them and how many workers serve them."""
    with connect(server) as client:
        pools = list(client.pools.list())
    if json:
        print_items(pools)
    else:
        _print(pools)


@app.command()
def pause(name: Name, server: Server = None, json: Json = False) -> None:
    """Let jobs wait: nothing more of this model begins."""
    with connect(server) as client:
        _tell(client.pools.pause(name), json)


@app.command()
def drain(name: Name, server: Server = None, json: Json = False) -> None:
    """Accept no more jobs, and work off what waits."""
    with connect(server) as client:
        _tell(client.pools.drain(name), json)


@app.command()
def resume(name: Name, server: Server = None, json: Json = False) -> None:
    """Accept jobs and work on them again."""
    with connect(server) as client:
        _tell(client.pools.resume(name), json)


def _tell(pool: Pool, json: bool) -> None:
    if json:
        print_document(pool)
    else:
        _print([pool])


def _print(pools: Iterable[Pool]) -> None:
    shown = table("Pool", "State", "Waiting", "Running", "Workers", right=("Waiting", "Running", "Workers"))
    for pool in pools:
        shown.add_row(
            cell(pool.name),
            cell(pool.state, _STATE_STYLE.get(pool.state, "")),
            cell(pool.waiting),
            cell(pool.running),
            cell(len(pool.workers)),
        )
    print_table(shown)
