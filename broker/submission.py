"""What every way to a new job has in common: its admission, its announcement, and the answer."""

from typing import Any
from uuid import UUID

import structlog
from fastapi import Request, Response

from broker import headers
from broker.answers import answer
from broker.backlog import Admission
from broker.service import Service
from broker.waiting import applied, preferred_seconds, wait_for_end
from custody import models
from custody.database import Transaction
from custody.errors import CustodyError
from custody.jobs import Submitted
from custody.notices import Subscription, tasks_queued
from custody.wire import Job, Priority

log = structlog.get_logger()

_OF_JOB = headers.sent("Location", "Preference-Applied")
ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "It has ended, within the wait that was asked for", **_OF_JOB},
    202: {"model": Job, "description": "Accepted: it will end, whatever dies; ask again at `Location`", **_OF_JOB},
}


async def admit(
    service: Service, admission: Admission, transaction: Transaction, tenant: UUID, model: str | None, inputs: int
) -> str:
    """The name of the model, once there is room for so many inputs in its pool."""
    try:
        name = await models.resolve(transaction, model or service.settings.default_model)
        await admission.admit(transaction, tenant, name, inputs)
    except CustodyError as error:
        service.metrics.refused.labels(error.code).inc()
        raise
    return name


def known(submitted: Submitted) -> dict[str, Any] | None:
    """What a receipt says of answers from the cache."""
    return {"cached": submitted.answered} if submitted.answered else None


async def known_job(service: Service, transaction: Transaction, submitted: Submitted, inputs: int) -> Job | None:
    """The job that was submitted in this transaction, where all its inputs are answered already."""
    return await service.jobs.get(transaction, submitted.job_id) if submitted.answered == inputs else None


def announce(service: Service, submitted: Submitted, model: str, priority: Priority, inputs: int) -> None:
    """After the commit."""
    if submitted.answered < inputs:
        service.notices.tell(tasks_queued(model, priority))
    service.metrics.inputs.labels(model).inc(inputs)
    service.metrics.cached.labels(model).inc(submitted.answered)
    log.info("job_submitted", job_id=str(submitted.job_id), model=model, inputs=inputs, cached=submitted.answered)


async def answer_job(
    request: Request,
    service: Service,
    tenant: UUID,
    job_id: UUID,
    told: Subscription | None = None,
    job: Job | None = None,
) -> Response:
    """`told`: as in `wait_for_end`; `job`: as it is at its end, where that has come."""
    seconds = preferred_seconds(request, service.settings.max_wait_seconds)
    job = job or await wait_for_end(service, request, tenant, job_id, seconds, told)
    if job is None:
        raise CustodyError(
            "gone", "The job that this key created is over and has been removed. Take a new key to run it again."
        )
    where = {"Location": f"/v1/jobs/{job_id}", **applied(seconds)}
    # Whoever does not wait is told 202, also where a worker was quicker than this answer.
    return answer(job, 200 if seconds and job.state.ended else 202, where)
