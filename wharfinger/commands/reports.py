"""How jobs and their results are shown."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.table import Table

from custody.wire import Detection, InputResult, Job, Retried
from wharfinger.commands.output import cell, print_facts, shown_time, table

_STATE_STYLE = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "expired": "yellow"}


def results_table(results: Iterable[tuple[str, InputResult]]) -> Table:
    """A row a detection, a classified picture's one for each class; an input without any, or without a result, has one
    row that says so. Each result comes with the name by which the user knows its input."""
    shown = table("Input", "Class", "Confidence", "Box (x1 y1 x2 y2)", right=("Confidence",))
    for name, result in results:
        found = sorted(result.detections or [], key=lambda each: -each.confidence)
        if result.error is not None:
            shown.add_row(
                cell(name), cell(result.state, "red"), "", cell(f"{result.error.detail} [{result.error.code}]")
            )
        elif not found:
            shown.add_row(cell(name), cell(_without_detections(result), "dim"), "", "")
        rows = [row for detection in found for row in _rows(detection)]
        for number, (label, confidence, place) in enumerate(rows):
            shown.add_row(cell(name if number == 0 else ""), cell(label), f"{confidence:.2f}", place)
        shown.add_section()
    return shown


def summary(results: Sequence[InputResult]) -> str:
    """Such as: 2 pictures, 1 failed; bus 1, person 4; yolo11n version 1."""
    classes = Counter(each.label for result in results for each in result.detections or [])
    failed = sum(result.error is not None for result in results)
    models = {f"{each.model.name} version {each.model.version}" for each in results if each.model is not None}
    return "; ".join(
        part
        for part in (
            f"{len(results)} picture{'s' * (len(results) != 1)}" + (f", {failed} failed" if failed else ""),
            ", ".join(f"{label} {count}" for label, count in classes.most_common()) or "nothing found",
            ", ".join(sorted(models)),
        )
        if part
    )


def unserved(job: Job) -> str | None:
    """What to do where the job waits for a worker and none is there."""
    if job.ready_workers != 0:
        return None
    return f"no worker serves {job.model} now: start one with `wharf worker --model {job.model}`"


def print_job(job: Job) -> None:
    print_facts(
        [
            ("job", job.id),
            ("state", job.state),
            ("progress", progress_text(job)),
            ("model", job.model),
            ("workers", unserved(job) or job.ready_workers),
            ("priority", job.priority),
            ("parameters", " ".join(f"{name}={value}" for name, value in job.parameters.model_dump().items())),
            ("metadata", job.metadata or None),
            ("created", job.created_at),
            ("finished", job.finished_at),
            ("expires", job.expires_at),
            ("rerun of", job.rerun_of),
        ]
    )


def jobs_table(jobs: Iterable[Job]) -> Table:
    shown = table("Job", "State", "Progress", "Model", "Created")
    for job in jobs:
        shown.add_row(
            cell(job.id),
            cell(job.state, _STATE_STYLE.get(job.state, "")),
            cell(progress_text(job)),
            cell(job.model),
            cell(shown_time(job.created_at)),
        )
    return shown


def retried_table(retried: Iterable[Retried]) -> Table:
    shown = table("Job", "Tenant", "Failed inputs", "Rerun", right=("Failed inputs",))
    for each in retried:
        outcome = cell(each.rerun or "")
        if each.error is not None:
            outcome = cell(f"{each.error.detail} [{each.error.code}]", "red")
        shown.add_row(cell(each.job), cell(each.tenant), cell(each.failed), outcome)
    return shown


def _without_detections(result: InputResult) -> str:
    if result.purged_at is not None:
        return "purged"
    return "nothing found" if result.detections == [] else result.state


def _rows(detection: Detection) -> list[tuple[str, float, str]]:
    """Label, confidence and place."""
    if detection.probabilities is not None:
        return [(each.label, each.confidence, "the whole picture") for each in detection.probabilities]
    return [(detection.label, detection.confidence, _place(detection))]


def _place(detection: Detection) -> str:
    box = detection.box
    if detection.rotated_box is not None:
        return ", ".join(f"{x:.0f} {y:.0f}" for x, y in detection.rotated_box.corners) + " (corners)"
    parts = [f"{box.x1:.0f} {box.y1:.0f} {box.x2:.0f} {box.y2:.0f}"]
    if detection.mask is not None:
        parts.append(f"mask of {sum(map(len, detection.mask.polygons))} points")
    if detection.keypoints is not None:
        parts.append(f"{len(detection.keypoints)} keypoints")
    return ", ".join(parts)


def progress_text(job: Job) -> str:
    failed = f", {job.progress.failed} failed" if job.progress.failed else ""
    return f"{job.progress.done} of {job.progress.total} done{failed}"
