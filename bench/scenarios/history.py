"""Whether what has ended long ago slows down what runs now: (d) beside millions of finished tasks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import psycopg

import starter_model
from bench.fleet import Fleet, fleet
from bench.jobs import run_job, upload
from bench.pictures import distinct, tiny
from bench.rounds import Contender, Contest
from bench.scenario import Scenario
from bench.scenarios.overhead import SETTINGS, STORED, WARM_UP, job

INPUTS = 5000
SHARES = (1000, 10)
"""Beside the scenario's size: so much less."""

INPUTS_OF_A_JOB = 100
AT_ONCE = 1_000_000

FINISHED = """
    WITH job AS (
        INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total, state, done, failed, created_at,
                                finished_at)
        SELECT uuidv7(interval '-1 day'), tenants.id, models.name, '{}', 'batch', %(inputs)s, 'succeeded', %(inputs)s,
               0, now() - interval '1 day', now() - interval '1 day'
        FROM (SELECT id FROM wharf.tenants WHERE operator) AS tenants CROSS JOIN wharf.models
             CROSS JOIN generate_series(1, %(jobs)s)
        RETURNING id, tenant_id, model
    ),
    task AS (
        INSERT INTO wharf.tasks (id, tenant_id, job_id, pool, class, input, sha256, size, media_type, width, height,
                                 orientation, state, attempt, created_at, claimed_at, ended_at)
        SELECT uuidv7(interval '-1 day'), job.tenant_id, job.id, job.model, 'batch', input,
               sha256((job.id::text || input)::bytea), 150000, 'image/jpeg', 810, 1080, 1, 'succeeded', 1,
               now() - interval '1 day', now() - interval '1 day', now() - interval '1 day'
        FROM job CROSS JOIN generate_series(0, %(inputs)s - 1) AS input
        RETURNING id, tenant_id, pool
    )
    INSERT INTO wharf.results (task_id, tenant_id, attempt, model, model_version, model_digest, detections, timings)
    SELECT task.id, task.tenant_id, 1, models.name, models.version, models.digest, '[]', '{}'
    FROM task JOIN wharf.models ON models.name = task.pool
"""


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    with ExitStack() as stack:

        def contender(tasks: int) -> Contender:
            started = stack.enter_context(fleet("embedded", folder / str(tasks), starter_model.MODEL, SETTINGS))
            _finish(started, tasks)
            inputs = upload(started, islice(distinct(tiny()), STORED))
            run_job(started, inputs, WARM_UP)
            return Contender(f"beside {tasks:,} finished tasks", partial(job, started, inputs, INPUTS))

        limit, *contenders = [contender(max(INPUTS_OF_A_JOB, size // share)) for share in (*SHARES, 1)]
        yield Contest(contenders, limit)


def _finish(fleet: Fleet, tasks: int) -> None:
    """Rows as a day of work has left them."""
    with psycopg.connect(fleet.service.database, autocommit=True) as connection:
        # Keys that are looked up for each row would take most of the time, and every one is right.
        connection.execute("SET session_replication_role = replica")
        for start in range(0, tasks, AT_ONCE):
            jobs = min(AT_ONCE, tasks - start) // INPUTS_OF_A_JOB
            connection.execute(FINISHED, {"jobs": jobs, "inputs": INPUTS_OF_A_JOB})
        connection.execute("VACUUM ANALYZE wharf.jobs, wharf.tasks, wharf.results")


SCENARIO = Scenario(
    "j",
    f"A job of {INPUTS:,} stored inputs beside so many finished tasks, a tenth and a thousandth of them",
    "images",
    size=10_000_000,
    open=_open,
)
