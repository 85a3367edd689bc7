"""`wharf models add` and `wharf models wait`: models of the `wharf up` of this machine, or of the service that the
environment names."""

import asyncio
import sys
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from pydantic_settings import BaseSettings, SettingsConfigDict

from custody import models
from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.settings import load
from custody.telemetry import configure_logging
from inference_worker.adding import Added
from inference_worker.adding import add as add_model
from inference_worker.slots import START_SECONDS
from standalone.reach import reach

WAIT_SECONDS = 2.0
"""Between two looks whether a model is there."""


class AddSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    engine: str = "openvino"
    start_seconds: float = START_SECONDS


def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx, an OpenVINO .xml with its .bin, or a .pt")],
    name: Annotated[str | None, typer.Option(help="Its name; otherwise its file's")] = None,
    engine: Annotated[str | None, typer.Option(help="The engine that is to serve it (WHARF_ENGINE)")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of `wharf up`, if not the usual one")] = None,
) -> None:
    """Put a model on the service's volume and register it, so that workers can serve it by its name.

    A .pt is exported to ONNX and OpenVINO first, which needs the extra ultralytics.
    It is a pickle: add only what you trained, or whose makers you trust.

    Works on the `wharf up` of this machine, or on what WHARF_DATABASE_URL, of a
    worker's role, and WHARF_VOLUME name.
    """
    try:
        settings = load(AddSettings, **({"engine": engine} if engine else {}))
        configure_logging(process="models", format="text", level="error")
        url, volume = reach("wharf_worker", data)
        added = asyncio.run(
            add_model(
                file.absolute(),
                name=name,
                database_url=url,
                volume=volume,
                engine=settings.engine,
                start_seconds=settings.start_seconds,
            )
        )
    except StartError as error:
        sys.exit(f"wharf models add: {error}")
    except CustodyError as error:
        sys.exit(f"wharf models add: {error.detail}")
    _tell(added)


def wait(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model's name")],
    data: Annotated[Path | None, typer.Option(help="The folder of `wharf up`, if not the usual one")] = None,
) -> None:
    """Wait until a model is registered, however long: for what stands before a worker that would end without it."""
    configure_logging(process="models", format="text", level="error")
    try:
        url, _ = reach("wharf_worker", data)
        asyncio.run(_until_registered(url, name))
    except StartError as error:
        sys.exit(f"wharf models wait: {error}")
    except CustodyError as error:
        sys.exit(f"wharf models wait: {error.detail}")
    typer.echo(f"The model {name} is registered.")


async def _until_registered(url: str, name: str) -> None:
    async with Database(url, name="wharf models wait", role="wharf_worker", size=1, prepares=False) as database:
        for look in count():
            async with database.transaction() as transaction:
                if await models.newest_path(transaction, name) is not None:
                    return
            if look == 0:
                typer.echo(f"No model {name} is registered yet: wharf models add FILE --name {name}", err=True)
            await asyncio.sleep(WAIT_SECONDS)


def _tell(added: Added) -> None:
    model, found = added.model, added.description
    typer.echo(f"{model.name} version {model.version}: {found.task}, {len(found.classes)} classes, ", nl=False)
    typer.echo(f"input {found.input_width} x {found.input_height}")
    typer.echo(f"digest {model.digest}")
    typer.echo(f"Serve it: wharf worker --model {model.name}, or wharf up --model {model.name}")
