"""`Prefer: wait` (RFC 7240): an asynchronous call made synchronous for a while, without polling."""

import re
import time
from contextlib import ExitStack
from uuid import UUID

from fastapi import Request

from broker.service import Service
from broker.stages import stage, tell
from custody.notices import Subscription, job_ended
from custody.wire import Job


def preferred_seconds(request: Request, most: float) -> float:
    """The seconds that the client would wait, 0 where it named none, capped at `most`."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,9})", request.headers.get("prefer", ""))
    return min(float(found[1]), most) if found else 0.0


def applied(seconds: float) -> dict[str, str]:
    """The header that tells the client which wait it was granted."""
    return {"Preference-Applied": f"wait={seconds:.0f}"} if seconds else {}


async def wait_for_end(
    service: Service, request: Request, tenant: UUID, job_id: UUID, seconds: float, told: Subscription | None = None
) -> Job | None:
    """The job once it has ended, or as it is when the time is over or the client gone; None: no such job. `told`: of
    its end, subscribed to before the job was there: nothing was missed, and the first look is when it tells of it."""
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        if told is None:
            # Subscribe, then read, then wait: an end between the two is not missed.
            told = stack.enter_context(service.notices.subscribe(job_ended(job_id)))
        elif seconds and not service.stopping.is_set():
            with stage("wait"):
                await told.wait(seconds)
        while True:
            async with stage("answer"), service.database.statements(tenant) as statements:
                job = await service.jobs.get(statements, job_id)
            remaining = deadline - time.monotonic()
            if (
                job is None
                or job.state.ended
                or remaining <= 0
                or service.stopping.is_set()
                or await request.is_disconnected()
            ):
                break
            with stage("wait"):
                await told.wait(remaining)
    if job and seconds:
        tell_timings(job)
    return job


def tell_timings(job: Job) -> None:
    """What the wait consisted of. Of several inputs, which are worked on side by side, the longest of each; of none
    that was known already."""
    timings = [result.timings for result in job.results or () if result.timings and not result.cached]
    if timings:
        tell((name, max(getattr(each, name) for each in timings)) for name in ("queue", "read", "decode", "infer"))
