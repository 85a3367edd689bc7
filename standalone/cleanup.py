"""`wharf cleanup`: lets go of what nobody needs any more, once or on a schedule, and shows what was done."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from broker.kubernetes import Kubernetes, KubernetesError
from broker.maintenance.cleanup.cleanup import Preview
from broker.maintenance.cleanup.schedule import clean_once, look_ahead, look_back, serve
from broker.maintenance.cleanup.settings import CleanupSettings
from custody.cleanup import Run
from custody.errors import CustodyError, StartError
from custody.installation import SweepOff
from custody.settings import load
from custody.telemetry import configure_logging
from standalone import kubernetes_job
from standalone.kubernetes_job import IN_CLUSTER, InCluster, Namespace, Release
from standalone.reach import is_set_up, reach
from wharfinger.commands.options import Limit
from wharfinger.commands.output import cell, print_facts, print_table, say, shown_bytes, shown_time, table

ENDINGS = {
    None: "still running",
    "done": "done",
    "time": "out of time",
    "asked": "asked to stop",
    "error": "error",
    "killed": "killed",
}
ACCEPT = "Look at what is missing with `wharf verify`, then accept it with `wharf verify --accept`."


def cleanup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, and print what would go")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Begin nothing new after so long; the next run goes on there")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Bytes that nobody refers to go without grace")] = False,
    every: Annotated[float | None, typer.Option(min=0.1, help="Go on for ever, with so many seconds between")] = None,
    history: Annotated[bool, typer.Option("--history", help="Show what former cleanups did, and end")] = False,
    limit: Limit = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines")] = False,
    data: Annotated[Path | None, typer.Option(help="The folder of `wharf up`, if not the usual one")] = None,
    in_cluster: InCluster = False,
    namespace: Namespace = None,
    release: Release = None,
) -> None:
    """Remove what has expired or was deleted, the bytes that nobody refers to any more, and what crashes left behind.

    Works on the `wharf up` of this machine, or on WHARF_DATABASE_URL (role wharf_cleanup)
    and WHARF_VOLUME. Status 1 where something could not be removed.

    Where this machine has neither, or with --in-cluster, the cluster does it that kubectl would reach,
    or of which this is a pod: it is told before anything is done.
    """
    try:
        here_alone = every is not None or history or data is not None
        named = in_cluster or namespace is not None or release is not None
        kubernetes = _cluster(named=named, here_alone=here_alone, namespace=namespace)
        if kubernetes is not None:
            wishes = {"--dry-run": dry_run, "--now": now, "--json": as_json, "--max-seconds": max_seconds}
            kubernetes_job.run(kubernetes, "cleanup", release, wishes)
            return
        url, volume = reach("wharf_cleanup", data, otherwise="" if here_alone else IN_CLUSTER)
        settings = load(CleanupSettings, database_url=url, volume=volume)
        level = settings.log_level if every is not None else "critical"
        configure_logging(process="cleanup", format=settings.log_format, level=level)
        if history:
            _show_history(*uvloop.run(look_back(settings, limit)), as_json=as_json)
        elif dry_run:
            _show_preview(uvloop.run(look_ahead(settings, without_grace=now)), as_json=as_json)
        elif every is not None:
            uvloop.run(serve(settings, every=every, without_grace=now, max_seconds=max_seconds))
        else:
            _clean(settings, now=now, max_seconds=max_seconds, as_json=as_json)
    except StartError as error:
        sys.exit(f"wharf cleanup: {error}")
    except CustodyError as error:
        sys.exit(f"wharf cleanup: {error.detail}")
    except KubernetesError as error:
        sys.exit(f"wharf cleanup: {error}")


def _cluster(*, named: bool, here_alone: bool, namespace: str | None) -> Kubernetes | None:
    """The cluster that is to do it, told to the person; None: this machine is."""
    if named and here_alone:
        raise StartError("--in-cluster goes with --now, --dry-run, --max-seconds and --json alone.")
    if named:
        return kubernetes_job.named_cluster(namespace)
    if here_alone or is_set_up():
        return None
    return kubernetes_job.usual_cluster("cleanup")


def _clean(settings: CleanupSettings, *, now: bool, max_seconds: float | None, as_json: bool) -> None:
    tell = say if sys.stderr.isatty() else _silent
    run = uvloop.run(clean_once(settings, without_grace=now, max_seconds=max_seconds, tell=tell))
    if run is None:
        typer.echo("{}" if as_json else "Another cleanup is running, and does the same. Nothing was done.")
        return
    if as_json:
        typer.echo(json.dumps(run.as_json(), indent=2))
    else:
        print_facts(_facts(run))
        _say_errors(run)
    if run.errors:
        sys.exit(1)


def _facts(run: Run) -> Sequence[tuple[str, object]]:
    return [
        ("ended", ENDINGS[run.stopped]),
        ("files expired or deleted", run.expired_files),
        ("jobs past their retention", run.expired_jobs),
        ("bytes removed", f"{run.removed_blobs} files, {shown_bytes(run.freed_bytes)}"),
        ("abandoned uploads", run.staging),
        ("unknown to the database", run.orphans if run.swept_to is not None else None),
        ("missing on the volume", run.missing if run.swept_to is not None else None),
        ("errors", run.errors),
    ]


def _say_errors(run: Run) -> None:
    for error in run.first_errors:
        say(error)


def _show_preview(found: Preview, *, as_json: bool) -> None:
    if as_json:
        rows = asdict(found)
        typer.echo(json.dumps(rows.pop("rows") | rows, indent=2))
        return
    print_facts(
        [
            ("files expired or deleted", found.rows.expired_files),
            ("jobs past their retention", found.rows.expired_jobs),
            ("bytes to remove", f"{found.rows.removed_blobs} files, {shown_bytes(found.rows.freed_bytes)}"),
            ("abandoned uploads", found.staging),
            ("unknown to the database", found.orphans),
            ("missing on the volume", found.missing),
        ]
    )
    if found.sweep_off:
        say(f"What is unknown to the database would only be reported. {found.sweep_off}\n{ACCEPT}")
    typer.echo("Nothing was changed.")


def _show_history(runs: Sequence[Run], off: SweepOff | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"items": [run.as_json() for run in runs]}, indent=2))
        return
    numbers = ("Files", "Jobs", "Bytes", "Freed", "Uploads", "Orphans", "Missing", "Errors")
    shown = table("Started", "Took", "Ended", *numbers, right=("Took", *numbers))
    for run in runs:
        assert run.started_at is not None
        took = f"{(run.ended_at - run.started_at).total_seconds():.1f} s" if run.ended_at else ""
        swept = run.swept_to is not None
        shown.add_row(
            cell(shown_time(run.started_at)), took, cell(_ending(run)), str(run.expired_files),
            str(run.expired_jobs), str(run.removed_blobs), shown_bytes(run.freed_bytes), str(run.staging),
            str(run.orphans) if swept else "", str(run.missing) if swept else "",
            cell(run.errors, "red" if run.errors else ""),
        )  # fmt: skip
    print_table(shown)
    if runs:
        _say_errors(runs[0])
    if off:
        say(f"Since {shown_time(off.since)}, what no row knows is only reported. {off.reason}\n{ACCEPT}")


def _ending(run: Run) -> str:
    return ENDINGS[run.stopped] + (", to make room" if run.under_pressure else "")


def _silent(_: str) -> None:
    """Nobody watches."""
