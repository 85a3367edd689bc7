"""/v1/jobs/{id}/rerun and /v1/jobs/retry: what failed, or all of it, once more as new jobs."""

import time
from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response

from broker import body, headers, paging, problems
from broker.access import Admin, Writer
from broker.answers import answer, no_such, parse_id
from broker.backlog import Admission
from broker.routes import IdempotencyKey
from broker.service import Service, ServiceDep
from broker.stages import stage
from broker.submission import ACCEPTED, Accepted, admit, announce, answer_job, record_replay
from custody import idempotency, reruns
from custody.audit import Action
from custody.database import Transaction
from custody.errors import CustodyError
from custody.jobs import Submitted
from custody.reruns import Match, Original, Walk
from custody.tenants import Principal
from custody.wire import InputError, Job, Outcome, Retried, RetryBatch, RetryRequest

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

BATCH_INPUTS = 20_000
BATCH_SECONDS = 10.0
"""A batch of a retry ends early once it has rerun so much, or taken so long: nobody waits for ever for its answer."""

RETRY_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RetryRequest"}}},
    }
}


@router.post(
    "/{job_id}/rerun",
    summary="Run a job again",
    response_model=Job,
    responses={
        **ACCEPTED,
        **problems.answers(
            *problems.SUBMITTED, "not_found", "file_corrupt", "input_gone", "job_not_ended", "nothing_to_rerun"
        ),
    },
    openapi_extra=headers.read("Prefer"),
)
async def rerun(
    request: Request,
    service: ServiceDep,
    principal: Writer,
    job_id: str,
    only: Literal["failed"] | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new job on the inputs of this one, or on those that failed or are unprocessable. You must still hold their
    bytes."""
    tenant = principal.tenant_id
    repeated = parse_id(job_id, "job")
    wanted = idempotency.fingerprint("POST /v1/jobs/{id}/rerun", {"job": str(repeated), "only": only}, [])
    async with (
        stage("commit"),
        service.backlog.admission() as admission,
        service.database.transaction(tenant) as transaction,
    ):
        replay = await idempotency.begin(transaction, tenant, idempotency_key, wanted)
        if replay:
            await record_replay(request, service, principal, transaction, Action.JOB_RERUN, replay)
        else:
            original = await _original(transaction, repeated, only_failed=only is not None)
            accepted = await _submit(request, service, principal, admission, transaction, tenant, original)
            new_job = accepted.submitted.job_id
            await idempotency.record(transaction, tenant, idempotency_key, status=202, resource=[new_job])
    if replay:
        return await answer_job(request, service, tenant, replay.resource[0])
    announce(service, accepted)
    return await answer_job(request, service, tenant, new_job)


@router.post(
    "/retry",
    summary="Rerun what failed of many jobs",
    response_model=RetryBatch,
    responses=problems.answers(*problems.SUBMITTED, *problems.JSON_BODY),
    openapi_extra=RETRY_BODY,
)
async def retry(
    request: Request, service: ServiceDep, principal: Admin, idempotency_key: IdempotencyKey = None
) -> Response:
    """Reruns the failed inputs of ended jobs that fit a filter, the oldest first, in batches: `next_cursor` goes on. A
    job that has been rerun already is left out, so sending a retry twice reruns nothing twice. A job that cannot be
    rerun is told with its error; where there is no room now, the batch ends before it."""
    wish = await body.read_json(request, RetryRequest, service.settings)
    tenant = principal.tenant_id
    wanted = idempotency.fingerprint("POST /v1/jobs/retry", wish.model_dump(mode="json"), [])
    walk = paging.decode_walk(wish.cursor) if wish.cursor is not None else None
    async with service.database.transaction(tenant) as transaction:
        replay = await idempotency.begin(transaction, tenant, idempotency_key, wanted)
        if not replay:
            await idempotency.record(transaction, tenant, idempotency_key, status=200, resource=[])
        # A walk whose first answer was lost is the same walk again.
        walk = walk or Walk(replay.began if replay else await reruns.now(transaction))
        matches = await reruns.matching(transaction, wish, walk)
        # The order; what came of it has a receipt of its own in each job's tenant.
        await service.audit.record(
            transaction,
            principal,
            request.scope["request_id"],
            Action.JOB_RETRIED,
            outcome=Outcome.REPLAYED if replay else Outcome.DONE,
            details={"all_tenants": wish.all_tenants, "dry_run": wish.dry_run},
        )
    done = await _retry_batch(request, service, principal, walk, matches, dry_run=wish.dry_run)
    over = len(done) == len(matches) < wish.limit
    following = None if over else paging.encode(Walk(walk.began, done[-1].job))
    return answer(RetryBatch(jobs=done, next_cursor=following))


async def _retry_batch(
    request: Request, service: Service, principal: Principal, walk: Walk, matches: list[Match], *, dry_run: bool
) -> list[Retried]:
    """What came of each; fewer than were given where the batch ends early, but one at least.

    Raises the `CustodyError` of the first where it may succeed later."""
    done: list[Retried] = []
    inputs, began = 0, time.monotonic()
    for match in matches:
        if inputs >= BATCH_INPUTS or time.monotonic() - began > BATCH_SECONDS:
            break
        new_job, error = match.rerun, None
        if not dry_run:
            try:
                new_job = await _retry(request, service, principal, walk, match)
                inputs += match.failed
            except CustodyError as refusal:
                if refusal.kind.retryable:
                    if not done:
                        raise
                    break
                error = InputError(code=refusal.code, detail=refusal.detail)
        done.append(Retried(job=match.job, tenant=match.tenant, failed=match.failed, rerun=new_job, error=error))
    return done


async def _retry(request: Request, service: Service, principal: Principal, walk: Walk, match: Match) -> UUID:
    """The job that reruns this one's failed inputs, made now or by another try of the same walk."""
    tenant = match.tenant_id
    async with (
        stage("commit"),
        service.backlog.admission() as admission,
        service.database.transaction(tenant) as transaction,
    ):
        if known := await reruns.newest_rerun(transaction, match.job):
            return known
        original = await _original(transaction, match.job, only_failed=True)
        accepted = await _submit(request, service, principal, admission, transaction, tenant, original)
    announce(service, accepted)
    return accepted.submitted.job_id


async def _original(transaction: Transaction, job_id: UUID, *, only_failed: bool) -> Original:
    original = await reruns.original(transaction, job_id, only_failed=only_failed)
    if original is None:
        raise no_such("job")
    return original


async def _submit(
    request: Request,
    service: Service,
    principal: Principal,
    admission: Admission,
    transaction: Transaction,
    tenant: UUID,
    original: Original,
) -> Accepted:
    await admit(service, admission, transaction, tenant, original.model, len(original.inputs))
    wanted = [each.sha256 for each in original.inputs]
    held = await service.files.hold_known(transaction, wanted)
    reruns.require_held(original, held, await service.files.damaged(transaction, set(wanted) - held))
    new_job = await service.jobs.repeat(
        transaction, original.job_id, [each.input for each in original.inputs], traceparent=request.scope["traceparent"]
    )
    await service.audit.record(
        transaction,
        principal,
        request.scope["request_id"],
        Action.JOB_RERUN,
        jobs=[new_job, original.job_id],
        sha256=sorted(held),
        names=[original.model],
    )
    return Accepted(Submitted(new_job, 0), original.model, original.priority, len(original.inputs))
