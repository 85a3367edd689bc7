"""What counts the changes that a process makes, and kills it with -9 just before one of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from tests.support.broker_killed_at import die

CHANGE = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM|SELECT) wharf\.")


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
