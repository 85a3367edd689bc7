"""A broker, killed with -9 just before its n-th statement or commit since the last SIGUSR1.

    python -m tests.support.broker_killed_before

For each line `n port` of its standard input it runs one broker, in a fork, so that nothing is imported twice. It prints
the broker's process id on a line, and its exit status on the next when it has ended. The broker is set up by the
environment, as `wharf broker` is.
"""

import os
import signal
import sys
from typing import Any

from psycopg import AsyncConnection

from broker.command import broker
from tests.support.broker_killed_at import die


class Countdown:
    def __init__(self, number: int) -> None:
        self._left = number
        self._armed = False

    def set_up(self) -> None:
        execute, commit = AsyncConnection.execute, AsyncConnection.commit

        async def counted_execute(connection: Any, *arguments: Any, **named: Any) -> Any:
            self._count()
            return await execute(connection, *arguments, **named)

        async def counted_commit(connection: Any) -> None:
            self._count()
            await commit(connection)

        AsyncConnection.execute = counted_execute  # type: ignore[method-assign, assignment]
        AsyncConnection.commit = counted_commit  # type: ignore[method-assign]
        signal.signal(signal.SIGUSR1, self._arm)

    def _arm(self, *_: object) -> None:
        self._armed = True

    def _count(self) -> None:
        self._left -= self._armed
        if self._left == 0:
            die()


def main() -> None:
    for line in sys.stdin:
        number, port = line.split()
        child = os.fork()
        if child == 0:
            os.environ["WHARF_PORT"] = port
            Countdown(int(number)).set_up()
            broker()
            os._exit(0)
        _tell(child)
        _tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
