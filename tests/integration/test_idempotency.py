"""Idempotency keys: a request sent twice has one effect, whenever the second one comes."""

import asyncio
from uuid import UUID

import pytest

from custody import idempotency
from custody.errors import CustodyError
from custody.ids import new_id
from tests.support.domain import Domain

pytestmark = pytest.mark.postgres


async def request(domain: Domain, tenant: UUID, key: str | None, body: bytes = b"body") -> tuple[str, list[UUID]]:
    """As a route does it: the effect is a job. Gives what was done, and the ids that the answer would name."""
    wanted = idempotency.fingerprint("POST /v1/jobs", {"model": "digits"}, [body])
    file = await file_of(domain, tenant)
    async with domain.api.transaction(tenant) as transaction:
        if replay := await idempotency.begin(transaction, tenant, key, wanted):
            assert replay.status == 202
            return "replayed", list(replay.resource)
        job = new_id()
        await transaction.execute(
            "INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total)"
            " VALUES (%s, %s, 'digits', '{}', 'batch', 1)",
            [job, tenant],
        )
        await asyncio.sleep(0.01)
        await idempotency.record(transaction, tenant, key, status=202, resource=[job, file])
    return "done", [job, file]


async def file_of(domain: Domain, tenant: UUID) -> UUID:
    found = domain.rows("SELECT id FROM wharf.files WHERE tenant_id = %s", [tenant])
    return found[0]["id"] if found else (await domain.keep(tenant, b"a picture")).files[0].id


def jobs(domain: Domain) -> list[UUID]:
    return [row["id"] for row in domain.rows("SELECT id FROM wharf.jobs ORDER BY id")]


async def test_the_same_request_again_is_answered_with_what_the_first_brought_about(domain, acme):
    first = await request(domain, acme, "key")
    assert first[0] == "done"
    assert await request(domain, acme, "key") == ("replayed", first[1])
    assert jobs(domain) == [first[1][0]]


async def test_ten_duplicates_at_once_have_one_effect_and_one_answer(domain, acme):
    await file_of(domain, acme)
    answers = await asyncio.gather(*(request(domain, acme, "key") for _ in range(10)))
    assert sorted(what for what, _ in answers) == ["done", *["replayed"] * 9]
    assert len({tuple(ids) for _, ids in answers}) == 1
    assert jobs(domain) == [answers[0][1][0]]


async def test_another_request_with_the_same_key_is_refused_and_has_no_effect(domain, acme):
    await request(domain, acme, "key")
    with pytest.raises(CustodyError) as refused:
        await request(domain, acme, "key", b"another body")
    assert (refused.value.code, refused.value.kind.status) == ("idempotency_conflict", 409)
    assert len(jobs(domain)) == 1


async def test_a_concurrent_conflict_is_refused_once_the_first_has_committed(domain, acme):
    await file_of(domain, acme)
    bodies = [b"one", b"two"] * 4
    answers = await asyncio.gather(*(request(domain, acme, "key", body) for body in bodies), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, CustodyError)]
    assert {error.code for error in refused} == {"idempotency_conflict"}
    assert len(refused) == 4
    assert len(jobs(domain)) == 1


async def test_an_effect_that_is_rolled_back_takes_its_key_along(domain, acme):
    async def begin_and_fail() -> None:
        async with domain.api.transaction(acme) as transaction:
            assert await idempotency.begin(transaction, acme, "key", bytes(32)) is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await begin_and_fail()
    assert domain.rows("SELECT key FROM wharf.idempotency_keys") == []
    assert (await request(domain, acme, "key"))[0] == "done"


async def test_a_duplicate_of_a_request_that_fails_has_the_effect_in_its_stead(domain, acme):
    await file_of(domain, acme)
    begun = asyncio.Event()

    async def begin_and_fail() -> None:
        async with domain.api.transaction(acme) as transaction:
            await idempotency.begin(transaction, acme, "key", bytes(32))
            begun.set()
            await asyncio.sleep(0.2)
            raise ZeroDivisionError

    failing = asyncio.create_task(begin_and_fail())
    await begun.wait()
    assert (await request(domain, acme, "key"))[0] == "done"
    with pytest.raises(ZeroDivisionError):
        await failing
    assert len(jobs(domain)) == 1


async def test_keys_of_two_tenants_have_nothing_to_do_with_each_other(domain, acme, globex):
    mine = await request(domain, acme, "key")
    theirs = await request(domain, globex, "key", b"another body")
    assert (mine[0], theirs[0]) == ("done", "done")
    assert await request(domain, acme, "key") == ("replayed", mine[1])


async def test_a_request_without_a_key_has_its_effect_each_time(domain, acme):
    assert [(await request(domain, acme, None))[0] for _ in range(2)] == ["done", "done"]
    assert len(jobs(domain)) == 2
    assert domain.rows("SELECT key FROM wharf.idempotency_keys") == []


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_of_no_reasonable_length_is_refused(domain, acme, key):
    with pytest.raises(CustodyError) as refused:
        await request(domain, acme, key)
    assert (refused.value.code, refused.value.field) == ("invalid_request", "Idempotency-Key")


def test_a_fingerprint_tells_requests_apart_and_not_the_order_of_their_fields():
    def of(route="POST /v1/jobs", fields=None, parts=(b"one", b"two")) -> bytes:
        return idempotency.fingerprint(route, fields or {"model": "digits", "conf": "0.5"}, parts)

    assert of() == of(fields={"conf": "0.5", "model": "digits"})
    others = [
        of(route="POST /v1/predict"),
        of(fields={"model": "digits", "conf": "0.6"}),
        of(fields={"model": "digits"}),
        of(parts=(b"two", b"one")),
        of(parts=(b"one",)),
    ]
    assert len({of(), *others}) == 6
