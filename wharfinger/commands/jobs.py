"""`wharf jobs`: what was asked, how far it is, what was found."""

from itertools import islice
from typing import Annotated
from uuid import UUID

import typer

from custody.wire import Job, JobState
from wharfinger.commands.failures import FAILED
from wharfinger.commands.options import Json, Limit, Server, connect
from wharfinger.commands.output import print_document, print_items, print_table, progress_bar, say
from wharfinger.commands.reports import jobs_table, print_job, progress_text, results_table, summary

app = typer.Typer(no_args_is_help=True, help="Jobs: list, show, results, watch, cancel.")

JobId = Annotated[UUID, typer.Argument(metavar="ID", help="A job's id, from `wharf jobs list`.")]


@app.command("list")
def list_jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs on this model.")] = None,
    limit: Limit = 50,
    server: Server = None,
    json: Json = False,
) -> None:
    """List the jobs, the newest first."""
    with connect(server) as client:
        jobs = islice(client.jobs.list(state=state, model=model, page_size=min(limit, 100)), limit)
        if json:
            print_items(jobs)
        else:
            print_table(jobs_table(jobs))


@app.command()
def show(job_id: JobId, server: Server = None, json: Json = False) -> None:
    """Tell all about one job."""
    with connect(server) as client:
        job = client.jobs.get(job_id)
    if json:
        print_document(job)
    else:
        print_job(job)


@app.command()
def results(job_id: JobId, server: Server = None, json: Json = False) -> None:
    """Show what was found in each input so far."""
    with connect(server) as client:
        found = list(client.jobs.results(job_id))
    if json:
        print_items(found)
        return
    print_table(results_table([(each.filename or str(each.file_id or each.sha256), each) for each in found]))
    say(summary(found))


@app.command()
def watch(job_id: JobId, server: Server = None, json: Json = False) -> None:
    """Wait for a job's end, with its progress. Exits with 1 unless it succeeds."""
    with connect(server) as client, progress_bar() as bar:
        task = bar.add_task("Inferring", total=None)
        for job in client.jobs.watch(job_id):
            bar.update(task, completed=job.progress.done + job.progress.failed, total=job.progress.total)
        job = client.jobs.finish(job, None)
    if json:
        print_document(job)
    else:
        _tell(job)
    if job.state is not JobState.SUCCEEDED:
        raise typer.Exit(FAILED)


@app.command()
def cancel(
    job_ids: Annotated[list[UUID], typer.Argument(metavar="ID", help="Jobs' ids.")],
    server: Server = None,
    json: Json = False,
) -> None:
    """Stop jobs. What has been found stays readable."""
    with connect(server) as client:
        jobs = [client.jobs.cancel(job_id) for job_id in job_ids]
    if json:
        print_items(jobs)
    else:
        for job in jobs:
            _tell(job)


def _tell(job: Job) -> None:
    typer.echo(f"{job.id} {job.state}: {progress_text(job)}")
