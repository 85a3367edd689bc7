"""Processes that stop before every statement and every operation on the disk, and a scheduler that says who goes on.

Each actor is a process of the service as far as anybody can tell: a task with connections and a `Volume` of its own.
It can be ended before any of its steps, as by kill -9: its transaction is rolled back, what it knew is gone, what it
left on the disk stays. Its session can be ended while it lives, as the server does to one that was paused; or its
commit can succeed without an answer.
"""

import asyncio
import io
import os
import random
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from custody.database import Connection, Database
from custody.volume import Volume
from tests.support.nfs import Host, RealDisk

T = TypeVar("T")

MOVING = {"rename", "unlink", "stat", "scandir"}
"""Operations of the disk that are steps; so is an `open` of a file. What nobody else can see is none: an fsync, a
BEGIN."""


class CrashedError(BaseException):
    """The process is no more: nobody catches this."""


class StuckError(Exception):
    """Somebody neither goes on nor waits for anybody."""


class Actor:
    """`host`: where its disk operations go. `loses`: what its next commit does."""

    def __init__(self, name: str, host: RealDisk | Host) -> None:
        self.name = name
        self.host = host
        self.dead = False
        self.loses_answer = False
        self.backend: int | None = None
        self.label = "begins"
        self.waiting: Future[None] | None = None
        self.blocked = False
        self.task: asyncio.Task[None]

    @property
    def done(self) -> bool:
        return self.task.done()

    def stop_before(self, label: str, scheduler: "Scheduler") -> "Future[None]":
        """Called in the event loop."""
        permission: Future[None] = Future()
        if self.dead:
            permission.set_exception(CrashedError(self.name))
        else:
            assert self.waiting is None, "it stops at one place at a time"
            self.label, self.waiting = label, permission
            scheduler.changed.set()
        return permission

    def go(self, error: BaseException | None = None) -> None:
        assert self.waiting is not None
        permission, self.waiting = self.waiting, None
        if error is None:
            permission.set_result(None)
        else:
            permission.set_exception(error)


ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)
_thread = threading.local()


class SteppedConnection(Connection):
    """Stops its actor before each statement. For all others it is as any."""

    scheduler: "Scheduler"

    async def execute(self, query: Any, params: Any = None, **named: Any) -> Any:
        if actor := ACTOR.get():
            if (label := _short(query)).startswith("BEGIN") and not actor.dead:
                actor.label = label
            else:
                await self.scheduler.step(actor, label)
            actor.backend = self.info.backend_pid
        try:
            return await super().execute(query, params, **named)
        except psycopg.errors.DeadlockDetected as error:
            self.scheduler.deadlocks.append(str(error))
            raise

    async def commit(self) -> None:
        actor = ACTOR.get()
        if actor:
            await self.scheduler.step(actor, "COMMIT")
        await super().commit()
        if actor:
            self.scheduler.locks_moved = True
            actor.backend = None
            if actor.loses_answer:
                actor.loses_answer = False
                raise psycopg.OperationalError("the answer to COMMIT was lost")

    async def rollback(self) -> None:
        self.scheduler.locks_moved = True
        if actor := ACTOR.get():
            actor.backend = None
        await super().rollback()


class ActorVolume(Volume):
    """Its work on the disk is seen as this actor's, and is done one thing at a time."""

    def __init__(self, root: Path, actor: Actor) -> None:
        super().__init__(root, instance=actor.name, threads=1)
        self._actor = actor

    async def run(self, work: Callable[[], T]) -> T:
        def as_actor() -> T:
            _thread.actor = self._actor
            try:
                return work()
            finally:
                _thread.actor = None

        return await super().run(as_actor)

    def close(self) -> None:
        self._threads.shutdown(wait=False)


class Scheduler:
    """`observer`: a superuser's connection, which waits for nothing."""

    def __init__(self, observer: psycopg.Connection[Any]) -> None:
        self.observer = observer
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.begin(0)

    def begin(self, seed: int) -> None:
        """A run: everything random in it comes of the seed."""
        self.random = random.Random(seed)
        self.actors: list[Actor] = []
        self.schedule: list[str] = []
        self.deadlocks: list[str] = []
        self.locks_moved = False
        self.now = 0

    def connect(self, database: Database) -> None:
        """Call it before the database is opened."""
        kind = type("Connection", (SteppedConnection,), {"scheduler": self})
        database._pool.connection_class = kind

    def start(self, actor: Actor, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            ACTOR.set(actor)
            await self.step(actor, "begins")
            await work()

        actor.task = asyncio.create_task(run(), name=actor.name)
        actor.task.add_done_callback(lambda _: self.changed.set())
        self.actors.append(actor)

    async def step(self, actor: Actor, label: str) -> None:
        await asyncio.wrap_future(actor.stop_before(label, self))

    def step_in_thread(self, actor: Actor, label: str) -> None:
        arrived: Future[Future[None]] = Future()
        self._loop.call_soon_threadsafe(lambda: arrived.set_result(actor.stop_before(label, self)))
        arrived.result().result()

    # Who goes on

    async def quiet(self) -> list[Actor]:
        """Waits until nobody moves. Gives those that can go on."""
        give_up = time.monotonic() + 15
        while time.monotonic() < give_up:
            living = [actor for actor in self.actors if not actor.done]
            moving = [actor for actor in living if actor.waiting is None]
            if not moving:
                self.locks_moved = False
            if not self.locks_moved and all(actor.blocked for actor in moving):
                return [actor for actor in living if actor.waiting is not None]
            self.changed.clear()
            try:
                async with asyncio.timeout(0.003):
                    await self.changed.wait()
            except TimeoutError:
                self._find_blocked(moving)
        raise StuckError(f"{[actor.name for actor in moving]} neither go on nor wait for a lock")

    def _find_blocked(self, moving: list[Actor]) -> None:
        waiting = self._waiting(moving)
        for actor in moving:
            actor.blocked = actor.backend in waiting
        if all(actor.blocked for actor in moving) and self._waiting(moving) == waiting:
            self.locks_moved = False

    def _waiting(self, actors: list[Actor]) -> set[int]:
        backends = [actor.backend for actor in actors if actor.backend is not None]
        found = self.observer.execute(
            "SELECT pid FROM unnest(%s::int[]) pid WHERE cardinality(pg_blocking_pids(pid)) > 0", [backends]
        )
        return {row["pid"] for row in found.fetchall()}

    async def go_on(self, actor: Actor) -> None:
        self._note(actor, "")
        actor.blocked = False
        actor.go()
        await self.quiet()

    async def crash(self, actor: Actor) -> None:
        """The process ends, wherever it is."""
        self._note(actor, "CRASH before ")
        actor.dead = True
        self.locks_moved = True
        if actor.waiting is None:
            actor.task.cancel()
        else:
            actor.go(CrashedError(actor.name))
        await asyncio.wait([actor.task], timeout=10)
        assert actor.done, f"{actor.name} does not die"
        await self.quiet()

    async def end_session(self, actor: Actor) -> None:
        """The server ends its transaction; it is told when it sends the next statement."""
        self._note(actor, "SESSION ENDED before ")
        self.observer.execute("SELECT pg_terminate_backend(%s, 5000)", [actor.backend])
        self.locks_moved = True
        await self.quiet()

    async def go_on_unanswered(self, actor: Actor) -> None:
        self._note(actor, "UNANSWERED ")
        actor.loses_answer = True
        actor.go()
        await self.quiet()

    async def end_all(self) -> None:
        for actor in self.actors:
            if not actor.done:
                actor.dead = True
                if actor.waiting is None:
                    actor.task.cancel()
                else:
                    actor.go(CrashedError(actor.name))
        await asyncio.gather(*(actor.task for actor in self.actors), return_exceptions=True)

    def _note(self, actor: Actor, what: str) -> None:
        self.now += 1
        self.schedule.append(f"{self.now:4} {actor.name}: {what}{actor.label}")


@contextmanager
def stepped_disk(scheduler: Scheduler) -> Iterator[None]:
    """While it lasts, the `os` of an actor's threads is its host's disk, and stops it."""
    real = {name: getattr(os, name) for name in (*MOVING, "fsync", "fdatasync", "open", "close", "pread", "lstat")}

    def is_folder(path: Any) -> bool:
        try:
            return stat.S_ISDIR(real["stat"](path).st_mode)
        except FileNotFoundError:
            return False

    def stepped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            actor: Actor | None = getattr(_thread, "actor", None)
            if actor is None:
                return real[name](*arguments, **named)
            if name in MOVING or (name == "open" and not is_folder(arguments[0])):
                scheduler.step_in_thread(actor, f"{name} {_shown(arguments[0])}")
            elif actor.dead:
                raise CrashedError(actor.name)
            return getattr(actor.host, name)(*arguments, **named)

        return call

    real_open = io.open

    def open_file(file: Any, *arguments: Any, **named: Any) -> Any:
        actor: Actor | None = getattr(_thread, "actor", None)
        if actor is not None:
            scheduler.step_in_thread(actor, f"open {_shown(file)}")
            named["opener"] = actor.host.opener
        return real_open(file, *arguments, **named)

    for name in real:
        setattr(os, name, stepped(name))
    io.open = open_file  # type: ignore[assignment]
    try:
        yield
    finally:
        io.open = real_open
        for name, function in real.items():
            setattr(os, name, function)


def _shown(path: Any) -> str:
    if isinstance(path, int):
        return ""
    parts = Path(path).parts[-2:]
    return "/".join(part if len(part) < 40 else f"{part[:8]}…" for part in parts)


def _short(query: Any) -> str:
    text = query.decode() if isinstance(query, bytes) else str(query)
    return " ".join(text.split())[:70]
