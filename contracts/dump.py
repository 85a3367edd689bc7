"""A database's schema as SQL."""

import asyncio
import re
import subprocess
import tempfile
from pathlib import Path

from broker.maintenance.migrate.migration import ensure_database, migrate
from standalone.database_cluster import programs_of_the_wheel
from standalone.postgres import Postgres


def fresh_schema() -> str:
    """That of a new database, as the migrations leave it."""
    with tempfile.TemporaryDirectory() as folder:
        postgres = Postgres(Path(folder) / "postgres", durable=False)
        asyncio.run(_bring_up(postgres))
        try:
            return schema_of(postgres.url(database="wharf"))
        finally:
            asyncio.run(postgres.stop())


def schema_of(url: str) -> str:
    """The statements that would make this database's schema."""
    dump = [str(programs_of_the_wheel() / "pg_dump"), "--schema-only", "--schema=wharf"]
    dumped = subprocess.run([*dump, url], check=True, capture_output=True, text=True)
    # Comments name the server's version, and \restrict carries a random word.
    lines = [line for line in dumped.stdout.splitlines() if not line.startswith(("--", "\\"))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


async def _bring_up(postgres: Postgres) -> None:
    await postgres.start()
    await ensure_database(postgres.url(), "wharf")
    await migrate(postgres.url(database="wharf"), None)
