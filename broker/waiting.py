"""`Prefer: wait` (RFC 7240): an asynchronous call made synchronous for a while, without polling."""

import re
import time
from uuid import UUID

from fastapi import Request

from broker.service import Service
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
    async with service.database.transaction(tenant) as transaction:
        return await service.jobs.get(transaction, job_id)


async def wait_until_ended(service: Service, request: Request, tenant: UUID, job_id: UUID, seconds: float) -> None:
    """Until the job has ended, the time is over, or the client is gone."""
    deadline = time.monotonic() + seconds
    # Subscribe, then read, then wait: an end between the two is not missed.
    with service.notices.subscribe(job_ended(job_id)) as subscription:
        while (remaining := deadline - time.monotonic()) > 0 and not service.stopping.is_set():
            async with service.database.transaction(tenant) as transaction:
                if await service.jobs.ended(transaction, job_id) is not False:
                    break
            if await request.is_disconnected():
                break
            await subscription.wait(remaining)
