"""The real processes, as tests start, ask, stop and kill them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote
from uuid import uuid4

import httpx
import psutil
import psycopg

from tests.support.engines import ENVIRONMENT

START_SECONDS = 60
WHARF = (sys.executable, "-m", "wharfinger")

TABLES = ("blobs", "files", "jobs", "tasks", "results", "idempotency_keys")


@dataclass(frozen=True)
class Service:
    """A running Wharfinger: where it answers, who may ask, and where its traces are to be found.

    `key` is an admin's of the operator's tenant; `database` the superuser's connection string."""

    url: str
    key: str
    database: str
    volume: Path

    @contextmanager
    def client(self, key: str | None = None) -> Iterator[httpx.Client]:
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        # Nothing is encrypted here: without `verify`, no client loads the authorities' certificates.
        with httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=False) as client:
            yield client

    def new_key(self, role: str = "writer", tenant: str | None = None) -> str:
        """The secret of a new key; of a tenant of its own where none is named."""
        with self.client() as client:
            wanted = {"name": f"a {role}", "role": role, "tenant": tenant or f"t-{uuid4().hex}"}
            answer = client.post("/v1/keys", json=wanted)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["secret"])

    def rows(self) -> dict[str, int]:
        """How many rows each table has, over all tenants."""
        counts = ", ".join(f"(SELECT count(*) FROM wharf.{table})" for table in TABLES)
        [row] = self.ask(f"SELECT {counts}")
        return {table: int(str(count)) for table, count in zip(TABLES, row, strict=True)}

    def ask(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database) as connection:
            return connection.execute(query, values).fetchall()

    def staged(self) -> list[str]:
        return sorted(path.name for path in (self.volume / "staging").iterdir() if ".probe-" not in path.name)

    def traces(self) -> tuple[dict[str, int], list[str]]:
        """What a refused request must leave as it was; taken once all work is done."""
        open_tasks = "SELECT FROM wharf.tasks WHERE state IN ('queued', 'running')"
        until(lambda: not self.ask(open_tasks), "all tasks have ended")
        return self.rows(), self.staged()


@dataclass
class Part:
    """One process of ours, its output in a file."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    program: tuple[str, ...] = WHARF
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.program, *self.arguments],
                env=clean_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = 40) -> int:
        """The exit status, once it has one."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end in {seconds} s:\n{self.output()}") from None

    def stop(self) -> None:
        """Nothing of it is left afterwards, whatever the test did to it."""
        if self.process is None:
            return
        tree = family(self.pid)
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(40)
        kill(tree)
        self.process.wait(10)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended early:\n{self.output()}"
            assert time.monotonic() < deadline, f"{self.name} was not ready in {seconds} s:\n{self.output()}"
            time.sleep(0.05)


class Up:
    """`wharf up` on a folder; it may be started again after it has ended."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.data = folder / "data"
        self.state = folder / "state"
        self.port = free_port()
        arguments = ("up", "--data", str(self.data), "--port", str(self.port))
        environment = {"XDG_STATE_HOME": str(self.state), **(settings or {})}
        self.part = Part("wharf up", arguments, environment, folder / "up.log")

    def start(self) -> Service:
        begin = self.part.log.stat().st_size if self.part.log.exists() else 0
        self.part.start()
        self.part.until(lambda: "Wharfinger is ready" in self.part.output()[begin:])
        service = self.service()
        assert httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 200
        return service

    def service(self) -> Service:
        key = (self.data / "api-key").read_text().strip()
        return Service(f"http://127.0.0.1:{self.port}", key, self.database(), self.data / "volume")

    def database(self) -> str:
        running = json.loads((self.data / "postgres" / "running.json").read_text())
        return f"postgresql://postgres@{quote(running['socket'], safe='')}:5432/wharf"

    def child(self, name: str) -> psutil.Process:
        """The broker, the worker or postgres, right below the supervisor."""
        [found] = self.children(name)
        return found

    def children(self, name: str) -> list[psutil.Process]:
        return [each for each in psutil.Process(self.part.pid).children() if _is(each, name)]


class Installation:
    """A database and a volume of their own, brought up by `wharf migrate`, and processes that are started one by one
    on them, each with settings of its own."""

    def __init__(
        self, folder: Path, database: Callable[[str], str], environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`database` gives the connection string of a role; `environment` is for every process."""
        self.folder = folder
        self.volume = folder / "volume"
        self.environment = environment
        self._database = database
        self._parts: list[Part] = []
        self.port = free_port()

    def migrate(self) -> Service:
        key = self.folder / "key"
        migrate = self._part("migrate", ("migrate", "--first-key", str(key)), "postgres", {})
        migrate.start()
        assert migrate.ended(30) == 0, migrate.output()
        return Service(
            f"http://127.0.0.1:{self.port}", key.read_text().strip(), self._database("postgres"), self.volume
        )

    def broker(self, name: str = "broker", **settings: str) -> Part:
        part = self._part(name, ("broker",), "wharf_api", {"WHARF_PORT": str(self.port), **settings})
        part.start()
        part.until(lambda: answers(f"http://127.0.0.1:{part.environment['WHARF_PORT']}/livez"))
        return part

    def worker(self, name: str, **settings: str) -> Part:
        """Not started yet: `start_worker` does it, as often as a test wants."""
        more = {
            "WHARF_INSTANCE": name,
            "WHARF_HEALTH_PORT": str(free_port()),
            **ENVIRONMENT,
            **self.environment,
            **settings,
        }
        return self._part(name, ("worker",), "wharf_worker", more)

    def relay(self, name: str, amqp_url: str, **settings: str) -> Part:
        """Not started yet."""
        more = {"WHARF_INSTANCE": name, "WHARF_HEALTH_PORT": str(free_port()), "WHARF_AMQP_URL": amqp_url, **settings}
        return self._part(name, ("relay",), "wharf_relay", more)

    def cleanup(self, name: str, every_seconds: float, **settings: str) -> Part:
        """Not started yet."""
        more = {"WHARF_INSTANCE": name, "WHARF_HEALTH_PORT": str(free_port()), **settings}
        return self._part(name, ("cleanup", "--every", f"{every_seconds:g}"), "wharf_cleanup", more)

    def verify(self, *arguments: str, **settings: str) -> Part:
        """Not started yet."""
        return self._part("verify", ("verify", *arguments), "wharf_cleanup", {"WHARF_HEALTH_PORT": "0", **settings})

    def stop(self) -> None:
        for part in reversed(self._parts):
            part.stop()

    def _part(self, name: str, arguments: tuple[str, ...], role: str, settings: Mapping[str, str]) -> Part:
        environment = {
            "WHARF_DATABASE_URL": self._database(role),
            "WHARF_VOLUME": str(self.volume),
            **self.environment,
            **settings,
        }
        part = Part(name, arguments, environment, self.folder / f"{name}.log")
        self._parts.append(part)
        return part


@dataclass(frozen=True)
class Strict:
    """The service of the fixture `strict`: small limits, and a worker with `HazardEngine`."""

    service: Service
    installation: Installation
    broker: Part
    worker: Part


def start_worker(part: Part) -> None:
    """A worker, or a relay, until it is ready."""
    part.start()
    part.until(lambda: answers(f"http://127.0.0.1:{part.environment['WHARF_HEALTH_PORT']}/readyz"))


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours without the WHARF_ settings and proxies of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHARF_", "XDG_", "OTEL_"))}
    return {**kept, **more}


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def family(pid: int) -> list[psutil.Process]:
    """The process and everything below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process]) -> None:
    """With -9, those that still live; one's death may be another's."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if _command(each)]


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def _is(process: psutil.Process, name: str) -> bool:
    command = _command(process)
    return bool(command) and (command[-1] == name or Path(command[0]).name == name)


def _command(process: psutil.Process) -> list[str]:
    """Empty for the dead, zombies included."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
