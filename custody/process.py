"""A serving process, from its settings to its end."""

import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from custody.errors import CustodyError, StartError
from custody.settings import ProcessSettings, load
from custody.telemetry import configure_logging

S = TypeVar("S", bound=ProcessSettings)


def run(name: str, kind: type[S], serve: Callable[[S], Coroutine[Any, Any, None]], **given: Any) -> None:
    """Reads the settings, `given` ones first, and serves until it is asked to end. What keeps it from starting is told
    in a line or two, with status 1."""
    try:
        settings = load(kind, **{setting: value for setting, value in given.items() if value is not None})
        configure_logging(process=name, format=settings.log_format, level=settings.log_level)
        uvloop.run(serve(settings))
    except StartError as error:
        sys.exit(f"wharf {name}: {error}")
    except CustodyError as error:
        sys.exit(f"wharf {name}: {error.detail}")
