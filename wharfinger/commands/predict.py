"""`wharf predict`: pictures in, a table of what is on them out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from custody.wire import MOST_SECONDS, InputResult, Job, JobPage, JobState
from wharfinger.client import Client
from wharfinger.commands.failures import FAILED
from wharfinger.commands.inputs import Input, gather
from wharfinger.commands.options import Json, Server, connect
from wharfinger.commands.output import print_document, print_table, progress_bar, say
from wharfinger.commands.reports import results_table, summary, unserved
from wharfinger.commands.sending import send
from wharfinger.errors import DrawingError

# A folder beyond this becomes several jobs, so that the first is inferred while the next is still sent.
_INPUTS_A_JOB = 500


def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Pictures, folders of pictures, - for stdin.")],
    model: Annotated[str | None, typer.Option(help="A model's name; otherwise the service's default.")] = None,
    conf: Annotated[float | None, typer.Option(min=0, max=1, help="Least confidence shown.")] = None,
    iou: Annotated[float | None, typer.Option(min=0, max=1, help="Overlap above which the weaker box goes.")] = None,
    expires_in: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, max=MOST_SECONDS, help="Give up what has not been inferred by then."),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Whether what was found in the same bytes before may be the answer."),
    ] = True,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the pictures with their boxes in this folder.")
    ] = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Find the objects in pictures.

    With --json: the job as the API answers it, with all its results;
    beyond 500 pictures an object whose "items" are such jobs.
    """
    with ExitStack() as stack:
        inputs = gather(paths, stack)
        if save is not None:
            _make_folder(save)
        client = stack.enter_context(connect(server))
        batches: list[_Batch] = []
        for start in range(0, len(inputs), _INPUTS_A_JOB):
            sent = send(client, inputs[start : start + _INPUTS_A_JOB])
            if sent:
                job = client.jobs.submit(
                    [each.file for each in sent],
                    model=model,
                    conf=conf,
                    iou=iou,
                    expires_in=expires_in,
                    cache=cache,
                )
                batches.append(_Batch(job, [each.input for each in sent]))
        jobs = _wait(client, [each.job for each in batches])
        outcomes = [
            (batch.inputs[result.input], result)
            for batch, job in zip(batches, jobs, strict=True)
            for result in job.results or []
        ]
        if jobs and json:
            print_document(jobs[0] if len(inputs) <= _INPUTS_A_JOB else JobPage(items=jobs, next_cursor=None))
        elif jobs:
            print_table(results_table([(each.shown, result) for each, result in outcomes]))
            say(summary([result for _, result in outcomes]))
        all_drawn = save is None or _draw(outcomes, save)
    all_sent = len(inputs) == sum(len(each.inputs) for each in batches)
    if not (all_sent and all_drawn and all(job.state is JobState.SUCCEEDED for job in jobs)):
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Batch:
    """A job and its inputs, in the job's order."""

    job: Job
    inputs: list[Input]


def _wait(client: Client, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with their results once all have ended."""
    ended: list[Job] = []
    told: set[str] = set()
    with progress_bar() as bar:
        task = bar.add_task("Inferring", total=sum(job.progress.total for job in jobs))
        try:
            for job in jobs:
                before = sum(each.progress.total for each in ended)
                for now in client.jobs.watch(job.id):
                    if (advice := unserved(now)) and advice not in told:
                        told.add(advice)
                        say(advice)
                    bar.update(task, completed=before + now.progress.done + now.progress.failed)
                ended.append(client.jobs.finish(now, None))
        except KeyboardInterrupt:
            left = [str(job.id) for job in jobs[len(ended) :]]
            say(f"Stopped waiting; the service goes on. To stop that too: wharf jobs cancel {' '.join(left)}")
            raise
    return ended


def _draw(outcomes: Sequence[tuple[Input, InputResult]], folder: Path) -> bool:
    """Save every picture that has a result; whether all of them could be drawn."""
    from wharfinger.drawing import save_annotated  # Pillow is needed here alone, and is slow to import.

    used: set[str] = set()
    failed = 0
    for each, result in outcomes:
        if result.detections is None:
            continue
        target = folder / _unused(Path(each.shown).stem, used)
        try:
            save_annotated(each.path, result.detections, target)
        except DrawingError as error:
            failed += 1
            say(f"{each.shown}: {error}")
        else:
            say(f"saved {target}")
    return failed == 0


def _unused(stem: str, used: set[str]) -> str:
    """Pictures of the same name from different folders get numbers."""
    name, number = f"{stem}.annotated.jpg", 1
    while name in used:
        number += 1
        name = f"{stem}-{number}.annotated.jpg"
    used.add(name)
    return name


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot make the folder {folder}: {error.strerror}") from error
