"""Prints what ./pyproject.toml asks for, a line each: `requirements.py EXTRA...`, or without extras what builds it.

The project itself is not among it: its packages are a layer of their own, which a change of the code leaves as it is.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def requirements(pyproject: dict[str, Any], extras: Sequence[str]) -> list[str]:
    """In alphabetical order, each once; an extra of the project's own stands for what it asks for."""
    if not extras:
        return sorted(pyproject["build-system"]["requires"])
    project = pyproject["project"]
    return sorted({*project["dependencies"], *_of(project, extras)})


def _of(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
            if own:
                yield from _of(project, own[1].split(","))
            else:
                yield requirement


if __name__ == "__main__":
    print(*requirements(tomllib.loads(Path("pyproject.toml").read_text()), sys.argv[1:]), sep="\n")  # noqa: T201
