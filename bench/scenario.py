"""A scenario: one module of `bench.scenarios`, found by its name or the letter it has in reports."""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from bench import scenarios
from bench.rounds import Contest


class MissingError(Exception):
    """The machine has not what a scenario needs. The message says what, and how to get it."""


@dataclass(frozen=True)
class Scenario:
    """`size`: how many `things` a window has unless somebody says otherwise. `open` is given a folder that is its own
    and the size; everything that it started has ended when its context has. It raises `MissingError` where the machine
    cannot do it."""

    letter: str
    title: str
    things: str
    size: int
    open: Callable[[Path, int], AbstractContextManager[Contest]]


def found() -> Mapping[str, Scenario]:
    """All of them by name: each module's `SCENARIO`."""
    names = sorted(module.name for module in iter_modules(scenarios.__path__))
    return {name: import_module(f"{scenarios.__name__}.{name}").SCENARIO for name in names}


def program(name: str, package: str | None = None) -> str:
    """Its path. Raises `MissingError` where it is not installed. `package`: of Debian, where it has another name."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    if (found := shutil.which(name, path=places)) is None:
        raise MissingError(f"There is no {name} on this machine: apt-get install {package or name}")
    return found
