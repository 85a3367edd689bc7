"""`wharf files`: what is in custody."""

import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from custody.wire import File, FileState
from wharfinger.client import Client
from wharfinger.commands.failures import FAILED
from wharfinger.commands.options import Json, Limit, Server, connect, seconds_of
from wharfinger.commands.output import (
    cell,
    print_document,
    print_facts,
    print_items,
    print_table,
    progress_bar,
    say,
    shown_bytes,
    shown_time,
    table,
)
from wharfinger.errors import NotFoundError

app = typer.Typer(no_args_is_help=True, help="Files in the service's custody: list, show, get, rm, pin, purge.")

FileId = Annotated[UUID, typer.Argument(metavar="ID", help="A file's id, from `wharf files list`.")]


FileIds = Annotated[list[UUID], typer.Argument(metavar="ID", help="Files' ids.")]


@app.command("list")
def list_files(limit: Limit = 50, server: Server = None, json: Json = False) -> None:
    """List the files, the newest first."""
    with connect(server) as client:
        files = islice(client.files.list(page_size=min(limit, 100)), limit)
        if json:
            print_items(files)
        else:
            print_table(files_table(files))


@app.command()
def show(file_id: FileId, server: Server = None, json: Json = False) -> None:
    """Tell all about one file."""
    with connect(server) as client:
        file = client.files.get(file_id)
    if json:
        print_document(file)
        return
    print_facts(
        [
            ("file", file.id),
            ("name", file.filename),
            ("type", file.media_type),
            ("size", f"{file.size:,} bytes"),
            ("bytes", None if file.state is FileState.PRESENT else f"{file.state}: upload the file again"),
            ("pixels", f"{file.width} x {file.height}"),
            ("sha256", file.sha256),
            ("created", file.created_at),
            ("expires", file.expires_at),
            ("pinned", "yes, it is kept until it is unpinned" if file.pinned else None),
        ]
    )


@app.command()
def get(
    file_id: FileId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; - for stdout. Otherwise the file's own name, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    server: Server = None,
    json: Json = False,
) -> None:
    """Get a file's bytes back, checked against their sha256."""
    with connect(server) as client:
        if str(output) == "-":
            client.files.download(file_id, sys.stdout.buffer)
            return
        target = output or Path(_own_name(client.files.get(file_id)))
        if target.exists() and not force:
            say(f"{target} is there already: name another place with --output, or overwrite it with --force.")
            raise typer.Exit(FAILED)
        try:
            file = _download(client, file_id, target)
        except OSError as error:
            say(f"cannot write {target}: {error.strerror}")
            raise typer.Exit(FAILED) from error
    if json:
        print_document(file)
    else:
        typer.echo(target)


@app.command()
def rm(
    file_ids: FileIds,
    server: Server = None,
    json: Json = False,
) -> None:
    """Delete files. Jobs on them keep their results: see purge."""
    with connect(server) as client:
        files = []
        for file_id in file_ids:
            files.append(client.files.get(file_id))
            client.files.delete(file_id)
            if not json:
                typer.echo(f"deleted {file_id}")
    if json:
        print_items(files)


@app.command()
def pin(file_ids: FileIds, server: Server = None, json: Json = False) -> None:
    """Keep files until they are unpinned."""
    with connect(server) as client:
        _tell([client.files.pin(file_id) for file_id in file_ids], json)


@app.command()
def unpin(file_ids: FileIds, server: Server = None, json: Json = False) -> None:
    """Let files expire at their time again."""
    with connect(server) as client:
        _tell([client.files.unpin(file_id) for file_id in file_ids], json)


@app.command()
def expire(
    file_ids: FileIds,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Then, as 2031-05-01T12:00:00Z or with another offset.")
    ] = None,
    after: Annotated[
        float | None, typer.Option("--in", metavar="DURATION", parser=seconds_of, help="In 90s, 30m, 12h or 7d, say.")
    ] = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Say when files expire.

    With neither option: as late as if they were uploaded now.
    """
    if at is not None and after is not None:
        raise typer.BadParameter("give --at or --in, not both")
    moment = None if at is None else _moment(at)
    if after is not None:
        moment = datetime.now(UTC) + timedelta(seconds=after)
    with connect(server) as client:
        _tell([client.files.expire(file_id, moment) for file_id in file_ids], json)


@app.command()
def purge(
    names: Annotated[list[str], typer.Argument(metavar="ID", help="Files' ids, or sha256:HEX.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    server: Server = None,
    json: Json = False,
) -> None:
    """Take pictures back for good, with all that was made of them.

    All your files of the same bytes go, the results of jobs on them and
    their filenames, and what has not ended is cancelled. Purged again, it
    tells the same. Exits with 1 where there was nothing of some ID.
    """
    if not yes:
        several = "these pictures" if len(names) > 1 else "this picture"
        typer.confirm(f"Purge {several} with all files and results of the same bytes? It cannot be undone.", abort=True)
    receipts, missing = [], 0
    with connect(server) as client:
        for name in names:
            try:
                receipt = client.files.purge(name)
            except NotFoundError:
                missing += 1
                say(f"{name}: you have nothing by this id")
                continue
            receipts.append(receipt)
            if not json:
                typer.echo(
                    f"purged {name}: {receipt.files} files, {receipt.results} results, {receipt.tasks_cancelled} inputs"
                    f" cancelled; bytes gone by {shown_time(receipt.bytes_gone_by)}"
                )
    if json:
        print_items(receipts)
    if missing:
        raise typer.Exit(FAILED)


def files_table(files: Iterable[File]) -> Table:
    shown = table("File", "Name", "Type", "Size", "Pixels", "Created", "Expires", right=("Size", "Pixels"))
    for file in files:
        shown.add_row(
            cell(file.id),
            cell(file.filename or ""),
            cell(file.media_type),
            shown_bytes(file.size),
            f"{file.width} x {file.height}",
            shown_time(file.created_at),
            "pinned" if file.pinned else shown_time(file.expires_at) if file.expires_at else "",
        )
    return shown


def _tell(files: list[File], json: bool) -> None:
    if json:
        print_items(files)
    else:
        print_table(files_table(files))


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() is None:
        raise typer.BadParameter(f"{text!r} is no time with an offset: 2031-05-01T12:00:00Z, say")
    return moment


def _own_name(file: File) -> str:
    """The last part of the name with which the file was uploaded: it must not lead out of this folder."""
    name = Path((file.filename or "").replace("\\", "/")).name
    usable = "".join(each if each.isprintable() else "_" for each in name).lstrip(".")
    return usable or f"{file.id}.{file.media_type.rpartition('/')[2]}"


def _download(client: Client, file_id: UUID, target: Path) -> File:
    """To a draft beside the target first: what carries the target's name is whole."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as opened, progress_bar() as bar:
            task = bar.add_task(target.name, total=None)
            file = client.files.download(
                file_id, opened, progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return file
