"""`wharf verify`: looks for damaged and lost bytes, once or on a schedule, and ends what a restore has begun."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from broker.kubernetes import KubernetesError
from broker.maintenance.verify.serve import Report, accept, look_back, serve, verify_once
from broker.maintenance.verify.settings import VerifySettings
from custody.errors import CustodyError, StartError
from custody.integrity import Counts, Run
from custody.settings import load
from custody.telemetry import configure_logging
from standalone import kubernetes_job
from standalone.kubernetes_job import IN_CLUSTER, InCluster, Namespace, Release
from standalone.reach import reach
from wharfinger.commands.options import Limit
from wharfinger.commands.output import cell, print_facts, print_table, say, shown_bytes, shown_time, table

ENDINGS = {
    None: "still running",
    "done": "done",
    "time": "out of time: the next full run goes on from here",
    "asked": "asked to stop: the next full run goes on from here",
    "error": "error",
    "killed": "killed",
}
KEPT_OUT = "Another verification is running. Nothing was done."
ACCEPT = "Until it is accepted, bytes without a row are never removed: `wharf verify --accept`."


def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Compare existence and sizes, and read nothing")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Begin nothing new after so long; the next full run goes on there")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1, help="Bytes to read in a second (WHARF_VERIFY_BYTES_PER_SECOND)")
    ] = None,
    every: Annotated[float | None, typer.Option(min=0.1, help="Go on for ever, with so many seconds between")] = None,
    history: Annotated[bool, typer.Option("--history", help="Show what former runs found, and end")] = False,
    accepting: Annotated[
        bool,
        typer.Option("--accept", help="After a restore: look quickly, then let database and volume belong together"),
    ] = False,
    limit: Limit = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines")] = False,
    data: Annotated[Path | None, typer.Option(help="The folder of `wharf up`, if not the usual one")] = None,
    in_cluster: InCluster = False,
    namespace: Namespace = None,
    release: Release = None,
) -> None:
    """Compare the volume's bytes with their SHA-256, and quarantine those that are damaged or lost until somebody
    uploads them again.

    Works on the `wharf up` of this machine, or on WHARF_DATABASE_URL (role wharf_cleanup)
    and WHARF_VOLUME. Status 1 where damage was found.

    With --in-cluster the cluster does it that kubectl would reach, or of which this is a pod.
    """
    try:
        here_alone = every is not None or history or data is not None
        if in_cluster or namespace is not None or release is not None:
            if here_alone:
                raise StartError("--in-cluster goes with --quick, --accept, --max-seconds, --rate and --json alone.")
            wishes = {"--quick": quick, "--accept": accepting, "--json": as_json}
            kubernetes_job.run(
                kubernetes_job.named_cluster(namespace), "verify", release,
                {**wishes, "--max-seconds": max_seconds, "--rate": rate},
            )  # fmt: skip
            return
        url, volume = reach("wharf_cleanup", data, otherwise="" if here_alone else IN_CLUSTER)
        given = {} if rate is None else {"verify_bytes_per_second": rate}
        settings = load(VerifySettings, database_url=url, volume=volume, **given)
        if every is None:
            configure_logging(process="verify", format="text", level="warning")
        else:
            configure_logging(process="verify", format=settings.log_format, level=settings.log_level)
        tell = _progress if sys.stderr.isatty() else _silent
        if history:
            _show_history(uvloop.run(look_back(settings, limit)), as_json=as_json)
        elif every is not None:
            uvloop.run(serve(settings, every=every, quick=quick, max_seconds=max_seconds))
        elif accepting:
            _show(uvloop.run(accept(settings, tell)), as_json=as_json, accepted=True)
        else:
            report = uvloop.run(verify_once(settings, quick=quick, max_seconds=max_seconds, tell=tell))
            _show(report, as_json=as_json, accepted=False)
            if report is not None and report.run.counts.damage:
                sys.exit(1)
    except StartError as error:
        sys.exit(f"wharf verify: {error}")
    except CustodyError as error:
        sys.exit(f"wharf verify: {error.detail}")
    except KubernetesError as error:
        sys.exit(f"wharf verify: {error}")
    except TimeoutError:
        sys.exit("wharf verify: a cleanup is running and does not end. Nothing was accepted; try again.")


def _show(report: Report | None, *, as_json: bool, accepted: bool) -> None:
    if report is None:
        typer.echo("{}" if as_json else KEPT_OUT)
        return
    accepted = accepted and report.restored is not None
    if as_json:
        more = {
            "quarantined_by_fault": dict(report.quarantined),
            "files_lost": dict(report.files_lost),
            "restore_suspected": report.restored,
            "accepted": accepted,
        }
        typer.echo(json.dumps({**_document(report.run), **more}, indent=2))
        return
    counts = report.run.counts
    print_facts(
        [
            ("ended", ENDINGS[report.run.stopped]),
            ("checked", f"{counts.checked} files' bytes" + (", by size" if report.run.quick else "")),
            ("read", None if report.run.quick else shown_bytes(counts.bytes)),
            ("corrupt", counts.corrupt),
            ("missing", counts.missing),
            ("unreadable", counts.unreadable),
            ("right after all", counts.restored or None),
            ("without a row", counts.strangers),
            ("quarantined now", ", ".join(f"{fault} {number}" for fault, number in report.quarantined.items()) or 0),
            *((f"lost of {tenant}", f"{files} files") for tenant, files in report.files_lost.items()),
        ]
    )
    if report.restored:
        say(report.restored)
        say("Accepted: database and volume belong together as they are." if accepted else ACCEPT)


def _show_history(runs: Sequence[Run], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"items": [_document(run) for run in runs]}, indent=2))
        return
    numbers = ("Checked", "Read", "Corrupt", "Missing", "Unreadable", "Without row", "Quarantined")
    shown = table("Started", "Took", "Ended", *numbers, right=("Took", *numbers))
    for run in runs:
        counts = run.counts
        took = f"{(run.ended_at - run.started_at).total_seconds():.1f} s" if run.ended_at else ""
        shown.add_row(
            cell(shown_time(run.started_at)), took, cell((run.stopped or "running") + ", quick" * run.quick),
            str(counts.checked), shown_bytes(counts.bytes), str(counts.corrupt), str(counts.missing),
            str(counts.unreadable), _number(counts.strangers), _number(counts.quarantined),
        )  # fmt: skip
    print_table(shown)


def _document(run: Run) -> dict[str, Any]:
    return {
        "id": str(run.id),
        "started_at": run.started_at.isoformat(),
        "ended_at": run.ended_at and run.ended_at.isoformat(),
        "stopped": run.stopped,
        "quick": run.quick,
        **asdict(run.counts),
    }


def _number(counted: int | None) -> str:
    return "" if counted is None else str(counted)


def _progress(counts: Counts) -> None:
    say(f"{counts.checked} looked at, {shown_bytes(counts.bytes)} read, {counts.damage} damaged")


def _silent(_: Counts) -> None:
    """Nobody watches."""
