"""`client.jobs`: inference on files in custody, and waiting for its end without busy polling."""

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from custody.wire import (
    EndedUnwell,
    File,
    InputResult,
    Job,
    JobInput,
    JobPage,
    JobState,
    JobSubmission,
    Parameters,
    Priority,
    ResultPage,
    Retried,
    RetryBatch,
    RetryRequest,
)
from wharfinger.session import Session, json_body, segment

# Below the 30 s after which common proxies cut a silent connection.
_LONG_POLL_SECONDS = 20.0
_RETRY_BATCH = 100
# The pause before asking again where the service answers at once although asked to wait.
_POLL_AGAIN_SECONDS = 1.0


class Jobs:
    def __init__(self, session: Session) -> None:
        self._session = session

    def submit(
        self,
        inputs: Iterable[File | UUID | JobInput],
        *,
        model: str | None = None,
        conf: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        priority: Priority | str | None = None,
        metadata: dict[str, Any] | None = None,
        expires_in: float | None = None,
        cache: bool = True,
        wait: float = 0,
    ) -> Job:
        """Start a job on files in custody, each given as a File, its id, or a JobInput. It comes back as it is after at
        most `wait` seconds. `expires_in`: seconds after which it ends as `expired` unless it has ended; `cache`:
        whether a file may be answered with what was found in its bytes before. Raises ValueError for parameters out of
        range."""
        asked = {
            "model": model,
            "params": parameters(conf, iou, max_detections),
            "priority": priority,
            "metadata": metadata,
            "expires_in": expires_in,
            "cache": cache,
        }
        submission = JobSubmission.model_validate(
            {"inputs": [_input(each) for each in inputs]} | {k: v for k, v in asked.items() if v is not None}
        )
        first = min(wait, _LONG_POLL_SECONDS)
        job = self._session.post("/v1/jobs", Job, json_body(submission), wait=first)
        return self.finish(job, wait - first)

    def get(self, job_id: UUID | str) -> Job:
        return self._session.get(f"/v1/jobs/{segment(job_id)}", Job)

    def wait(self, job_id: UUID | str, seconds: float | None = None) -> Job:
        """The job once it has ended, or as it is after `seconds`. With its results, however many they are."""
        polls = self._polls(job_id, seconds, _LONG_POLL_SECONDS)
        job = next(polls)
        for later in polls:
            job = later
        return self._with_results(job)

    def watch(self, job_id: UUID | str, every: float = 1.0) -> Iterator[Job]:
        """The job now and then about `every` seconds until it has ended; the last one is the ended job."""
        job = self.get(job_id)
        yield job
        if not job.state.ended:
            yield from self._polls(job_id, None, every)

    def finish(self, job: Job, seconds: float | None) -> Job:
        """`wait` for a job that has been read already: asks only where it has not ended."""
        if job.state.ended or (seconds is not None and seconds <= 0):
            return self._with_results(job)
        return self.wait(job.id, seconds)

    def list(
        self, *, state: JobState | str | None = None, model: str | None = None, page_size: int = 100
    ) -> Iterator[Job]:
        """All jobs, newest first; pages are fetched as the iteration reaches them."""
        asked = {"limit": page_size, "state": state, "model": model}
        for page in self._session.pages("/v1/jobs", JobPage, {k: v for k, v in asked.items() if v is not None}):
            yield from page.items

    def results(self, job_id: UUID | str, *, page_size: int = 100) -> Iterator[InputResult]:
        """What became of each input, in the order of the inputs."""
        for page in self._session.pages(f"/v1/jobs/{segment(job_id)}/results", ResultPage, {"limit": page_size}):
            yield from page.items

    def cancel(self, job_id: UUID | str) -> Job:
        return self._session.post(f"/v1/jobs/{segment(job_id)}/cancel", Job)

    def rerun(self, job_id: UUID | str, *, only_failed: bool = False, wait: float = 0) -> Job:
        """A new job on the inputs of this one, or on those alone that failed or are unprocessable. It comes back as it
        is after at most `wait` seconds."""
        first = min(wait, _LONG_POLL_SECONDS)
        asked = {"only": "failed"} if only_failed else None
        job = self._session.post(f"/v1/jobs/{segment(job_id)}/rerun", Job, params=asked, wait=first)
        return self.finish(job, wait - first)

    def retry(
        self,
        *,
        state: EndedUnwell | None = None,
        model: str | None = None,
        error_code: str | None = None,
        metadata: dict[str, Any] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        all_tenants: bool = False,
        dry_run: bool = False,
        limit: int | None = None,
    ) -> Iterator[Retried]:
        """Rerun the failed inputs of all ended jobs that fit, the oldest first, `limit` of them at most, and tell what
        came of each; batches are asked for as the iteration reaches them. A job that has been rerun already is left
        out. For admins; `all_tenants` for those of the operator's tenant. Raises ValueError for what is no filter."""
        asked = {
            "state": state,
            "model": model,
            "error_code": error_code,
            "metadata": metadata,
            "created_after": created_after,
            "created_before": created_before,
        }
        filters = {name: value for name, value in asked.items() if value is not None}
        left = math.inf if limit is None else limit
        cursor: str | None = None
        while left > 0:
            batch = {"limit": min(_RETRY_BATCH, left), "all_tenants": all_tenants, "dry_run": dry_run, "cursor": cursor}
            request = RetryRequest.model_validate(filters | batch)
            answer = self._session.post("/v1/jobs/retry", RetryBatch, json_body(request))
            yield from answer.jobs
            left -= len(answer.jobs)
            cursor = answer.next_cursor
            if cursor is None:
                return

    def _polls(self, job_id: UUID | str, seconds: float | None, every: float) -> Iterator[Job]:
        """Long polls, one at least, until the job has ended or `seconds` are over."""
        patience = self._session.patience
        deadline = math.inf if seconds is None else patience.clock() + seconds
        while True:
            asked_at = patience.clock()
            left = max(0.0, min(every, deadline - asked_at))
            job = self._session.get(f"/v1/jobs/{segment(job_id)}", Job, wait=left)
            yield job
            if job.state.ended:
                return
            early = min(left, _POLL_AGAIN_SECONDS) - (patience.clock() - asked_at)
            if early > 0:
                patience.sleep(early)
            if patience.clock() >= deadline:
                return

    def _with_results(self, job: Job) -> Job:
        if job.results is not None or not job.state.ended:
            return job
        return job.model_copy(update={"results": list(self.results(job.id))})


def parameters(conf: float | None, iou: float | None, max_detections: int | None) -> Parameters | None:
    """The parameters that were given, checked; None where there are none. Raises ValueError."""
    given = {"conf": conf, "iou": iou, "max_detections": max_detections}
    given = {name: value for name, value in given.items() if value is not None}
    return Parameters.model_validate(given) if given else None


def _input(each: File | UUID | JobInput) -> JobInput:
    match each:
        case JobInput():
            return each
        case File():
            return JobInput(file=each.id)
        case _:
            return JobInput(file=each)
