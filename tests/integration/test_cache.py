"""The result cache: what is kept, what it answers, who waits for whom, and how it is forgotten."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest
from psycopg.errors import InsufficientPrivilege, NotNullViolation, SerializationFailure

from custody import cleanup, erasure, models
from custody.cache import Computation
from custody.database import Database
from custody.models import ModelFiles, Registration
from custody.tasks import Claim, Claimed, Offer, Tasks
from custody.wire import JobInput, JobState, Parameters, Priority
from tests.support.domain import DETECTIONS, MODEL, POOL, TIMINGS, Domain

pytestmark = pytest.mark.postgres

COMPUTES = Computation(bytes.fromhex(MODEL.digest), "1 openvino 2026.1 auto")


@pytest.fixture
def domain(domain) -> Domain:
    domain.tasks = Tasks(lease_seconds=30, max_attempts=3, computes=COMPUTES)
    return domain


async def picture(domain: Domain, tenant: UUID, content: bytes = b"a picture") -> UUID:
    return (await domain.keep(tenant, content)).files[0].id


async def submit(domain: Domain, tenant: UUID, file: UUID, inputs: int = 1, **named) -> UUID:
    return await domain.submit_on(tenant, [file] * inputs, **{"cache": True, **named})


async def claim(domain: Domain, limit: int = 10, *, worker: str = "w1", computes: Computation = COMPUTES) -> Claimed:
    tasks = Tasks(computes=computes)
    async with domain.worker.statements() as statements:
        return await tasks.claim_next(statements, pool=POOL, priority=Priority.INTERACTIVE, worker=worker, limit=limit)


async def offered(domain: Domain, tasks: Sequence[UUID], worker: str = "w2") -> Claimed:
    async with domain.worker.statements() as statements:
        offers = [Offer(task, redelivered=False) for task in tasks]
        return await domain.tasks.claim(statements, offers, pool=POOL, worker=worker)


async def answer_twins(domain: Domain, one: Claim, limit: int = 100) -> int:
    async with domain.worker.statements() as statements:
        answered = await domain.tasks.answer_twins(statements, one, limit=limit)
    for job in {task.job_id for task in answered}:
        await domain.finish(job)
    return len(answered)


async def look_again(domain: Domain, refused: Sequence[UUID]) -> list[str]:
    async with domain.worker.statements() as statements:
        return [task.state for task in await domain.tasks.look_again(statements, refused)]


async def known(domain: Domain, tenant: UUID, file: UUID) -> None:
    """A job on the file has run: its answer is in the cache."""
    await submit(domain, tenant, file)
    [one] = (await claim(domain)).claims
    assert await domain.end(one)


def kept(domain: Domain) -> int:
    return domain.rows("SELECT count(*)::int AS answers FROM wharf.cached_results")[0]["answers"]


# Answers


async def test_a_task_is_answered_at_its_claim_with_a_copy_of_the_result(domain, acme):
    file = await picture(domain, acme)
    job = await submit(domain, acme, file)
    later = await submit(domain, acme, await picture(domain, acme))
    [one] = (await claim(domain, 1)).claims
    assert await domain.end(one)
    claimed = await claim(domain)
    assert (claimed.claims, claimed.refused) == ([], [])
    assert [(task.job_id, task.state) for task in claimed.ended] == [(later, "succeeded")]
    assert await domain.finish(later)
    # A copy: the first one may go.
    await domain.change("DELETE FROM wharf.results WHERE task_id = %s", [one.task_id])
    [result] = (await domain.get(acme, later)).results
    assert (result.detections, result.model, result.cached, result.attempts) == (DETECTIONS, MODEL, True, 0)
    assert (result.verified, result.timings.infer, result.timings.read) == (False, TIMINGS.infer, TIMINGS.read)
    assert result.timings.queue > TIMINGS.queue
    assert one.job_id == job


async def test_the_first_result_says_that_it_is_none_of_the_cache(domain, acme):
    file = await picture(domain, acme)
    job = await submit(domain, acme, file)
    [one] = (await claim(domain)).claims
    await domain.end(one)
    [result] = (await domain.get(acme, job)).results
    assert (result.cached, result.attempts) == (False, 1)


@pytest.mark.parametrize(
    "changed",
    [
        "another tenant",
        "other bytes",
        "other parameters",
        "another model's bytes",
        "another pipeline",
        "cache: false",
    ],
)
async def test_whatever_differs_is_worked_on(domain, acme, globex, changed):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    tenant = globex if changed == "another tenant" else acme
    other = await picture(domain, tenant, b"another" if changed == "other bytes" else b"a picture")
    job = await submit(domain, tenant, other, cache=changed != "cache: false")
    if changed == "other parameters":
        await domain.change(
            "UPDATE wharf.jobs SET parameters = jsonb_set(parameters, '{conf}', '0.5') WHERE id = %s", [job]
        )
    digest = b"x" * 32 if changed == "another model's bytes" else COMPUTES.digest
    computes = Computation(digest, "2" if changed == "another pipeline" else COMPUTES.pipeline)
    claimed = await claim(domain, computes=computes)
    assert ([one.job_id for one in claimed.claims], claimed.ended) == ([job], [])


async def test_what_asks_for_no_cache_leaves_nothing_in_it_and_waits_for_nobody(domain, acme):
    file = await picture(domain, acme)
    jobs = [await submit(domain, acme, file, cache=False) for _ in range(2)]
    claims = (await claim(domain)).claims
    assert [one.job_id for one in claims] == jobs
    assert [one.recipe for one in claims] == [None, None]
    for one in claims:
        await domain.end(one)
    assert kept(domain) == 0


async def test_a_result_that_came_too_late_is_not_kept(domain, acme):
    file = await picture(domain, acme)
    job = await submit(domain, acme, file)
    [one] = (await claim(domain)).claims
    await domain.cancel(acme, job)
    assert not await domain.succeed(one)
    assert kept(domain) == 0


async def test_a_tenant_sees_no_answer_of_another(domain, acme, globex):
    await known(domain, acme, await picture(domain, acme))
    async with domain.api.transaction(globex) as transaction:
        found = await transaction.execute("SELECT recipe FROM wharf.cached_results")
        assert await found.fetchall() == []


@pytest.mark.parametrize(
    ("tenant", "columns", "values"),
    [
        ("acme", "task_id, tenant_id, attempt, cached, detections", "%(task)s, %(acme)s, 0, true, '[]'"),
        ("acme", "task_id, tenant_id, attempt, cached", "%(task)s, %(acme)s, 0, false"),
        ("globex", "task_id, tenant_id, attempt, cached", "%(task)s, %(acme)s, 0, true"),
    ],
    ids=["of its own making", "of none", "of another tenant"],
)
async def test_a_broker_invents_no_answer(domain, acme, globex, tenant, columns, values):
    await known(domain, acme, await picture(domain, acme))
    [task] = domain.rows("SELECT id FROM wharf.tasks")
    await domain.change("DELETE FROM wharf.results")
    who = acme if tenant == "acme" else globex
    async with domain.api.transaction(who) as transaction:
        with pytest.raises((InsufficientPrivilege, NotNullViolation)):
            await transaction.execute(
                f"INSERT INTO wharf.results ({columns}) VALUES ({values})", {"task": task["id"], "acme": acme}
            )


async def test_a_worker_reads_no_answer(domain, acme):
    await known(domain, acme, await picture(domain, acme))
    async with domain.worker.transaction() as transaction:
        with pytest.raises(InsufficientPrivilege):
            await transaction.execute("SELECT detections FROM wharf.cached_results")


async def test_an_answer_that_is_taken_away_in_the_same_moment_may_be_asked_for_again(domain, acme, registered):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    async with domain.api.transaction(acme) as transaction:
        files = await domain.files.hold(transaction, [JobInput(file=file)])
        # As if it went after the statement has begun.
        await domain.change(
            "CREATE FUNCTION wharf.take_away() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
            " 'BEGIN DELETE FROM wharf.cached_results; RETURN NEW; END';"
            "CREATE TRIGGER a_take_away BEFORE INSERT ON wharf.results FOR EACH ROW EXECUTE FUNCTION wharf.take_away()"
        )
        with pytest.raises(SerializationFailure):
            await domain.jobs.submit(
                transaction, acme, model=POOL, files=files, parameters=Parameters(), priority=Priority.BATCH,
                metadata={}, cache=True,
            )  # fmt: skip


# At the submit


@pytest.fixture
async def registered(domain) -> None:
    """The model as its worker has registered it."""
    await register(domain)


async def register(domain: Domain, digest: bytes = COMPUTES.digest, pipeline: str | None = COMPUTES.pipeline) -> None:
    files = ModelFiles(POOL, digest, "models/none")
    async with domain.worker.transaction() as transaction:
        await models.register(transaction, Registration(files, "detect", [], 32, 32, pipeline))


async def test_a_job_all_of_whose_inputs_are_known_has_succeeded_at_once(domain, acme, registered):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    job = await submit(domain, acme, file, inputs=3)
    ended = await domain.get(acme, job)
    assert (ended.state, ended.progress.done, ended.progress.failed) == (JobState.SUCCEEDED, 3, 0)
    assert ended.finished_at is not None
    for result in ended.results:
        assert (result.state, result.cached, result.attempts) == ("succeeded", True, 0)
        assert (result.detections, result.model, result.timings.infer) == (DETECTIONS, MODEL, TIMINGS.infer)
    assert await claim(domain) == Claimed([], [], [])


async def test_of_a_job_that_is_partly_known_the_rest_is_queued(domain, acme, registered):
    file, other = await picture(domain, acme), await picture(domain, acme, b"another")
    await known(domain, acme, file)
    job = await domain.submit_on(acme, [file, other, file], cache=True)
    assert domain.task_states(job) == ["succeeded", "queued", "succeeded"]
    assert (await domain.get(acme, job)).progress.done == 2
    [one] = (await claim(domain)).claims
    assert await domain.end(one)
    assert [result.cached for result in (await domain.get(acme, job)).results] == [True, False, True]


async def test_a_submit_looks_for_what_the_newest_active_version_gives(domain, acme, registered):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    await register(domain, b"n" * 32)
    newer = await submit(domain, acme, file)
    assert domain.task_states(newer) == ["queued"]
    # A worker of the version before has its answer.
    assert [task.job_id for task in (await claim(domain)).ended] == [newer]
    await domain.change("UPDATE wharf.models SET state = 'retired' WHERE digest = %s", [b"n" * 32])
    assert domain.task_states(await submit(domain, acme, file)) == ["succeeded"]


async def test_a_submit_looks_for_what_the_last_registered_pipeline_gives(domain, acme, registered):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    await register(domain, pipeline="2")
    assert domain.task_states(await submit(domain, acme, file)) == ["queued"]
    await claim(domain)
    # Who only looks at a model says nothing of how it is served.
    await register(domain)
    await register(domain, pipeline=None)
    assert domain.task_states(await submit(domain, acme, file)) == ["succeeded"]


@pytest.mark.parametrize("changed", ["another tenant", "other parameters", "cache: false"])
async def test_at_the_submit_too_whatever_differs_is_queued(domain, acme, globex, registered, changed):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    tenant = globex if changed == "another tenant" else acme
    mine = await picture(domain, tenant)
    async with domain.api.transaction(tenant) as transaction:
        submitted = await domain.jobs.submit(
            transaction,
            tenant,
            model=POOL,
            files=await domain.files.hold(transaction, [JobInput(file=mine)]),
            parameters=Parameters(conf=0.5 if changed == "other parameters" else 0.25),
            priority=Priority.INTERACTIVE,
            metadata={},
            cache=changed != "cache: false",
        )
    assert submitted.answered == 0
    assert domain.task_states(submitted.job_id) == ["queued"]


async def test_a_submit_that_is_rolled_back_leaves_nothing(domain, acme, registered):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    async with domain.api.transaction(acme) as transaction:
        files = await domain.files.hold(transaction, [JobInput(file=file)])
        submitted = await domain.jobs.submit(
            transaction, acme, model=POOL, files=files, parameters=Parameters(), priority=Priority.BATCH, metadata={},
            cache=True,
        )  # fmt: skip
        assert submitted.answered == 1
        await transaction.rollback()
    assert domain.rows("SELECT count(*) FROM wharf.jobs") == [{"count": 1}]
    assert domain.rows("SELECT count(*) FROM wharf.results") == [{"count": 1}]


async def test_a_purge_takes_an_answer_that_was_given_at_the_submit(domain, acme, registered):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    job = await submit(domain, acme, file)
    await purge(domain, acme, file)
    [result] = (await domain.get(acme, job)).results
    assert (result.detections, result.purged_at is not None, kept(domain)) == (None, True, 0)


# Twins


async def test_of_a_tenants_tasks_that_want_the_same_one_runs(domain, acme, globex):
    file = await picture(domain, acme)
    await submit(domain, acme, file, inputs=3)
    other = await submit(domain, globex, await picture(domain, globex))
    claimed = await claim(domain)
    assert len(claimed.claims) == 2
    assert {one.tenant_id for one in claimed.claims} == {acme, globex}
    assert len(claimed.refused) == 2
    assert other in {one.job_id for one in claimed.claims}
    # Those that were refused are put off, and what comes behind them is handed out.
    assert await claim(domain, worker="w2") == Claimed([], [], [])
    behind = await submit(domain, acme, await picture(domain, acme, b"another"))
    assert [one.job_id for one in (await claim(domain, worker="w2")).claims] == [behind]


async def test_a_success_answers_all_who_wait_and_ends_their_jobs(domain, acme):
    file = await picture(domain, acme)
    jobs = [await submit(domain, acme, file) for _ in range(4)]
    [one] = (await claim(domain, 3)).claims
    async with domain.worker.statements() as statements:
        success = await domain.tasks.succeed(statements, one, model=MODEL, detections=DETECTIONS, timings=TIMINGS)
    assert success is not None
    assert (success.awaited, success.finished) == (True, True)
    # Two were refused, and one was never looked at.
    assert await answer_twins(domain, one, limit=2) == 2
    assert await answer_twins(domain, one, limit=2) == 1
    for job in jobs:
        ended = await domain.get(acme, job)
        assert (ended.state, ended.results[0].detections) == (JobState.SUCCEEDED, DETECTIONS)
        assert ended.results[0].cached is (job != one.job_id)


async def test_a_success_of_which_nobody_waits_says_so(domain, acme):
    await submit(domain, acme, await picture(domain, acme))
    await submit(domain, acme, await picture(domain, acme, b"another"))
    one = (await claim(domain, 1)).claims[0]
    async with domain.worker.statements() as statements:
        success = await domain.tasks.succeed(statements, one, model=MODEL, detections=[], timings=TIMINGS)
    assert success is not None
    assert not success.awaited


async def test_a_success_answers_no_twin_that_wants_something_else(domain, acme, globex):
    file = await picture(domain, acme)
    await submit(domain, acme, file)
    [one] = (await claim(domain)).claims
    cancelled, uncached, other = [await submit(domain, acme, file, cache=number != 1) for number in range(3)]
    theirs = await submit(domain, globex, await picture(domain, globex))
    await domain.change("UPDATE wharf.jobs SET parameters = parameters || '{\"iou\": 0.1}' WHERE id = %s", [other])
    async with domain.api.transaction(acme) as transaction:
        await domain.jobs.cancel(transaction, cancelled)
    await domain.end(one)
    assert await answer_twins(domain, one) == 0
    assert [domain.task_states(job) for job in (cancelled, uncached, other, theirs)] == [["queued"]] * 4


async def cancelled(domain: Domain, one: Claim) -> None:
    await domain.cancel(one.tenant_id, one.job_id)


async def given_back(domain: Domain, one: Claim) -> None:
    async with domain.worker.transaction() as transaction:
        await domain.tasks.give_back(transaction, [one])


async def silent(domain: Domain, one: Claim) -> None:
    await domain.expire_leases()
    async with domain.worker.transaction() as transaction:
        await domain.tasks.requeue_expired(transaction)


async def restarted(domain: Domain, one: Claim) -> None:
    async with domain.worker.transaction() as transaction:
        await domain.tasks.give_back_former(transaction, "w1")


async def ended_by_the_release_before(domain: Domain, one: Claim) -> None:
    await domain.change(
        "UPDATE wharf.tasks SET state = 'failed', lease_until = NULL, ended_at = now(), error_code = 'x' WHERE id = %s",
        [one.task_id],
    )


@pytest.mark.parametrize(
    "end",
    [Domain.fail, Domain.retry, cancelled, given_back, silent, restarted, ended_by_the_release_before],
    ids=lambda end: end.__name__,
)
async def test_any_other_end_dispatches_those_who_wait(domain, acme, end):
    file = await picture(domain, acme)
    first = await submit(domain, acme, file)
    others = [await submit(domain, acme, file) for _ in range(2)]
    [one] = (await claim(domain)).claims
    assert one.job_id == first
    if end is Domain.retry:
        await domain.retry(one, after_seconds=60)
    else:
        await end(domain, one)
    waiting = domain.rows(
        "SELECT count(*)::int AS late FROM wharf.tasks WHERE job_id = ANY (%s) AND not_before > now()", [others]
    )
    assert waiting == [{"late": 0}]
    # One of them goes on, whoever that is, and the others wait for it.
    [another] = (await claim(domain, worker="w2")).claims
    assert await domain.end(another)
    await answer_twins(domain, another)
    assert all(domain.task_states(job) == ["succeeded"] for job in others)


async def test_a_task_that_is_tried_again_later_is_not_woken_by_anothers_failure(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file)
    [one] = (await claim(domain)).claims
    await domain.retry(one, after_seconds=60)
    await submit(domain, acme, file)
    [another] = (await claim(domain)).claims
    await domain.fail(another)
    assert (await claim(domain)).claims == []


async def test_who_waits_for_somebody_of_whom_nothing_is_heard_is_looked_at_again_in_time(domain, acme):
    file = await picture(domain, acme)
    jobs = [await submit(domain, acme, file) for _ in range(2)]
    [one] = (await claim(domain)).claims
    # The worker dies after its success, and before it told those who wait.
    await domain.end(one)
    [waits] = domain.rows("SELECT extract(epoch FROM not_before - now()) AS s FROM wharf.tasks WHERE state = 'queued'")
    assert 0 < waits["s"] <= 30
    await domain.change("UPDATE wharf.tasks SET not_before = now() WHERE state = 'queued'")
    claimed = await claim(domain, worker="w2")
    assert [task.job_id for task in claimed.ended] == jobs[1:]


async def test_a_twin_of_what_a_worker_died_of_is_answered_by_its_success(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file, inputs=2)
    [one] = (await claim(domain)).claims
    await silent(domain, one)
    claimed = await claim(domain, worker="w2")
    [again] = claimed.claims
    assert (again.task_id, again.alone, len(claimed.refused)) == (one.task_id, True, 1)
    await domain.end(again)
    assert await answer_twins(domain, again) == 1


async def test_a_claim_of_the_release_before_knows_no_twins_and_disturbs_none(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file, inputs=4)
    [one] = (await claim(domain, 2)).claims
    await given_back(domain, one)
    await domain.change(
        "UPDATE wharf.tasks SET state = 'running', attempt = attempt + 1, worker = 'old', claimed_at = now(),"
        " lease_until = now() + interval '30 s' WHERE state = 'queued'"
    )
    assert domain.rows("SELECT DISTINCT state FROM wharf.tasks") == [{"state": "running"}]
    await domain.change("UPDATE wharf.tasks SET state = 'queued', lease_until = NULL, recipe = NULL")
    assert len((await claim(domain)).claims) == 1


# At the same moment


async def test_of_many_who_claim_at_once_one_works(domain, acme):
    for number in range(20):
        file = await picture(domain, acme, b"picture %d" % number)
        jobs = [await submit(domain, acme, file) for _ in range(4)]
        claimed = await asyncio.gather(*(claim(domain, 1, worker=f"w{each}") for each in range(4)))
        [one] = [each for some in claimed for each in some.claims]
        for some in claimed:
            await look_again(domain, some.refused)
        await domain.end(one)
        await answer_twins(domain, one)
        assert sorted(state for job in jobs for state in domain.task_states(job)) == ["succeeded"] * 4


async def test_a_claim_that_does_not_see_its_twin_begin_is_made_again(domain, acme):
    file = await picture(domain, acme)
    jobs = [await submit(domain, acme, file) for _ in range(2)]
    tasks = {row["job_id"]: row["id"] for row in domain.rows("SELECT id, job_id FROM wharf.tasks")}
    async with domain.worker.transaction() as transaction:
        await transaction.execute("SELECT id FROM wharf.tasks WHERE id = %s FOR UPDATE", [tasks[jobs[1]]])
        claiming = asyncio.create_task(offered(domain, [tasks[jobs[1]]]))
        await waits_for_a_lock(domain)
        [one] = (await claim(domain)).claims
        assert one.job_id == jobs[0]
    assert await claiming == Claimed([], [], [tasks[jobs[1]]])


async def test_a_claim_waits_for_no_other_that_is_claiming_a_twin(domain, acme):
    await submit(domain, acme, await picture(domain, acme), inputs=2)
    async with domain.worker.transaction() as transaction:
        claimed = await domain.tasks.claim_next(
            transaction, pool=POOL, priority=Priority.INTERACTIVE, worker="w1", limit=1
        )
        assert len(claimed.claims) == 1
        async with asyncio.timeout(5):
            others = await claim(domain, worker="w2")
    assert (others.claims, len(others.refused)) == ([], 1)


async def test_a_success_waits_for_a_claim_that_is_refusing_a_twin(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file)
    [one] = (await claim(domain)).claims
    later = await submit(domain, acme, file)
    async with domain.worker.transaction() as transaction:
        claimed = await domain.tasks.claim_next(
            transaction, pool=POOL, priority=Priority.INTERACTIVE, worker="w2", limit=1
        )
        assert len(claimed.refused) == 1
        await domain.end(one)
        answering = asyncio.create_task(answer_twins(domain, one))
        await waits_for_a_lock(domain)
    assert await answering == 1
    assert domain.task_states(later) == ["succeeded"]


async def test_who_was_refused_while_its_twin_ended_learns_of_it(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file)
    [one] = (await claim(domain)).claims
    async with domain.worker.transaction() as ending:
        # It sees nobody who waits.
        success = await domain.tasks.succeed(ending, one, model=MODEL, detections=DETECTIONS, timings=TIMINGS)
        assert success is not None
        assert not success.awaited
        later = await submit(domain, acme, file)
        claimed = await claim(domain, worker="w2")
        assert len(claimed.refused) == 1
        looking = asyncio.create_task(look_again(domain, claimed.refused))
        await waits_for_a_lock(domain)
    assert await looking == ["succeeded"]
    assert domain.task_states(later) == ["succeeded"]


async def test_who_was_refused_while_its_twin_failed_goes_on(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file)
    [one] = (await claim(domain)).claims
    async with domain.worker.transaction() as ending:
        await domain.tasks.fail(ending, one, code="inference_failed", detail="It does not work.")
        later = await submit(domain, acme, file)
        claimed = await claim(domain, worker="w2")
        looking = asyncio.create_task(look_again(domain, claimed.refused))
        await waits_for_a_lock(domain)
    assert await looking == ["queued"]
    assert [each.job_id for each in (await claim(domain, worker="w2")).claims] == [later]


async def test_who_was_refused_waits_while_its_twin_works(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file, inputs=2)
    claimed = await claim(domain)
    assert await look_again(domain, claimed.refused) == []
    assert (await claim(domain)) == Claimed([], [], [])


# Forgetting


async def test_a_purge_forgets_its_tenants_answers(domain, acme, globex):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    await known(domain, globex, await picture(domain, globex))
    async with domain.api.transaction(acme) as transaction:
        assert await erasure.purge_file(transaction, file, gone_within=1)
    assert domain.rows("SELECT tenant_id FROM wharf.cached_results") == [{"tenant_id": globex}]
    again = await submit(domain, acme, await picture(domain, acme))
    assert [one.job_id for one in (await claim(domain)).claims] == [again]


async def test_a_purge_while_it_is_worked_on_leaves_no_answer(domain, acme):
    file = await picture(domain, acme)
    await submit(domain, acme, file, inputs=2)
    [one] = (await claim(domain)).claims
    async with domain.worker.transaction() as ending:
        await domain.tasks.succeed(ending, one, model=MODEL, detections=DETECTIONS, timings=TIMINGS)
        purging = asyncio.create_task(purge(domain, acme, file))
        await waits_for_a_lock(domain)
    await purging
    assert kept(domain) == 0
    assert await answer_twins(domain, one) == 0


async def test_an_answer_of_which_nothing_else_is_left_is_purged_by_the_bytes(domain, acme):
    await known(domain, acme, await picture(domain, acme))
    [blob] = domain.rows("SELECT sha256 FROM wharf.cached_results")
    await domain.change("DELETE FROM wharf.results; DELETE FROM wharf.tasks; DELETE FROM wharf.files")
    async with domain.api.transaction(acme) as transaction:
        purged = await erasure.purge_content(transaction, blob["sha256"], gone_within=1)
    assert purged is not None
    assert (purged.receipt.files, purged.receipt.results, kept(domain)) == (0, 0, 0)


async def test_the_last_file_of_its_bytes_takes_a_tenants_answers_along(domain, acme, globex, cleanup_database):
    first, second = await picture(domain, acme), await picture(domain, acme)
    await known(domain, acme, first)
    await known(domain, globex, await picture(domain, globex))
    for file, left in ((first, 2), (second, 1)):
        async with domain.api.transaction(acme) as transaction:
            await domain.files.delete(transaction, file)
        async with cleanup_database.transaction() as transaction:
            assert await cleanup.remove_files(transaction, [file]) == 1
        assert kept(domain) == left
    assert domain.rows("SELECT tenant_id FROM wharf.cached_results") == [{"tenant_id": globex}]


async def test_an_answer_goes_with_the_job_that_gave_it(domain, acme, cleanup_database):
    file = await picture(domain, acme)
    await known(domain, acme, file)
    later = await submit(domain, acme, file)
    await claim(domain)
    await domain.finish(later)
    await known(domain, acme, await picture(domain, acme, b"another"))
    [oldest, *_] = [row["id"] for row in domain.rows("SELECT id FROM wharf.jobs ORDER BY id")]
    async with cleanup_database.transaction() as transaction:
        assert await cleanup.remove_jobs(transaction, [oldest]) == 1
    assert kept(domain) == 1
    assert (await domain.get(acme, later)).results[0].detections == DETECTIONS


@pytest.mark.parametrize("change", ["state = 'quarantined', fault = 'corrupt'", "state = 'present', fault = NULL"])
async def test_bytes_that_are_found_damaged_or_put_back_have_no_answers(domain, acme, globex, change):
    for tenant in (acme, globex):
        await known(domain, tenant, await picture(domain, tenant))
        await known(domain, tenant, await picture(domain, tenant, b"another"))
    if "present" in change:
        await domain.change(
            "ALTER TABLE wharf.blobs DISABLE TRIGGER forget_answers;"
            "UPDATE wharf.blobs SET state = 'quarantined', fault = 'corrupt' WHERE sha256 = sha256('a picture');"
            "ALTER TABLE wharf.blobs ENABLE TRIGGER forget_answers"
        )
    await domain.change(f"UPDATE wharf.blobs SET {change} WHERE sha256 = sha256('a picture')")
    assert domain.rows("SELECT DISTINCT sha256 = sha256('another') AS other FROM wharf.cached_results") == [
        {"other": True}
    ]


@pytest.fixture
async def cleanup_database(installation):
    url = installation.url("wharf_cleanup")
    async with Database(url, name="cleanup", role="wharf_cleanup", size=2, by_index=True) as database:
        yield database


async def purge(domain: Domain, tenant: UUID, file: UUID) -> None:
    async with domain.api.transaction(tenant) as transaction:
        assert await erasure.purge_file(transaction, file, gone_within=1)


async def waits_for_a_lock(domain: Domain) -> None:
    """Until some statement does."""
    waiting = "SELECT count(*)::int AS sessions FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    async with asyncio.timeout(10):
        while (await domain.ask(waiting, [domain.installation.database]))[0]["sessions"] == 0:
            await asyncio.sleep(0.02)
