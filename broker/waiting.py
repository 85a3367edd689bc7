"""`Prefer: wait` (RFC 7240): an asynchronous call made synchronous for a while, without polling."""

import re
import time
from uuid import UUID

from fastapi import Request

from broker.service import Service
from broker.stages import stage, tell
from custody.notices import job_ended
from custody.wire import Job


def preferred_seconds(request: Request, most: float) -> float:
    """The seconds that the client would wait, 0 where it named none, capped at `most`."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,9})", request.headers.get("prefer", ""))
    return min(float(found[1]), most) if found else 0.0


def applied(seconds: float) -> dict[str, str]:
    """The header that tells the client which wait it was granted."""
    return {"Preference-Applied": f"wait={seconds:.0f}"} if seconds else {}


async def wait_for_end(service: Service, request: Request, tenant: UUID, job_id: UUID, seconds: float) -> Job | None:
    """The job once it has ended, or as it is when the time is over or the client gone; None: no such job."""
    await wait_until_ended(service, request, tenant, job_id, seconds)
    async with stage("answer"), service.database.transaction(tenant) as transaction:
        job = await service.jobs.get(transaction, job_id)
    if job and seconds:
        tell_timings(job)
    return job


async def wait_until_ended(service: Service, request: Request, tenant: UUID, job_id: UUID, seconds: float) -> None:
    """Until the job has ended, the time is over, or the client is gone."""
    if not seconds:
        return
    deadline = time.monotonic() + seconds
    # Subscribe, then read, then wait: an end between the two is not missed.
    with stage("wait"), service.notices.subscribe(job_ended(job_id)) as subscription:
        while (remaining := deadline - time.monotonic()) > 0 and not service.stopping.is_set():
            async with service.database.transaction(tenant) as transaction:
                if await service.jobs.ended(transaction, job_id) is not False:
                    break
            if await request.is_disconnected():
                break
            await subscription.wait(remaining)


def tell_timings(job: Job) -> None:
    """What the wait consisted of. Of several inputs, which are worked on side by side, the longest of each."""
    timings = [result.timings for result in job.results or () if result.timings]
    if timings:
        tell((name, max(getattr(each, name) for each in timings)) for name in ("queue", "read", "decode", "infer"))
