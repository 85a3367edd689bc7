"""The cleanup killed with -9 before every change that it makes: whatever is referred to is there, and the next cleanup
leaves nothing that is not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from uuid import UUID

import pytest

from custody.ids import new_id
from custody.volume import blob_path
from tests.conftest import ROOT
from tests.support.domain import Domain

FAR = 1_000_000
"""More changes than any cleanup makes: it is not killed."""

FEWEST = 40
"""Changes of a cleanup that has everything to do."""


@pytest.fixture
def domain(installation, api_database, worker_database) -> Domain:
    return Domain(installation, api_database, worker_database)


@pytest.fixture
def clean_until(installation) -> Iterator[Callable[[int], int]]:
    """A cleanup killed before its n-th change; gives its exit status."""
    environment = {
        **os.environ,
        "WHARF_DATABASE_URL": installation.url("wharf_cleanup"),
        "WHARF_VOLUME": str(installation.volume),
        "WHARF_INSTANCE": "cleanup",
        "WHARF_MAX_ORPHAN_FRACTION": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.cleanup_killed_at"],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip

        def clean(number: int) -> int:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield clean


@pytest.mark.timeout(600)
async def test_a_cleanup_killed_before_any_change_loses_nothing_and_the_next_one_ends_it(domain, clean_until):
    acme, globex = domain.add_tenant("acme"), domain.add_tenant("globex")
    for number in range(1, FAR):
        held, going = await furnish(domain, acme, globex, number)
        status = clean_until(number)
        assert status in (0, -signal.SIGKILL)
        for content in held:
            assert is_held(domain, content), number
        assert clean_until(FAR) == 0
        for content in held:
            assert domain.bytes_of(digest(content)) == content, number
        for content in going:
            assert domain.bytes_of(digest(content)) is None, number
        assert_nothing_but_what_is_referred_to(domain)
        if status == 0:
            break
        killed = domain.rows("SELECT stopped FROM wharf.cleanup_runs ORDER BY id DESC LIMIT 2")
        assert killed[0] == {"stopped": "done"}
    assert number > FEWEST
    assert domain.rows("SELECT stopped FROM wharf.cleanup_runs WHERE stopped = 'killed' LIMIT 1")


async def furnish(domain: Domain, acme: UUID, globex: UUID, number: int) -> tuple[list[bytes], list[bytes]]:
    """Something for every step. The contents that must be held whatever happens, and those that must go."""
    live, tasked, shared, withdrawn, expired, deleted, lost, void = (
        f"{name} {number}".encode()
        for name in ("live", "tasked", "shared", "withdrawn", "expired", "deleted", "lost", "void")
    )
    await keep(domain, acme, live)
    await keep(domain, acme, withdrawn)
    await keep(domain, globex, shared)
    old_job = await domain.submit_on(acme, [await keep(domain, acme, b"of an old job")])
    for claim in await domain.claim(10):
        await domain.end(claim)
    await domain.change("UPDATE wharf.jobs SET finished_at = now() - interval '1 year' WHERE id = %s", [old_job])
    task = await keep(domain, acme, tasked)
    await domain.submit_on(acme, [task])
    over = [task, *[await keep(domain, acme, content) for content in (shared, expired)]]
    await domain.change("UPDATE wharf.files SET expires_at = now() - interval '1 second' WHERE id = ANY (%s)", [over])
    async with domain.api.transaction(acme) as transaction:
        await domain.files.delete(transaction, await keep(domain, acme, deleted))
    await domain.change("UPDATE wharf.files SET expires_at = NULL WHERE sha256 = %s", [digest(live)])

    root = domain.volume.root
    (root / blob_path(digest(withdrawn))).rename(root / "dropped" / f"{digest(withdrawn).hex()}.{new_id()}")
    (root / "dropped" / f"{digest(void).hex()}.{new_id()}").write_bytes(void)
    for path in (root / blob_path(digest(lost)), root / "staging" / f"broker-1.{new_id()}"):
        path.write_bytes(lost)
        # Older than the mark of the last cleanup, too.
        os.utime(path, (time.time() - 10 * 86_400,) * 2)
    return [live, tasked, shared, withdrawn], [expired, deleted, lost, void]


def is_held(domain: Domain, content: bytes) -> bool:
    """In the tree, or where the next cleanup puts it back from."""
    dropped = (domain.volume.root / "dropped").glob(f"{digest(content).hex()}.*")
    return domain.bytes_of(digest(content)) == content or any(path.read_bytes() == content for path in dropped)


def assert_nothing_but_what_is_referred_to(domain: Domain) -> None:
    root = domain.volume.root
    referred = domain.rows(
        """
        SELECT sha256 FROM wharf.files UNION
        SELECT sha256 FROM wharf.tasks WHERE state IN ('queued', 'running') ORDER BY sha256
        """
    )
    digests = [bytes(row["sha256"]) for row in referred]
    rows = domain.rows("SELECT sha256, state FROM wharf.blobs ORDER BY sha256")
    assert [(bytes(row["sha256"]), row["state"]) for row in rows] == [(digest, "present") for digest in digests]
    # Twice as quick as a glob, of 4,096 folders each time.
    tree = sorted(
        os.path.relpath(f"{folder}/{name}", root) for folder, _, names in os.walk(root / "blobs") for name in names
    )
    assert tree == sorted(map(blob_path, digests))
    assert list((root / "staging").iterdir()) == []
    assert [path for path in (root / "dropped").iterdir() if not path.name.startswith("broker.")] == []
    assert domain.rows("SELECT id FROM wharf.jobs WHERE finished_at < now() - interval '90 days'") == []


async def keep(domain: Domain, tenant: UUID, content: bytes) -> UUID:
    return (await domain.keep(tenant, content)).files[0].id


def digest(content: bytes) -> bytes:
    return sha256(content).digest()
