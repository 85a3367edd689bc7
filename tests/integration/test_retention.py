"""How long files are kept: as their upload said, else their tenant, else the service."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from custody import tenants
from custody.files import Files, Upload
from custody.wire import File, FilePatch, TenantPatch
from tests.support.domain import MEDIA, Domain

pytestmark = pytest.mark.postgres

SLACK = timedelta(seconds=60)
DAYS_30 = timedelta(days=30)


async def keep(domain: Domain, tenant: UUID, *, kept_for: float | None = None, files: Files | None = None) -> File:
    async with domain.volume.stage(1 << 30) as staging:
        await staging.write(b"a picture")
        upload = Upload(await staging.seal(), MEDIA, None)
        async with domain.api.transaction(tenant) as transaction:
            kept = await (files or domain.files).keep(transaction, tenant, [upload], kept_for=kept_for)
    return kept.files[0]


async def change(domain: Domain, tenant: UUID, file: File, **changes: object) -> File | None:
    async with domain.api.transaction(tenant) as transaction:
        return await domain.files.change(transaction, file.id, FilePatch.model_validate(changes))


async def retain(domain: Domain, tenant: UUID, **days: int | None) -> None:
    async with domain.api.transaction(tenant) as transaction:
        await tenants.change_tenant(transaction, tenant, TenantPatch(**days))


async def overdue(domain: Domain, file: File) -> None:
    await domain.change("UPDATE wharf.files SET expires_at = now() - interval '1 hour' WHERE id = %s", [file.id])


def lasts(file: File | None, wanted: timedelta) -> bool:
    assert file is not None
    assert file.expires_at is not None
    return abs(file.expires_at - datetime.now(UTC) - wanted) < SLACK


async def test_the_upload_comes_before_the_tenant_and_the_tenant_before_the_service(domain, acme, globex):
    short = Files(domain.volume, retention_days=0.5)
    assert lasts(await keep(domain, acme), DAYS_30)
    assert lasts(await keep(domain, acme, files=short), timedelta(hours=12))
    await retain(domain, acme, file_retention_days=7)
    assert lasts(await keep(domain, acme), timedelta(days=7))
    assert lasts(await keep(domain, globex), DAYS_30)
    assert lasts(await keep(domain, acme, kept_for=90.5), timedelta(seconds=90.5))
    await retain(domain, acme, file_retention_days=None)
    assert lasts(await keep(domain, acme, files=short), timedelta(hours=12))


async def test_the_same_bytes_again_are_a_file_with_a_time_of_its_own(domain, acme):
    first = await keep(domain, acme, kept_for=3600)
    async with domain.api.transaction(acme) as transaction:
        again = await domain.files.keep_known(transaction, acme, bytes.fromhex(first.sha256), None, kept_for=7200)
        plain = await domain.files.keep_known(transaction, acme, bytes.fromhex(first.sha256), None)
        found = await domain.files.get(transaction, first.id)
    assert lasts(again, timedelta(hours=2))
    assert lasts(plain, DAYS_30)
    assert found == first


async def test_a_patch_changes_what_it_names_and_nothing_else(domain, acme):
    file = await keep(domain, acme, kept_for=3600)
    assert await change(domain, acme, file) == file
    pinned = await change(domain, acme, file, pinned=True)
    assert pinned == file.model_copy(update={"pinned": True})
    later = datetime(2027, 5, 1, 12, 30, tzinfo=UTC)
    moved = await change(domain, acme, file, expires_at=later.isoformat())
    assert moved == pinned.model_copy(update={"expires_at": later})
    default = await change(domain, acme, file, expires_at=None, pinned=False)
    assert lasts(default, DAYS_30)
    assert not default.pinned


async def test_null_counts_the_tenants_own_retention_from_now_on(domain, acme):
    file = await keep(domain, acme)
    await retain(domain, acme, file_retention_days=3)
    assert lasts(await change(domain, acme, file, expires_at=None), timedelta(days=3))


async def test_a_pinned_file_outlives_its_time_and_is_dated_anew_when_it_is_unpinned_after_it(domain, acme):
    file = await keep(domain, acme, kept_for=3600)
    await change(domain, acme, file, pinned=True)
    await overdue(domain, file)
    async with domain.api.transaction(acme) as transaction:
        assert (await domain.files.get(transaction, file.id)).pinned
    assert lasts(await change(domain, acme, file, pinned=False), DAYS_30)
    # Where its time is still to come, that stays.
    other = await keep(domain, acme, kept_for=3600)
    await change(domain, acme, other, pinned=True)
    assert await change(domain, acme, other, pinned=False) == other


async def test_an_expired_deleted_or_strange_file_is_not_changed(domain, acme, globex):
    expired, deleted, theirs = await keep(domain, acme), await keep(domain, acme), await keep(domain, globex)
    await overdue(domain, expired)
    await domain.change("UPDATE wharf.files SET deleted_at = now() WHERE id = %s", [deleted.id])
    for file in (expired, deleted, theirs):
        assert await change(domain, acme, file, pinned=True) is None
    assert domain.rows("SELECT id FROM wharf.files WHERE pinned") == []


async def test_a_file_of_the_release_before_has_no_end_until_a_cleanup_gives_it_one(domain, acme):
    file = await keep(domain, acme)
    await domain.change(
        "INSERT INTO wharf.files (id, tenant_id, sha256, size, media_type, width, height)"
        " SELECT gen_random_uuid(), tenant_id, sha256, size, media_type, width, height FROM wharf.files"
    )
    async with domain.api.transaction(acme) as transaction:
        files = await domain.files.page(transaction, before=None, limit=10)
    [old] = [each for each in files if each.id != file.id]
    assert (old.expires_at, old.pinned) == (None, False)


async def test_a_tenant_sets_its_own_retention_and_no_other(domain, acme, globex):
    await retain(domain, acme, file_retention_days=7, job_retention_days=14)
    await retain(domain, acme, job_retention_days=None)
    async with domain.api.transaction(acme) as transaction:
        seen = await tenants.get_tenant(transaction, acme)
        strangers = "UPDATE wharf.tenants SET file_retention = '1 day' WHERE id = %s"
        assert (await transaction.execute(strangers, [globex])).rowcount == 0
    assert (seen.name, seen.file_retention_days, seen.job_retention_days) == ("acme", 7, None)
    kept = domain.rows("SELECT file_retention FROM wharf.tenants WHERE id = %s", [globex])
    assert kept == [{"file_retention": None}]
