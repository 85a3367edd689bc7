"""How fast a cleanup lets go of expired files, against moving and unlinking as many."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path

import psycopg

from bench.fleet import new_installation
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario
from custody.volume import blob_path
from tests.e2e.service import WHARF, Installation, Service, clean_environment

BYTES = 1024
WARM_UP = 200
THREADS = 16
"""As many as a cleanup's."""

EXPIRED = """
    WITH tenant AS (SELECT id FROM wharf.tenants WHERE operator),
    kept AS (
        INSERT INTO wharf.blobs (sha256, size, state) SELECT unnest(%(sha256s)s::bytea[]), %(bytes)s, 'present'
        RETURNING sha256
    )
    INSERT INTO wharf.files (id, tenant_id, sha256, size, media_type, width, height, expires_at)
    SELECT gen_random_uuid(), tenant.id, kept.sha256, %(bytes)s, 'image/png', 1, 1, now() - interval '1 day'
    FROM kept CROSS JOIN tenant
"""

_numbers = count()


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    with new_installation(folder / "cleanup") as (installation, service, _):
        _clean(installation, service, WARM_UP)
        yield Contest(
            [Contender("cleanup", partial(_clean, installation, service, size))],
            Contender("bare rename and unlink", partial(_bare, service, size)),
        )


def _clean(installation: Installation, service: Service, files: int) -> Window:
    """From the run's beginning to its end, the look through the emptied volume included, as its history has it."""
    digests = _put(service.volume, files)
    with psycopg.connect(service.database, autocommit=True) as connection:
        connection.execute(EXPIRED, {"sha256s": digests, "bytes": BYTES})
        connection.execute("VACUUM ANALYZE wharf.files, wharf.blobs")
    environment = clean_environment(installation.cleanup("cleanup", 1).environment)
    ended = subprocess.run(
        [*WHARF, "cleanup", "--now", "--json"], env=environment, check=True, capture_output=True, text=True
    )
    run = json.loads(ended.stdout)
    if run["removed_blobs"] != files:
        raise RuntimeError(f"{run['removed_blobs']} of {files} files were removed.")
    took = datetime.fromisoformat(run["ended_at"]) - datetime.fromisoformat(run["started_at"])
    return Window(files / took.total_seconds())


def _bare(service: Service, files: int) -> Window:
    """The same files at the same places, moved out of the tree and unlinked by as many threads."""
    dropped = service.volume / "dropped"
    digests = sorted(_put(service.volume, files))

    def move_and_unlink(some: Sequence[bytes]) -> None:
        for digest in some:
            (service.volume / blob_path(digest)).rename(moved := dropped / digest.hex())
            moved.unlink()

    with ThreadPoolExecutor(THREADS) as threads:
        began = time.perf_counter()
        list(threads.map(move_and_unlink, (digests[start : start + 32] for start in range(0, files, 32))))
        return Window(files / (time.perf_counter() - began))


def _put(volume: Path, files: int) -> list[bytes]:
    """New bytes in the tree, and no row of them."""
    digests = []
    for _ in range(files):
        content = next(_numbers).to_bytes(8, "big") * (BYTES // 8)
        digests.append(sha256(content).digest())
        (volume / blob_path(digests[-1])).write_bytes(content)
    return digests


SCENARIO = Scenario(
    "cleanup", "A cleanup of expired files against bare moving and unlinking", "files", size=100_000, open=_open
)
