"""What the work on a request consists of, and how long each part took: told to the client in `Server-Timing`, and to a
collector as spans."""

import time
from collections.abc import Iterable
from contextvars import ContextVar
from types import TracebackType

from custody.spans import Stage

_REQUEST: ContextVar["Stages | None"] = ContextVar("stages", default=None)


class Stages:
    """Those of one request, one after the other: one that begins within another interrupts it."""

    def __init__(self) -> None:
        self.began_ns = time.time_ns()
        self.ended: list[Stage] = []
        self._elsewhere: dict[str, float] = {}
        self._open: list[str] = []
        self._since_ns = self.began_ns
        _REQUEST.set(self)

    def enter(self, name: str) -> None:
        self._cut()
        self._open.append(name)

    def leave(self) -> None:
        self._cut()
        self._open.pop()

    def tell(self, name: str, milliseconds: float) -> None:
        """Of what another process did for this request, within one of its stages."""
        self._elsewhere[name] = milliseconds

    def header(self) -> str:
        """The value of `Server-Timing`: milliseconds, `total` up to now."""
        sums: dict[str, float] = {}
        for stage in self.ended:
            sums[stage.name] = sums.get(stage.name, 0.0) + stage.milliseconds
        sums |= self._elsewhere
        sums["total"] = (time.time_ns() - self.began_ns) / 1e6
        return ", ".join(f"{name};dur={max(milliseconds, 0.0):.1f}" for name, milliseconds in sums.items())

    def _cut(self) -> None:
        now = time.time_ns()
        if self._open:
            self.ended.append(Stage(self._open[-1], self._since_ns, now))
        self._since_ns = now


class stage:  # noqa: N801 - read as a verb: `with stage("probe"):`
    """A part of the work on the request at hand, if there is one. For `async with` too, so that it stands in front of
    what it takes the time of."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stages = _REQUEST.get()

    def __enter__(self) -> None:
        if self._stages:
            self._stages.enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stages:
            self._stages.leave()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def tell(timings: Iterable[tuple[str, float]]) -> None:
    """Milliseconds by name, of what another process did for the request at hand."""
    if stages := _REQUEST.get():
        for name, milliseconds in timings:
            stages.tell(name, milliseconds)
