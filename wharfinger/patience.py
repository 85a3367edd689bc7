"""How long a call goes on trying, and how it spaces its attempts."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Patience:
    """Seconds for which a call is tried again before its error is raised.

    `first_contact`: nobody has answered this client yet, so that most likely nobody is there; `reconnect`: the service
    was there and may be restarting; `backlog`: it is there and has no room (429, 503).
    """

    first_contact: float = 1.0
    reconnect: float = 30.0
    backlog: float = 300.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)


class Backoff:
    """The pauses of one call: doubling, with jitter, so that clients refused together do not return together."""

    _shortest = 0.1
    _longest = 5.0

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._pauses = 0
        self._first_failure: float | None = None

    def pause(self, budget: float, at_least: float = 0.0) -> bool:
        """Sleep until the next attempt, `at_least` that many seconds. False, at once, where this would end more than
        `budget` seconds after the call's first failure."""
        now = self._patience.clock()
        if self._first_failure is None:
            self._first_failure = now
        step = min(self._longest, self._shortest * 2**self._pauses)
        seconds = at_least + random.uniform(step / 2, step)  # noqa: S311 - jitter, not a secret
        if now + seconds - self._first_failure > budget:
            return False
        self._pauses += 1
        self._patience.sleep(seconds)
        return True
