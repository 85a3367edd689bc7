"""`wharf verify` and its `--accept`, killed with -9 before every change that they make: nothing is moved before it is
marked, no damaged copy is lost, and the next one ends what was begun."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest

from custody.ids import new_id
from custody.volume import blob_path
from tests.conftest import ROOT
from tests.support.domain import Domain

pytestmark = pytest.mark.postgres

FAR = 1_000_000
"""More changes than any verification makes: it is not killed."""

FEWEST = 10
"""Changes of one that has something of everything to do."""


@pytest.fixture
def domain(installation, api_database, worker_database) -> Domain:
    return Domain(installation, api_database, worker_database)


@pytest.fixture
def verify_until(installation) -> Iterator[Callable[..., int]]:
    """A verification killed before its n-th change; gives its exit status."""
    environment = {
        **os.environ,
        "WHARF_DATABASE_URL": installation.url("wharf_cleanup"),
        "WHARF_VOLUME": str(installation.volume),
        "WHARF_INSTANCE": "verify",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.verify_killed_before"],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip

        def verify(number: int, what: str = "read") -> int:
            process.stdin.write(f"{number} {what}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield verify


@pytest.mark.timeout(600)
async def test_a_verification_killed_before_any_change_keeps_what_is_damaged_and_the_next_one_ends_it(
    domain, verify_until
):
    acme = domain.add_tenant("acme")
    for number in range(1, FAR):
        contents = await furnish(domain, acme, number)
        status = verify_until(number)
        assert status in (0, -signal.SIGKILL)
        for kind in ("corrupt", "marked"):
            assert copies(domain, contents[kind]) == [b"damaged"], number
        assert verify_until(FAR) == 0
        states = {kind: state(domain, content) for kind, content in contents.items()}
        assert states == {
            "right": ("present", None),
            "corrupt": ("quarantined", "corrupt"),
            "missing": ("quarantined", "missing"),
            "marked": ("quarantined", "corrupt"),
            "restored": ("present", None),
        }, number
        for kind, content in contents.items():
            promised = states[kind][0] == "present"
            assert domain.bytes_of(sha256(content).digest()) == (content if promised else None), (kind, number)
            assert copies(domain, content) == {"corrupt": [b"damaged"], "marked": [b"damaged"]}.get(
                kind, [content] if promised else []
            )
        assert copies(domain, b"let go") == []
        for content in contents.values():
            await domain.keep(acme, content)
            assert state(domain, content) == ("present", None)
            assert domain.bytes_of(sha256(content).digest()) == content
        runs = domain.rows("SELECT stopped FROM wharf.verify_runs ORDER BY id DESC LIMIT 2")
        assert runs[0] == {"stopped": "done"}
        if status == 0:
            break
    assert number > FEWEST
    assert domain.rows("SELECT stopped FROM wharf.verify_runs WHERE stopped = 'killed' LIMIT 1")


@pytest.mark.timeout(600)
async def test_an_accept_killed_before_any_change_has_accepted_all_or_is_to_be_said_again(domain, verify_until):
    acme = domain.add_tenant("acme")
    seen = set()
    for number in range(1, FAR):
        lost = b"lost %d" % number
        await domain.keep(acme, lost)
        path_of(domain, lost).unlink()
        domain.rows("UPDATE wharf.installation SET sweep_off_since = now(), sweep_off_reason = 'It was restored.'")
        status = verify_until(number, "accept")
        assert status in (0, -signal.SIGKILL)
        accepted = not domain.rows("SELECT volume_id FROM wharf.installation WHERE sweep_off_since IS NOT NULL")
        seen.add(accepted)
        if accepted:
            assert state(domain, lost) == ("quarantined", "missing")
            assert belong_together(domain)
        assert verify_until(FAR, "accept") == 0
        assert state(domain, lost) == ("quarantined", "missing")
        assert domain.rows("SELECT sweep_off_since FROM wharf.installation") == [{"sweep_off_since": None}]
        assert belong_together(domain)
        if status == 0:
            break
    assert number > FEWEST
    assert seen == {False, True}


async def furnish(domain: Domain, tenant: UUID, number: int) -> dict[str, bytes]:
    contents = {kind: b"%s %d" % (kind.encode(), number) for kind in KINDS}
    for content in contents.values():
        await domain.keep(tenant, content)
    for kind in ("corrupt", "marked"):
        path = path_of(domain, contents[kind])
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    path_of(domain, contents["missing"]).unlink()
    await domain.change(
        "UPDATE wharf.blobs SET state = 'quarantined', fault = 'corrupt' WHERE sha256 = ANY (%s)",
        [[sha256(contents[kind]).digest() for kind in ("marked", "restored")]],
    )
    quarantine = domain.volume.root / "quarantine"
    quarantine.mkdir(exist_ok=True)
    copy = quarantine / f"{sha256(b'let go').hexdigest()}.{new_id()}"
    copy.write_bytes(b"let go")
    return contents


KINDS = ("right", "corrupt", "missing", "marked", "restored")
"""`marked`: damaged, and a worker or a run that died has said so; `restored`: right, though one has said that it is
not."""


def copies(domain: Domain, content: bytes) -> list[bytes]:
    """What lies under this content's name, in the tree and in quarantine."""
    found = [path_of(domain, content), *(domain.volume.root / "quarantine").glob(f"{sha256(content).hexdigest()}.*")]
    return [path.read_bytes() for path in found if path.exists()]


def state(domain: Domain, content: bytes) -> tuple[str, str | None]:
    row = domain.blob(sha256(content).hexdigest())
    return row["state"], row["fault"]


def path_of(domain: Domain, content: bytes) -> Path:
    return domain.volume.root / blob_path(sha256(content).digest())


def belong_together(domain: Domain) -> bool:
    """Whether database and volume carry the same mark, settled."""
    [row] = domain.rows("SELECT checkpoint FROM wharf.installation")
    return str(row["checkpoint"]) == (domain.volume.root / "checkpoint").read_text().strip()
