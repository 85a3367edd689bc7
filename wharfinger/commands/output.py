"""Everything that is printed. Names come from elsewhere: control characters in them never reach the terminal."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from custody.wire import Wire

_WIDTH_OF_FILES = 200


def print_document(value: Wire) -> None:
    typer.echo(value.model_dump_json(indent=2))


def print_items(values: Iterable[Wire]) -> None:
    """One document {"items": [...]}, as the API's lists are."""
    typer.echo(json.dumps({"items": [each.model_dump(mode="json") for each in values]}, indent=2, ensure_ascii=False))


def table(*columns: str, right: Sequence[str] = (), title: str | None = None) -> Table:
    made = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=None if title is None else cell(title), title_justify="left"
    )
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def print_table(shown: Table) -> None:
    """Cut to the terminal's width; in a pipe or file wide enough for all."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_FILES)
    console.print(shown)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values of one thing, a line each."""
    listed = [(name, value) for name, value in facts if value is not None]
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        typer.echo(f"{name:<{width}}  {printable(shown_time(value) if isinstance(value, datetime) else value)}")


def cell(value: object, style: str = "") -> Text:
    return Text(printable(value), style=style)


def printable(value: object) -> str:
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(value))


def shown_time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def shown_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def say(message: str) -> None:
    """A line for the person, on stderr. Lines of the message stay lines."""
    for line in message.splitlines():
        typer.echo(printable(line), err=True)


def progress_bar() -> Progress:
    """On stderr, and only where that is a terminal; gone when it is done."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
