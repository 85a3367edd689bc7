"""Everything that runs: two servers, two of each process of ours, and a proxy of its own on every connection between
a process and a server."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

import starter_model
from standalone.postgres import Postgres
from tests.e2e.service import Installation, Part, Service, answers, family, free_port, start_worker, until
from tests.faults.chaos.ledger import Ledger
from tests.faults.fleet import FAST, POOL, QUEUES, through
from tests.support.disk import Disk
from tests.support.engines import FINGERPRINT_ENGINE
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ

RABBITMQ: Mapping[str, str] = MappingProxyType({"heartbeat": "2"})
END_SECONDS = 45
"""From SIGTERM to the end of a process: longer than a worker drains."""
AGAIN_SECONDS = 0.5
"""What ends by itself is started again after so long, as Kubernetes does it."""
GIVEN_UP_SECONDS = 5
"""A Postgres that does not answer for so long, though it could, has ended."""
CLEANUP_SECONDS = 1
EACH = 2
DECLARED_SECONDS = 3

# A task is not to fail because the harness has killed three workers that held it.
FLEET = {**FAST, "WHARF_MAX_ATTEMPTS": "1000"}
SETTINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "broker": {"WHARF_DEFAULT_MODEL": POOL, "WHARF_DATABASE_CONNECTIONS": "8"},
        "relay": {**FLEET, "WHARF_WINDOW": "50"},
        "worker": {
            **FLEET,
            "WHARF_MODEL": str(starter_model.MODEL),
            "WHARF_ENGINE": FINGERPRINT_ENGINE,
            "WHARF_SLOTS": "1",
            "WHARF_TASK_SECONDS": "15",
        },
        "cleanup": {
            "WHARF_CLEANUP_GRACE_SECONDS": "1",
            "WHARF_STAGING_HOURS": str(5 / 3600),
            "WHARF_SWEEP_HOURS": str(10 / 3600),
            "WHARF_MAX_ORPHAN_FRACTION": "1",
        },
    }
)


@dataclass
class Member:
    """A process, with the links that only it uses, by what they lead to. `wanted`: it is to run."""

    kind: str
    part: Part
    links: Mapping[str, Proxy]
    wanted: bool = False


class Site:
    """`folder`: for volume, logs and data; volume and database have a disk each for themselves, where mounting is
    allowed. Enter it from the main thread: its Postgres ends with the thread.

    `proxied`: without, nobody comes between the processes and their servers, and nothing can be cut. `settings`: for
    each kind of process, beside or in place of `SETTINGS`; `rabbitmq`: the node's.

    A process that ends by itself is started again; that is a violation unless `excused` says that something was broken.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        *,
        proxied: bool = True,
        rabbitmq: Mapping[str, str] = RABBITMQ,
        settings: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self.service: Service
        self.volume_disk = Disk(folder / "volume")
        self.postgres_disk = Disk(folder / "postgres")
        self.excused = False
        self.node = RabbitMQ(folder / "rabbitmq", settings=rabbitmq)
        self._ledger = ledger
        self._proxied = proxied
        self._settings = {kind: {**usual, **settings.get(kind, {})} for kind, usual in SETTINGS.items()}
        # Durable: without `synchronous_commit` a kill -9 takes commits with it that were answered.
        self._postgres = Postgres(self.postgres_disk.path)
        self._starting = threading.Lock()
        self._over = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for disk in (self.volume_disk, self.postgres_disk):
                disk.path.mkdir(mode=0o711)
                stack.enter_context(disk)
            stack.callback(lambda: asyncio.run(self._postgres.stop()))
            asyncio.run(self._postgres.start())
            with psycopg.connect(self._postgres.url(), autocommit=True) as connection:
                connection.execute("CREATE DATABASE wharf")
            stack.enter_context(self.node)
            installation = Installation(self.folder, lambda role: self._postgres.url(role, "wharf"))
            stack.callback(installation.stop)
            self.service = installation.migrate()
            for number in range(1, EACH + 1):
                for kind in SETTINGS:
                    self.members.append(self._member(stack, installation, kind, f"{kind}-{number}"))
            # Before their links go.
            stack.callback(installation.stop)
            for member in self.members:
                start_worker(member.part) if member.kind != "broker" else None
                member.wanted = True
            # RabbitMQ 3.10 loses a quorum queue that it had for less than a second when it was killed.
            until(lambda: set(self.node.ctl("list_queues", "name").splitlines()) == set(QUEUES), "the queues are made")
            time.sleep(DECLARED_SECONDS)
            keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
            keeper.start()
            stack.callback(keeper.join)
            stack.callback(self._over.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def of(self, kind: str) -> list[Member]:
        return [member for member in self.members if member.kind == kind]

    @property
    def broker_urls(self) -> list[str]:
        """As clients know them: through a proxy where there are any."""
        brokers = self.of("broker")
        ports = [
            each.links["clients"].port if self._proxied else each.part.environment["WHARF_PORT"] for each in brokers
        ]
        return [f"http://127.0.0.1:{port}" for port in ports]

    def kill(self, member: Member) -> None:
        """With -9, the process alone: what it started is to notice. It stays dead until `start`."""
        with self._starting:
            member.wanted = False
            self._signal(family(member.part.pid)[:1], signal.SIGKILL)
        member.part.ended()

    def kill_slot(self, member: Member) -> None:
        """With -9, one of the processes that a worker has at work on pictures."""
        self._signal(family(member.part.pid)[1:][:1], signal.SIGKILL)

    def end(self, member: Member) -> None:
        """As an operator does; a process that does not end in time is a violation, and is killed."""
        with self._starting:
            member.wanted = False
        if member.part.process is None or member.part.process.poll() is not None:
            return
        member.part.send(signal.SIGTERM)
        try:
            member.part.ended(END_SECONDS)
        except AssertionError:
            self._ledger.broken("stuck", f"{member.part.name} did not end within {END_SECONDS} s of SIGTERM")
            member.part.stop()

    def start(self, member: Member) -> None:
        """Returns at once: whether it becomes ready is what is to be seen."""
        with self._starting:
            if member.part.process is None or member.part.process.poll() is not None:
                member.part.start()
            member.wanted = True

    def stop(self, member: Member) -> None:
        """SIGSTOP, to the whole of it."""
        self._signal(family(member.part.pid), signal.SIGSTOP)

    def go_on(self, member: Member) -> None:
        self._signal(family(member.part.pid), signal.SIGCONT)

    def is_up(self, member: Member) -> bool:
        """It answers that it lives."""
        port = member.part.environment["WHARF_PORT" if member.kind == "broker" else "WHARF_HEALTH_PORT"]
        return answers(f"http://127.0.0.1:{port}/livez")

    def messages(self) -> int:
        """In all queues of RabbitMQ, those included that workers hold."""
        return sum(int(line) for line in self.node.ctl("list_queues", "messages").splitlines())

    def kill_postgres(self) -> None:
        """With -9, the first of its processes: the others find out."""
        self._signal([psutil.Process(self.postmaster)], signal.SIGKILL)
        asyncio.run(self._postgres.wait())

    def stop_postgres(self) -> None:
        """As an operator does."""
        asyncio.run(self._postgres.stop())

    def start_postgres(self) -> None:
        asyncio.run(self._postgres.start())

    def revive_postgres(self) -> None:
        """As an operator does where it has given up."""
        if not holds_at_last(lambda: self.service.ask("SELECT true") != [], GIVEN_UP_SECONDS):
            self.stop_postgres()
            self.start_postgres()

    @contextmanager
    def postgres_stopped(self) -> Iterator[None]:
        """SIGSTOP, to all its processes."""
        stopped = family(self.postmaster)
        self._signal(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(stopped, signal.SIGCONT)

    @contextmanager
    def rabbitmq_stopped(self) -> Iterator[None]:
        stopped = family(self.node.pid)
        self._signal(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(stopped, signal.SIGCONT)

    @property
    def postmaster(self) -> int:
        return int((self.folder / "postgres" / "cluster" / "postmaster.pid").read_text().split("\n", 1)[0])

    def _member(self, stack: ExitStack, installation: Installation, kind: str, name: str) -> Member:
        links: dict[str, Proxy] = {}
        database = self._postgres.url({"broker": "wharf_api"}.get(kind, f"wharf_{kind}"), "wharf")
        queue = self.node.url()
        if self._proxied:
            place = conninfo_to_dict(database)
            postgres = Proxy(Path(str(place["host"])) / f".s.PGSQL.{place['port']}")
            links["postgres"] = stack.enter_context(postgres)
            database = f"postgresql://{place['user']}@127.0.0.1:{postgres.port}/wharf?sslmode=disable"
            if kind in ("relay", "worker"):
                links["rabbitmq"] = stack.enter_context(Proxy(self.node.port))
                queue = through(queue, links["rabbitmq"].port)
        settings = {**self._settings[kind], "WHARF_DATABASE_URL": database}
        if kind == "broker":
            port = installation.port if name.endswith("-1") else free_port()
            part = installation.broker(name, **settings, WHARF_INSTANCE=name, WHARF_PORT=str(port))
            if self._proxied:
                links["clients"] = stack.enter_context(Proxy(port))
        elif kind == "cleanup":
            part = installation.cleanup(name, CLEANUP_SECONDS, **settings)
        elif kind == "relay":
            part = installation.relay(name, queue, **settings)
        else:
            part = installation.worker(name, **settings, WHARF_AMQP_URL=queue)
        return Member(kind, part, links)

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            for member in self.members:
                process = member.part.process
                if member.wanted and process is not None and process.poll() is not None:
                    if not self.excused:
                        words = member.part.output()[-2000:]
                        self._ledger.broken("harmed", f"{member.part.name} ended by itself:\n{words}")
                    self._over.wait(AGAIN_SECONDS)
                    with self._starting:
                        if member.wanted and not self._over.is_set():
                            member.part.start()

    def _signal(self, processes: Sequence[psutil.Process], number: signal.Signals) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def holds_at_last(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition comes to hold in that time; while it cannot be asked, it does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(psycopg.Error, OSError, RuntimeError):
            if condition():
                return True
        time.sleep(0.1)
    return False
