"""`wharf up`: everything on one machine, wired."""

import asyncio
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from pydantic import SecretStr

from broker.maintenance.migrate.logins import process_urls
from broker.maintenance.migrate.migration import clear_worker, ensure_database, first_key, key_works, migrate, write_key
from custody.errors import StartError
from custody.models import name_of
from custody.settings import load
from custody.telemetry import configure_logging
from custody.volume import NO_ROOM, Volume
from standalone.ballast import Ballast
from standalone.folder import Folder
from standalone.postgres import Postgres
from standalone.program import Program
from standalone.settings import UpSettings
from standalone.supervisor import Supervisor
from wharfinger import discovery

FIRST_TENANT = "default"
END_SECONDS = 10.0
"""More than each process gives itself after its drain."""

ROLES = ("wharf_api", "wharf_worker", "wharf_cleanup")
"""Those that its processes log in as."""


def up(
    data: Annotated[Path | None, typer.Option(help="Folder for everything it keeps (WHARF_DATA)")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (WHARF_HOST)")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (WHARF_PORT)")] = None,
    model: Annotated[str | None, typer.Option(help="Registered name, or a file: .onnx, .xml (WHARF_MODEL)")] = None,
) -> None:
    """Run everything on this machine: database, API, worker and cleanup. Ctrl-C ends it and leaves nothing running."""
    given = {"data": data, "host": host, "port": port, "model": model}
    try:
        settings = load(UpSettings, **{name: value for name, value in given.items() if value is not None})
        configure_logging(process="up", format=settings.log_format, level="warning")
        asyncio.run(OneMachine(settings).run())
    except StartError as error:
        sys.exit(f"wharf up: {error}")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sys.exit(f"wharf up: {error.filename or settings.data}: the disk is full. Free some space, then start again.")


@dataclass(frozen=True)
class Urls:
    """`owner` brings the database up to date and makes keys; the others are the processes' own."""

    owner: str
    api: str
    worker: str
    cleanup: str


class OneMachine:
    def __init__(self, settings: UpSettings) -> None:
        self._settings = settings
        self._data = settings.data.absolute()
        self._volume = Volume(self._data / "volume", instance="up")
        self._supervisor = Supervisor(_print)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._server = f"http://{host}:{settings.port}"

    async def run(self) -> None:
        """Returns once a signal has asked for the end and everything is down."""
        folder = Folder(self._data)
        ballast = Ballast(self._data / "ballast", self._settings.ballast_bytes, _say)
        if self._data.is_dir():
            ballast.look()
        folder.lock()
        watching = asyncio.create_task(ballast.watch(), name="watch-ballast")
        try:
            self._check_port()
            await self._supervisor.run(self._set_up)
        finally:
            watching.cancel()
            discovery.forget(self._data)
            folder.unlock()

    async def _set_up(self) -> None:
        urls = await self._database(self._settings.database_url)
        await self._let_in(urls.owner)
        # Its former self may have died a moment ago and still count as living.
        await clear_worker(urls.owner, "up-worker")
        environment = self._environment()
        await self._supervisor.start(
            self._program("broker", environment | {"WHARF_DATABASE_URL": urls.api}, ready="/livez")
        )
        await self._supervisor.start(
            self._program("worker", environment | {"WHARF_DATABASE_URL": urls.worker}, ready="/readyz")
        )
        _say(f"Wharfinger is ready at {self._server}, its key in {self._data / discovery.KEY_FILE}")
        _say("Try: wharf predict PICTURE        Ctrl-C ends it.")
        every = f"{self._settings.cleanup_every_seconds:g}"
        await self._supervisor.start(
            self._program("cleanup", environment | {"WHARF_DATABASE_URL": urls.cleanup}, "--every", every)
        )

    async def _database(self, given: SecretStr | None) -> Urls:
        if given is not None:
            owner = given.get_secret_value()
            await migrate(owner, self._volume)
            urls = await process_urls(owner, self._volume.identity().hex[-8:])
            return Urls(owner, *(urls[role] for role in ROLES))
        postgres = Postgres(self._data / "postgres")
        await self._supervisor.start(postgres)
        await ensure_database(postgres.url(), "wharf")
        await migrate(postgres.url(database="wharf"), self._volume)
        return Urls(*(postgres.url(user, "wharf") for user in ("postgres", *ROLES)))

    async def _let_in(self, owner_url: str) -> None:
        """Leaves the key and the address where the command line looks for them."""
        key_file = self._data / discovery.KEY_FILE
        if not key_file.exists() or not await key_works(owner_url, key_file.read_text().strip()):
            key_file.unlink(missing_ok=True)
            write_key(key_file, await first_key(owner_url, FIRST_TENANT))
        (self._data / discovery.SERVER_FILE).write_text(f"{self._server}\n")
        discovery.remember(self._data)

    def _environment(self) -> dict[str, str]:
        """What all processes are given. `up` keeps its owner's URL to itself."""
        own = {
            "WHARF_VOLUME": str(self._volume.root),
            "WHARF_LOG_FORMAT": self._settings.log_format,
            "WHARF_HOST": self._settings.host,
            "WHARF_PORT": str(self._settings.port),
            "WHARF_MODEL": self._settings.model,
            "WHARF_DEFAULT_MODEL": name_of(self._settings.model),
            "WHARF_READY_NEEDS_WORKER": "true",
        }
        # A fleet's RabbitMQ is none of its, there being no relay here; nor is another server, or the owner's login.
        others = ("WHARF_AMQP_", "WHARF_DIRECT_DATABASE_URL")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        compiled = str(self._data / "compiled")
        return {"WHARF_HEALTH_PORT": "0", "WHARF_COMPILED_FOLDER": compiled, **inherited, **own}

    def _program(self, name: str, environment: dict[str, str], *options: str, ready: str | None = None) -> Program:
        return Program(
            name,
            [sys.executable, "-m", "wharfinger", name, *options],
            env={**environment, "WHARF_INSTANCE": f"up-{name}"},
            write=_print,
            ready=None if ready is None else lambda: self._answers(ready),
            ready_seconds=120,
            # What a broker takes, the end of the process included; a worker takes no longer.
            grace_seconds=self._settings.leave_seconds + self._settings.drain_seconds + END_SECONDS,
        )

    async def _answers(self, path: str) -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                return (await client.get(self._server + path)).status_code == 200
        except httpx.TransportError:
            return False

    def _check_port(self) -> None:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._settings.host, self._settings.port))
            except OSError as error:
                raise StartError(
                    f"{self._settings.host}:{self._settings.port} cannot be listened on: {error.strerror}. "
                    "Stop what uses it, or choose another with --port."
                ) from error


def _say(text: str) -> None:
    _print(f"wharf    | {text}")


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201
