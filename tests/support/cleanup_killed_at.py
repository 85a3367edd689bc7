"""A cleanup, killed with -9 just before its n-th change of the database or the volume.

    python -m tests.support.cleanup_killed_at

For each n on a line of its standard input it runs one cleanup, in a fork, so that nothing is imported twice, and
prints its exit status on a line: -9 where it was killed, 0 where it has fewer changes. The cleanup is set up by the
environment, as `wharf cleanup --now` is.
"""

import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from broker.maintenance.cleanup.schedule import clean_once
from broker.maintenance.cleanup.settings import CleanupSettings
from custody.settings import load
from custody.telemetry import configure_logging
from tests.support.broker_killed_at import die

CHANGE = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM) wharf\.")


class Countdown:
    """Dies before the n-th change: a statement, the commit of what was changed, or what is done to a file."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._changed: set[int] = set()

    def arm(self) -> None:
        execute, commit = AsyncConnection.execute, AsyncConnection.commit

        async def counted_execute(connection: Any, query: Any, *arguments: Any, **named: Any) -> Any:
            text = query.decode() if isinstance(query, bytes) else str(query)
            if CHANGE.search(text):
                self._changed.add(id(connection))
                self._count()
            return await execute(connection, query, *arguments, **named)

        async def counted_commit(connection: Any) -> None:
            if id(connection) in self._changed:
                self._changed.discard(id(connection))
                self._count()
            await commit(connection)

        AsyncConnection.execute = counted_execute
        AsyncConnection.commit = counted_commit
        for name in ("rename", "unlink", "write_text"):
            setattr(Path, name, self._counted(getattr(Path, name)))

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._count()
            return original(*arguments, **named)

        return counted

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            die()


def main() -> None:
    configure_logging(process="cleanup", format="text", level="critical")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            Countdown(int(line)).arm()
            settings = load(CleanupSettings)
            run = asyncio.run(clean_once(settings, without_grace=True, max_seconds=None, tell=lambda _: None))
            os._exit(0 if run is not None and run.stopped == "done" else 1)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
