"""A scenario: one module of `bench.scenarios`, found by its name or the letter it has in reports."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from bench import scenarios
from bench.rounds import Contest


@dataclass(frozen=True)
class Scenario:
    """`size`: how many `things` a window has unless somebody says otherwise. `open` is given a folder that is its own
    and the size; everything that it started has ended when its context has."""

    letter: str
    title: str
    things: str
    size: int
    open: Callable[[Path, int], AbstractContextManager[Contest]]


def found() -> Mapping[str, Scenario]:
    """All of them by name: each module's `SCENARIO`."""
    names = sorted(module.name for module in iter_modules(scenarios.__path__))
    return {name: import_module(f"{scenarios.__name__}.{name}").SCENARIO for name in names}
