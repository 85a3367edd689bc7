"""The cleanup on a real database and a real volume: what goes, what stays, and what it says of it."""

from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import pytest

from broker.maintenance.cleanup import Cleanup, Rules
from custody.cleanup import Retention, Run
from custody.database import Database
from tests.support.domain import Domain

RETENTION = Retention(files=timedelta(days=30), jobs=timedelta(days=90))
DAY = 86_400


@pytest.fixture
async def cleanup_database(installation):
    url = installation.url("wharf_cleanup")
    async with Database(url, name="cleanup", role="wharf_cleanup", size=2, by_index=True) as database:
        yield database


@pytest.fixture
def clean(domain, cleanup_database):
    async def run(*, grace: timedelta | None = None, **named) -> Run:
        return await Cleanup(cleanup_database, domain.volume, rules(grace=grace, **named)).run()

    return run


def rules(**named) -> Rules:
    given = {"retention": RETENTION, "grace": None, "staging": timedelta(hours=24), "orphan_fraction": 0.1}
    return Rules(**{**given, "sweep": False, **named})


async def test_an_expired_file_and_its_bytes_go(domain, acme, clean):
    file = await keep(domain, acme, b"a picture")
    await expire(domain, file)
    run = await clean()
    assert (run.stopped, run.expired_files, run.removed_blobs, run.freed_bytes) == ("done", 1, 1, 9)
    assert everything(domain) == ([], [], [], [])


async def test_what_has_not_expired_stays(domain, acme, clean):
    file = await keep(domain, acme, b"a picture")
    run = await clean(sweep=True)
    assert (run.expired_files, run.removed_blobs, run.errors) == (0, 0, 0)
    assert domain.bytes_of(digest(b"a picture")) == b"a picture"
    assert domain.rows("SELECT id FROM wharf.files") == [{"id": file}]


async def keep(domain: Domain, tenant: UUID, content: bytes) -> UUID:
    return (await domain.keep(tenant, content)).files[0].id


async def expire(domain: Domain, *files: UUID, days: float = 0) -> None:
    await domain.change(
        "UPDATE wharf.files SET expires_at = now() - make_interval(secs => 1 + %s) WHERE id = ANY (%s)",
        [days * DAY, list(files)],
    )


def everything(domain: Domain) -> tuple[list, list, list, list]:
    """Files, blobs, suspects, and the files of the volume's tree."""
    return (
        domain.rows("SELECT id FROM wharf.files ORDER BY id"),
        domain.rows("SELECT sha256, state FROM wharf.blobs ORDER BY sha256"),
        domain.rows("SELECT sha256 FROM wharf.suspects"),
        tree(domain),
    )


def tree(domain: Domain) -> list[str]:
    root = domain.installation.volume
    return sorted(
        str(path.relative_to(root))
        for name in ("blobs", "staging", "dropped")
        for path in (root / name).rglob("*")
        if not path.is_dir() or path.name.startswith("directory")
    )


def digest(content: bytes) -> bytes:
    return sha256(content).digest()
