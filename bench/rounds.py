"""Contenders in turn, each between two windows of the limit that it is held against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median


@dataclass(frozen=True)
class Window:
    """What one look showed. `per_second`: what the contender is judged by; `figures`: the rest, each name with its
    unit."""

    per_second: float
    figures: Mapping[str, float] = field(default_factory=dict)


class GivenUpError(Exception):
    """A contender cannot go on. The message says why."""


@dataclass(frozen=True)
class Contender:
    """`measure` takes one window. It has nothing to warm up: the scenario has done that. Where it raises
    `GivenUpError`, the contender is left out, with all its windows."""

    name: str
    measure: Callable[[], Window]


@dataclass(frozen=True)
class Contest:
    """`limit`: what the contenders wrap, on its own. None of them is expected to beat it. `added`: figures that are
    told as a difference to the limit's around as well. `left_out`: who could not take part, and why."""

    contenders: Sequence[Contender]
    limit: Contender
    added: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    values: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Standing:
    """One contender over all rounds. `ratio`: to the limit around each of its windows; None for the limit itself."""

    name: str
    per_second: Spread
    ratio: Spread | None
    figures: Mapping[str, Spread]


@dataclass(frozen=True)
class Result:
    contenders: Sequence[Standing]
    limit: Standing
    left_out: Mapping[str, str] = field(default_factory=dict)


def play(contest: Contest, rounds: int, told: Callable[[int, str, Window], None]) -> Result:
    """A B C A B C, the limit before and after each. `told`: of each window as it ends, with its round from 1."""
    windows: dict[str, list[Window]] = {contender.name: [] for contender in contest.contenders}
    ratios: dict[str, list[float]] = {contender.name: [] for contender in contest.contenders}
    left_out = dict(contest.left_out)
    limits: list[Window] = []

    def measure(number: int, contender: Contender) -> Window:
        window = contender.measure()
        told(number, contender.name, window)
        return window

    limits.append(measure(1, contest.limit))
    for number in range(1, rounds + 1):
        for contender in contest.contenders:
            if contender.name in left_out:
                continue
            try:
                window = measure(number, contender)
            except GivenUpError as error:
                left_out[contender.name] = str(error)
                continue
            limits.append(measure(number, contest.limit))
            windows[contender.name].append(with_added(window, limits[-2], limits[-1], contest.added))
            ratios[contender.name].append(ratio(window, limits[-2], limits[-1]))
    return Result(
        [standing(name, taken, ratios[name]) for name, taken in windows.items() if name not in left_out],
        standing(contest.limit.name, limits, None),
        left_out,
    )


def ratio(window: Window, before: Window, after: Window) -> float:
    return window.per_second / ((before.per_second + after.per_second) / 2)


def with_added(window: Window, before: Window, after: Window, names: Sequence[str]) -> Window:
    """The window with `added NAME` for each name: what it has above the mean of the two windows of the limit."""
    added = {
        f"added {name}": window.figures[name] - (before.figures[name] + after.figures[name]) / 2
        for name in names
        if name in window.figures
    }
    return replace(window, figures={**window.figures, **added})


def standing(name: str, windows: Sequence[Window], ratios: Sequence[float] | None) -> Standing:
    return Standing(
        name,
        Spread([window.per_second for window in windows]),
        None if ratios is None else Spread(ratios),
        {figure: Spread([window.figures[figure] for window in windows]) for figure in windows[0].figures},
    )
