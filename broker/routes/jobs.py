"""/v1/predict and /v1/jobs: work submitted, watched, cancelled."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from broker import body, headers, paging, problems
from broker.access import Reader, Writer
from broker.answers import answer, no_such, parse_id
from broker.routes import IdempotencyKey
from broker.service import ServiceDep
from broker.stages import stage
from broker.submission import ACCEPTED, accept, admit, announce, answer_job, record_replay
from broker.waiting import applied, preferred_seconds, wait_for_end
from custody import idempotency
from custody.audit import Action
from custody.errors import CustodyError
from custody.ids import new_id
from custody.notices import job_ended
from custody.wire import (
    CACHE,
    Job,
    JobPage,
    JobState,
    JobSubmission,
    JsonObject,
    Parameters,
    PredictFields,
    Priority,
    ResultPage,
    Text,
)

log = structlog.get_logger()
router = APIRouter(prefix="/v1", tags=["jobs"])

JSON_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonObject)

FEW_INPUTS = 100
"""A job of more that names no priority stands back behind single pictures."""

PREDICT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "model": {"type": "string"},
                        "conf": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.25},
                        "iou": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.7},
                        "max_detections": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 300},
                        "priority": {"type": "string", "enum": ["interactive", "batch"]},
                        "expires_in": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds"},
                        "file_expires_in": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds"},
                        "cache": {"type": "boolean", "default": True, "description": CACHE},
                        "metadata": {"type": "string", "description": "A JSON object"},
                    },
                }
            }
        },
    }
}
SUBMISSION_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobSubmission"}}},
    }
}


@router.post(
    "/predict",
    summary="Upload pictures and run a model",
    response_model=Job,
    responses={**ACCEPTED, **problems.answers(*problems.SUBMITTED, *problems.UPLOAD)},
    openapi_extra={**PREDICT_BODY, **headers.read("Prefer")},
)
async def predict(
    request: Request, service: ServiceDep, principal: Writer, idempotency_key: IdempotencyKey = None
) -> Response:
    """Upload and job in one call, one transaction. With `Prefer: wait=SECONDS` the answer has the boxes."""
    tenant = principal.tenant_id
    job_id = new_id()
    with service.notices.subscribe(job_ended(job_id)) as told:
        async with body.receive(request, service, tenant, part="image", raw=False) as received:
            wish = body.fields_of(received, PredictFields)
            digests = [upload.staged.sha256 for upload in received.uploads]
            wanted = idempotency.fingerprint("POST /v1/predict", wish.model_dump(mode="json"), digests)
            async with (
                stage("commit"),
                service.backlog.admission() as admission,
                service.database.transaction(tenant) as transaction,
            ):
                replay = await idempotency.begin(transaction, tenant, idempotency_key, wanted)
                if replay:
                    await record_replay(request, service, principal, transaction, Action.JOB_PREDICTED, replay)
                else:
                    model = await admit(service, admission, transaction, tenant, wish.model, len(received.uploads))
                    kept = await service.files.keep(
                        transaction, tenant, received.uploads, kept_for=wish.file_expires_in
                    )
                    accepted = await accept(
                        request,
                        service,
                        principal,
                        transaction,
                        Action.JOB_PREDICTED,
                        job_id=job_id,
                        model=model,
                        files=kept.files,
                        parameters=Parameters(conf=wish.conf, iou=wish.iou, max_detections=wish.max_detections),
                        priority=wish.priority,
                        wish=wish,
                        idempotency_key=idempotency_key,
                    )
        if replay:
            return await answer_job(request, service, tenant, replay.resource[0])
        service.metrics.count(kept)
        announce(service, accepted)
        return await answer_job(request, service, tenant, job_id, told, accepted.job)


@router.post(
    "/jobs",
    summary="Run a model on files",
    response_model=Job,
    responses={**ACCEPTED, **problems.answers(*problems.SUBMITTED, *problems.JSON_BODY, "not_found", "file_corrupt")},
    openapi_extra={**SUBMISSION_BODY, **headers.read("Prefer")},
)
async def submit(
    request: Request, service: ServiceDep, principal: Writer, idempotency_key: IdempotencyKey = None
) -> Response:
    """A job on files that you hold: one task for each input."""
    tenant = principal.tenant_id
    wish = await body.read_json(request, JobSubmission, service.settings)
    settings = service.settings
    _check_inputs(wish, min(settings.max_job_inputs, settings.max_tenant_backlog, settings.max_pool_backlog))
    priority = wish.priority or (Priority.INTERACTIVE if len(wish.inputs) <= FEW_INPUTS else Priority.BATCH)
    wanted = idempotency.fingerprint("POST /v1/jobs", wish.model_dump(mode="json"), [])
    job_id = new_id()
    with service.notices.subscribe(job_ended(job_id)) as told:
        async with (
            stage("commit"),
            service.backlog.admission() as admission,
            service.database.transaction(tenant) as transaction,
        ):
            replay = await idempotency.begin(transaction, tenant, idempotency_key, wanted)
            if replay:
                await record_replay(request, service, principal, transaction, Action.JOB_SUBMITTED, replay)
            else:
                model = await admit(service, admission, transaction, tenant, wish.model, len(wish.inputs))
                accepted = await accept(
                    request,
                    service,
                    principal,
                    transaction,
                    Action.JOB_SUBMITTED,
                    job_id=job_id,
                    model=model,
                    files=await service.files.hold(transaction, wish.inputs),
                    parameters=wish.params,
                    priority=priority,
                    wish=wish,
                    idempotency_key=idempotency_key,
                )
        if replay:
            return await answer_job(request, service, tenant, replay.resource[0])
        announce(service, accepted)
        return await answer_job(request, service, tenant, job_id, told, accepted.job)


@router.get(
    "/jobs", summary="List jobs", response_model=JobPage, responses=problems.answers(*problems.KEYED, "invalid_request")
)
async def list_jobs(
    request: Request,
    service: ServiceDep,
    principal: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
    state: JobState | None = None,
    model: Text | None = None,
    metadata: Annotated[str | None, Query(description="A JSON object that the job's metadata contains")] = None,
) -> Response:
    """Newest first, without results."""
    async with service.database.transaction(principal.tenant_id) as transaction:
        jobs = await service.jobs.page(
            transaction,
            before=paging.decode_id(cursor),
            limit=limit,
            state=state,
            model=model,
            metadata=None if metadata is None else _json_object(metadata),
        )
        await service.audit.record(
            transaction,
            principal,
            request.scope["request_id"],
            Action.JOB_LISTED,
            jobs=[job.id for job in jobs],
        )
    return answer(JobPage(items=jobs, next_cursor=paging.encode(jobs[-1].id) if len(jobs) == limit else None))


@router.get(
    "/jobs/{job_id}",
    summary="Describe a job, or wait for it",
    response_model=Job,
    responses={200: headers.sent("Preference-Applied"), **problems.answers(*problems.KEYED, "not_found")},
    openapi_extra=headers.read("Prefer"),
)
async def get(request: Request, service: ServiceDep, principal: Reader, job_id: str) -> Response:
    """With `Prefer: wait=SECONDS` it answers when the job has ended, or as it stands when the time is over."""
    seconds = preferred_seconds(request, service.settings.max_wait_seconds)
    wanted = parse_id(job_id, "job")
    job = await wait_for_end(service, request, principal.tenant_id, wanted, seconds)
    if job is None:
        raise no_such("job")
    found = any(result.detections is not None for result in job.results or ())
    action = Action.RESULTS_READ if found else Action.JOB_SEEN
    if service.audit.keeps(action):
        async with service.database.transaction(principal.tenant_id) as transaction:
            await service.audit.record(transaction, principal, request.scope["request_id"], action, jobs=[wanted])
    return answer(job, headers=applied(seconds))


@router.get(
    "/jobs/{job_id}/results",
    summary="Page through a job's results",
    response_model=ResultPage,
    responses={
        200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}, **headers.sent("Link")},
        **problems.answers(*problems.KEYED, "not_found", "invalid_request"),
    },
)
async def results(
    request: Request,
    service: ServiceDep,
    principal: Reader,
    job_id: str,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
    format: Literal["json", "jsonl"] = "json",
) -> Response:
    """In the order of the inputs. `jsonl`: a page as one result a line, the next page's address in `Link`."""
    wanted = parse_id(job_id, "job")
    async with service.database.transaction(principal.tenant_id) as transaction:
        total = await service.jobs.total(transaction, wanted)
        if total is None:
            raise no_such("job")
        page = await service.jobs.results(transaction, wanted, after=paging.decode_number(cursor), limit=limit)
        await service.audit.record(
            transaction,
            principal,
            request.scope["request_id"],
            Action.RESULTS_READ,
            jobs=[wanted],
            details={"inputs": [page[0].input, page[-1].input]} if page else None,
        )
    following = paging.encode(page[-1].input) if page and page[-1].input < total - 1 else None
    if format == "json":
        return answer(ResultPage(items=page, next_cursor=following))
    link = f'</v1/jobs/{wanted}/results?format=jsonl&limit={limit}&cursor={following}>; rel="next"'
    lines = "".join(f"{result.model_dump_json()}\n" for result in page)
    return Response(lines, headers={"Link": link} if following else {}, media_type="application/jsonl")


@router.post(
    "/jobs/{job_id}/cancel",
    summary="Cancel a job",
    response_model=Job,
    responses={200: headers.sent("Preference-Applied"), **problems.answers(*problems.KEYED, "forbidden", "not_found")},
    openapi_extra=headers.read("Prefer"),
)
async def cancel(request: Request, service: ServiceDep, principal: Writer, job_id: str) -> Response:
    """Ends the job unless it has ended; what ran in time keeps its result. Says the same however often it is sent."""
    wanted = parse_id(job_id, "job")
    async with service.database.transaction(principal.tenant_id) as transaction:
        cancelled = await service.jobs.cancel(transaction, wanted)
        if cancelled:
            await service.audit.record(
                transaction, principal, request.scope["request_id"], Action.JOB_CANCELLED, jobs=[wanted]
            )
    if cancelled:
        async with service.database.transaction(principal.tenant_id) as transaction:
            await service.tasks.cancel_open(transaction, wanted)
            await service.jobs.freeze(transaction, wanted)
        service.notices.tell(job_ended(wanted))
        log.info("job_cancelled", job_id=str(wanted))
    return await get(request, service, principal, job_id)


def _check_inputs(wish: JobSubmission, most: int) -> None:
    if len(wish.inputs) > most:
        raise CustodyError("request_too_large", f"A job may have {most} inputs; cut it in several.", field="inputs")
    for number, wanted in enumerate(wish.inputs):
        if (wanted.file is None) == (wanted.sha256 is None):
            raise CustodyError(
                "invalid_request", f"Input {number} names either a file or a sha256.", field=f"inputs.{number}"
            )


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        return JSON_OBJECT.validate_json(text)
    except ValidationError:
        raise CustodyError("invalid_request", "`metadata` is a JSON object.", field="metadata") from None
