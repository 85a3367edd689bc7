"""A serving process, from its settings to its end."""

import os
import sys
import threading
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any, TypeVar

import structlog
import uvloop

from custody.errors import CustodyError, StartError
from custody.settings import ProcessSettings, load
from custody.telemetry import configure_logging

S = TypeVar("S", bound=ProcessSettings)

log = structlog.get_logger()

END_SECONDS = 10.0
"""For the end of a process that nobody waits for."""


def release() -> str:
    """Of Wharfinger, as this process has it installed."""
    return version("wharfinger")


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


def end_within(seconds: float) -> None:
    """The end was asked for, and is not waited for any longer than that. A server that neither answers nor breaks the
    connection can be waited for without end; what is left then is what a kill leaves, which others mend. The exit
    status is 1 in that case."""

    def give_up() -> None:
        log.error("end_forced", after_seconds=seconds)
        sys.stdout.flush()
        os._exit(1)

    # Not a task: neither a loop that is blocked nor a thread that hangs, in the volume say, keeps it from running.
    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
