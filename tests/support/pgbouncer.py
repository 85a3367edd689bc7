"""PgBouncer in front of a test's Postgres, a server connection for each transaction. Where it is not installed, tests
that need it are skipped."""

import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from custody.database import ROLES
from standalone.database_cluster import account_for
from standalone.process import Process

START_SECONDS = 10


@contextmanager
def pgbouncer(server_url: str) -> Iterator[Callable[[str], str]]:
    """Gives what makes of a URL of the server one that leads through it. Two of the server's sessions are for all
    clients of a role."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    folder = Path(tempfile.mkdtemp(prefix="wharf-pgbouncer-"))
    folder.chmod(0o777)
    server = conninfo_to_dict(server_url)
    (folder / "users").write_text("".join(f'"{role}" ""\n' for role in ROLES))
    (folder / "ini").write_text(
        f"""
        [databases]
        * = host={server["host"]} port={server["port"]}
        [pgbouncer]
        unix_socket_dir = {folder}
        auth_type = trust
        auth_file = {folder}/users
        pool_mode = transaction
        default_pool_size = 2
        """.replace("        ", "")
    )
    # It refuses to be root, and must reach the server's socket: it runs as the server does.
    socket = Path(str(server["host"]))
    running = Process.spawn(
        [program, str(folder / "ini")],
        death_signal=signal.SIGINT,
        output=subprocess.DEVNULL,
        account=account_for(socket),
        reach=(socket, folder),
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (folder / ".s.PGSQL.6432").exists():
            assert time.monotonic() < deadline, "pgbouncer does not start"
            time.sleep(0.02)
        yield lambda url: make_conninfo(url, host=str(folder), port=6432)
    finally:
        asyncio.run(running.end((signal.SIGTERM, START_SECONDS)))
        shutil.rmtree(folder)
