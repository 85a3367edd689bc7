"""What every way to a new job has in common: its admission, its acceptance, its announcement, and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from fastapi import Request, Response

from broker import headers
from broker.answers import answer
from broker.backlog import Admission
from broker.service import Service
from broker.waiting import applied, preferred_seconds, wait_for_end
from custody import idempotency, models
from custody.audit import Action
from custody.database import Transaction
from custody.errors import CustodyError
from custody.idempotency import Replay
from custody.jobs import Submitted
from custody.notices import Subscription, tasks_queued
from custody.tenants import Principal
from custody.wire import File, Job, JobSubmission, Outcome, Parameters, PredictFields, Priority

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


@dataclass(frozen=True)
class Accepted:
    """A job that is there once its transaction has committed. `job`: as it is then, where the cache has answered all of
    its inputs."""

    submitted: Submitted
    model: str
    priority: Priority
    inputs: int
    job: Job | None = None


async def accept(
    request: Request,
    service: Service,
    principal: Principal,
    transaction: Transaction,
    action: Action,
    *,
    job_id: UUID,
    model: str,
    files: Sequence[File],
    parameters: Parameters,
    priority: Priority,
    wish: PredictFields | JobSubmission,
    idempotency_key: str | None,
) -> Accepted:
    """The job on these files, with its receipt. The caller holds the files' bytes in this transaction."""
    tenant = principal.tenant_id
    submitted = await service.jobs.submit(
        transaction,
        tenant,
        model=model,
        files=files,
        parameters=parameters,
        priority=priority,
        metadata=wish.metadata,
        expires_in=wish.expires_in,
        traceparent=request.scope["traceparent"],
        job_id=job_id,
        cache=wish.cache and service.settings.result_cache,
    )
    await idempotency.record(transaction, tenant, idempotency_key, status=202, resource=[job_id])
    await service.audit.record(
        transaction,
        principal,
        request.scope["request_id"],
        action,
        jobs=[job_id],
        files=files,
        names=[model],
        details={"cached": submitted.answered} if submitted.answered else None,
    )
    is_known = submitted.answered == len(files)
    job = await service.jobs.get(transaction, job_id) if is_known else None
    return Accepted(submitted, model, priority, len(files), job)


async def record_replay(
    request: Request, service: Service, principal: Principal, transaction: Transaction, action: Action, replay: Replay
) -> None:
    """The receipt of a request that was sent again."""
    await service.audit.record(
        transaction,
        principal,
        request.scope["request_id"],
        action,
        outcome=Outcome.REPLAYED,
        jobs=replay.resource,
    )


def announce(service: Service, accepted: Accepted) -> None:
    """After the commit."""
    job_id, answered = accepted.submitted.job_id, accepted.submitted.answered
    if answered < accepted.inputs:
        service.notices.tell(tasks_queued(accepted.model, accepted.priority))
    service.metrics.inputs.labels(accepted.model).inc(accepted.inputs)
    service.metrics.cached.labels(accepted.model).inc(answered)
    log.info("job_submitted", job_id=str(job_id), model=accepted.model, inputs=accepted.inputs, cached=answered)


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
