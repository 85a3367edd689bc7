"""`wharf jobs`: what was asked, how far it is, what was found."""

from datetime import datetime
from itertools import islice
from typing import Annotated
from uuid import UUID

import typer

from custody.wire import EndedUnwell, Job, JobState
from wharfinger.commands.failures import FAILED
from wharfinger.commands.options import SINCE, Json, Limit, Server, connect, moment
from wharfinger.commands.output import print_document, print_items, print_table, progress_bar, say
from wharfinger.commands.reports import jobs_table, print_job, progress_text, results_table, retried_table, summary

app = typer.Typer(no_args_is_help=True, help="Jobs: list, show, results, watch, cancel, rerun, retry.")

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


@app.command()
def rerun(
    job_id: JobId,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Only the inputs that failed or are unprocessable.")
    ] = False,
    server: Server = None,
    json: Json = False,
) -> None:
    """Run a job's inputs again, as a new job."""
    with connect(server) as client:
        job = client.jobs.rerun(job_id, only_failed=only_failed)
    if json:
        print_document(job)
    else:
        _tell(job)


@app.command()
def retry(
    state: Annotated[EndedUnwell | None, typer.Option(help="Only jobs that ended so.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs on this model.")] = None,
    error_code: Annotated[str | None, typer.Option(help="Only jobs with an input that failed with this code.")] = None,
    since: Annotated[datetime | None, typer.Option(parser=moment, metavar="TIME", help=SINCE)] = None,
    until: Annotated[datetime | None, typer.Option(parser=moment, metavar="TIME", help="Created before.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many jobs, the oldest first.")] = None,
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Every tenant's: operators only.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be rerun.")] = False,
    server: Server = None,
    json: Json = False,
) -> None:
    """Rerun the failed inputs of many ended jobs, as after an outage. Exits with 1 where one cannot be rerun.

    A job that has been rerun already is left out: what is broken off may be sent again.
    """
    with connect(server) as client:
        retried = client.jobs.retry(
            state=state,
            model=model,
            error_code=error_code,
            created_after=since,
            created_before=until,
            all_tenants=all_tenants,
            dry_run=dry_run,
            limit=limit,
        )
        found = list(retried)
    if json:
        print_items(found)
    else:
        print_table(retried_table(found))
    refused = sum(each.error is not None for each in found)
    say(f"{len(found) - refused} jobs {'would be ' if dry_run else ''}rerun, {refused} cannot be")
    if refused:
        raise typer.Exit(FAILED)


def _tell(job: Job) -> None:
    typer.echo(f"{job.id} {job.state}: {progress_text(job)}")
