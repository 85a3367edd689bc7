"""What `wharf verify` prints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer

from custody.integrity import Run

STOPPED = {
    "done": "Everything was looked at.",
    "time": "Its time was over: the next run goes on with what was not looked at for longest.",
    "asked": "It was asked to end: the next run goes on with what was not looked at for longest.",
    "error": "It broke off.",
    "killed": "It was killed.",
}


def print_run(run: Run, quarantined: Mapping[str, int], files_lost: Mapping[str, int], *, as_json: bool) -> None:
    """`quarantined`: contents, by fault; `files_lost`: by tenant, those that have such bytes."""
    if as_json:
        more = {"quarantined_by_fault": dict(quarantined), "files_lost": dict(files_lost)}
        typer.echo(json.dumps({**_document(run), **more}, indent=2))
        return
    counts = run.counts
    looked = f"{counts.checked:,} contents compared by size" if run.quick else f"{counts.checked:,} contents"
    typer.echo(f"Checked {looked}" + ("." if run.quick else f", {counts.bytes:,} bytes read."))
    typer.echo(f"Corrupt {counts.corrupt:,}, missing {counts.missing:,}, unreadable {counts.unreadable:,}.")
    if counts.restored:
        typer.echo(f"Right after all, and taken out of quarantine: {counts.restored:,}.")
    if counts.strangers is not None:
        typer.echo(f"Bytes on the volume without a row in the database: {counts.strangers:,} files.")
    if quarantined:
        told = ", ".join(f"{fault} {contents:,}" for fault, contents in sorted(quarantined.items()))
        typer.echo(f"Quarantined now, until somebody uploads the same bytes again: {told}.")
        for tenant, files in files_lost.items():
            typer.echo(f"  tenant {tenant}: {files:,} files")
    typer.echo(STOPPED[run.stopped or "killed"])


def print_history(runs: Sequence[Run], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"items": [_document(run) for run in runs]}, indent=2))
        return
    for run in runs:
        counts = run.counts
        typer.echo(
            f"{run.started_at:%Y-%m-%d %H:%M:%S}  {'quick' if run.quick else 'full':5}  {run.stopped or 'running':7}  "
            f"checked {counts.checked:,}  bytes {counts.bytes:,}  corrupt {counts.corrupt:,}  "
            f"missing {counts.missing:,}  unreadable {counts.unreadable:,}  quarantined {_shown(counts.quarantined)}  "
            f"without row {_shown(counts.strangers)}"
        )


def _document(run: Run) -> dict[str, Any]:
    return {
        "id": str(run.id),
        "started_at": run.started_at.isoformat(),
        "ended_at": run.ended_at and run.ended_at.isoformat(),
        "stopped": run.stopped,
        "quick": run.quick,
        **asdict(run.counts),
    }


def _shown(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
