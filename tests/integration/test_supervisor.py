"""The supervisor with real processes: restarts, the order of stopping, Ctrl-C, and what kill -9 leaves."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress

import psutil
import psycopg
import pytest

from custody.errors import StartError
from standalone.postgres import Postgres
from standalone.process import LAUNCHER
from standalone.program import EndedEarlyError, Program
from standalone.supervisor import Supervisor, pause_seconds

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")

# Programs: each appends what happens to it to the file of its first argument.
FOLLOWS = """
import os, signal, sys, time
def note(text):
    with open(sys.argv[1], "a") as file:
        file.write(f"{text} {os.getpid()}\\n")
def stop(number, frame):
    note(signal.Signals(number).name)
    time.sleep(0.1)
    note("down")
    sys.exit(0)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
note("up")
while True:
    time.sleep(60)
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "a") as file:
    file.write(f"up {os.getpid()}\\nchild {child.pid}\\n")
time.sleep(600)
"""


@pytest.fixture
def said():
    return []


async def test_output_is_handed_on_line_by_line_with_the_name_in_front_and_json_as_it_is(said):
    text = r"plain\n{\"event\": \"up\"}\n\xff broken\r\n{not closed\nno end"
    program = Program("worker", ["printf", text.replace('\\"', '"')], write=said.append)
    with pytest.raises(EndedEarlyError, match="worker ended with status 0 before it was ready"):
        await program.start()
    assert said == [
        "worker   | plain",
        '{"event": "up"}',
        "worker   | \ufffd broken",
        "worker   | {not closed",
        "worker   | no end",
    ]


async def test_output_of_any_length_never_stops_the_program(said):
    program = Program("worker", python("print('x' * 3_000_000); print('end')"), write=said.append)
    with pytest.raises(EndedEarlyError):
        await program.start()
    assert sum(line.count("x") for line in said) == 3_000_000
    assert said[-1] == "worker   | end"


async def test_program_goes_on_when_nobody_takes_its_output(notes, caplog):
    def broken_pipe(_):
        raise BrokenPipeError

    chatty = f"import atexit\natexit.register(print, 'bye')\nprint('hello', flush=True)\n{FOLLOWS}"
    program = Program("worker", python(chatty, notes.path), write=broken_pipe)
    await program.start()
    assert notes.events() == ["up"]
    await program.stop()
    assert notes.events() == ["up", "SIGTERM", "down"]
    assert caplog.messages == []


async def test_start_returns_once_the_program_says_that_it_is_ready(notes):
    async def ready():
        return "up" in notes.events()

    program = Program("broker", python(FOLLOWS, notes.path), write=print, ready=ready)
    await program.start()
    assert notes.events() == ["up"]
    await program.stop()


async def test_program_that_is_never_ready_is_stopped_and_named(notes):
    async def never():
        return False

    program = Program("broker", python(FOLLOWS, notes.path), write=print, ready=never, ready_seconds=1)
    with pytest.raises(StartError, match="broker was not ready within 1 s"):
        await program.start()
    assert notes.survivors() == set()


async def test_program_with_patience_spent_is_killed_with_all_that_it_started(notes):
    program = Program("worker", python(STUBBORN, notes.path), write=print, grace_seconds=0.2)
    await program.start()
    await program.stop()
    assert notes.survivors() == set()
    assert len(notes.pids()) == 2


async def test_end_of_a_program_is_seen_where_the_system_does_not_tell_of_it(notes, monkeypatch):
    """On macOS, and where a sandbox forbids it."""
    monkeypatch.setattr("standalone.process._descriptor", lambda _: None)
    program = Program("worker", python(STUBBORN, notes.path), write=print, grace_seconds=0.2)
    await program.start()
    os.kill(notes.pids("up")[0], signal.SIGKILL)
    assert await asyncio.wait_for(program.wait(), 5) == -signal.SIGKILL
    assert notes.survivors() == set()


@only_linux
def test_program_whose_parent_died_before_it_could_be_tied_to_it_does_not_run(notes):
    launcher = [
        sys.executable,
        "-I",
        "-S",
        str(LAUNCHER),
        "--parent",
        "1",
        "--death-signal",
        str(int(signal.SIGTERM)),
        "--",
    ]
    assert subprocess.run([*launcher, *python(FOLLOWS, notes.path)]).returncode == -signal.SIGTERM
    assert notes.events() == []


async def test_program_that_was_killed_leaves_nothing_it_started_and_is_started_again(notes, said):
    supervisor = Supervisor(said.append, pause=lambda _: 0)
    program = Program("worker", python(STUBBORN, notes.path), write=said.append, grace_seconds=0.1)

    async def set_up():
        await supervisor.start(program)
        os.kill(notes.pids("up")[0], signal.SIGKILL)
        await until(lambda: len(notes.pids("up")) == 2)
        assert not lives(notes.pids("child")[0])
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(10)

    await supervisor.run(set_up)
    assert "wharf    | worker was ended by signal 9 (Killed). Next start in 0.0 s." in said
    assert notes.survivors() == set()


async def test_program_that_was_ready_once_is_started_again_however_often_it_fails(notes, said):
    """More often than a first start is tried."""
    supervisor = Supervisor(said.append, pause=lambda _: 0)
    healthy = notes.path.with_name("healthy")
    healthy.touch()
    code = f"import os, sys\nif not os.path.exists({str(healthy)!r}): sys.exit(3)\n{FOLLOWS}"

    async def set_up():
        await supervisor.start(Program("worker", python(code, notes.path), write=said.append))
        healthy.unlink()
        os.kill(notes.pids("up")[0], signal.SIGKILL)
        await until(lambda: sum("ended with status 3" in line for line in said) >= 5)
        healthy.touch()
        await until(lambda: "wharf    | worker is up again." in said)
        os.kill(os.getpid(), signal.SIGTERM)

    await supervisor.run(set_up)
    assert notes.events() == ["up", "up", "SIGTERM", "down"]


async def test_program_that_never_comes_up_is_tried_three_times_and_the_others_are_stopped(notes, said):
    supervisor = Supervisor(said.append, pause=lambda _: 0)

    async def set_up():
        await supervisor.start(Program("broker", python(FOLLOWS, notes.path), write=said.append))
        await supervisor.start(Program("worker", python("print('no model'); exit(2)"), write=said.append))

    with pytest.raises(StartError, match="worker ended with status 2 before it was ready"):
        await supervisor.run(set_up)
    assert said.count("worker   | no model") == 3
    assert notes.events() == ["up", "SIGTERM", "down"]


async def test_programs_may_be_started_side_by_side_and_one_failure_stops_both(notes, said):
    supervisor = Supervisor(said.append, pause=lambda _: 0)
    broker = Program("broker", python(FOLLOWS, notes.path), write=said.append)
    worker = Program("worker", python("exit(2)"), write=said.append)

    async def set_up():
        await asyncio.gather(supervisor.start(broker), supervisor.start(worker))

    with pytest.raises(StartError):
        await supervisor.run(set_up)
    await asyncio.sleep(0.3)  # Time in which a start that went on would make a process.
    assert notes.survivors() == set()


async def test_database_outlives_the_broker_which_outlives_the_worker(tmp_path, said):
    postgres = Postgres(tmp_path / "data", durable=False)
    supervisor = Supervisor(said.append)
    code = f"""
import signal, sys, time, psycopg
def stop(number, frame):
    psycopg.connect({postgres.url()!r}, autocommit=True).execute("INSERT INTO stops (name) VALUES (%s)", [sys.argv[1]])
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True:
    time.sleep(60)
"""

    async def set_up():
        await supervisor.start(postgres)
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE stops (id serial, name text)")
        for name in ("broker", "worker"):
            await supervisor.start(
                Program(name, python(code, name), write=said.append, ready=printed(said, f"{name:<8} | up"))
            )
        os.kill(os.getpid(), signal.SIGINT)

    await supervisor.run(set_up)
    async with postgres:
        with psycopg.connect(postgres.url()) as connection:
            assert connection.execute("SELECT name FROM stops ORDER BY id").fetchall() == [("worker",), ("broker",)]


async def test_dead_database_is_started_again_at_the_same_address(tmp_path, said):
    postgres = Postgres(tmp_path / "data", durable=False)
    supervisor = Supervisor(said.append, pause=lambda _: 0)

    async def set_up():
        await supervisor.start(postgres)
        server = int((tmp_path / "data" / "cluster" / "postmaster.pid").read_text().split("\n")[0])
        os.kill(server, signal.SIGKILL)
        await until(lambda: "wharf    | postgres is up again." in said)
        with psycopg.connect(postgres.url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        os.kill(os.getpid(), signal.SIGINT)

    await supervisor.run(set_up)


async def test_one_service_that_does_not_stop_cleanly_does_not_spare_the_others(notes, said):
    class Unstoppable(Program):
        async def stop(self):
            await super().stop()
            raise OSError("cannot clean up")

    supervisor = Supervisor(said.append)

    async def set_up():
        await supervisor.start(Program("broker", python(FOLLOWS, notes.path), write=said.append))
        await supervisor.start(Unstoppable("worker", ["sleep", "60"], write=said.append))
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(OSError, match="cannot clean up"):
        await supervisor.run(set_up)
    assert notes.events() == ["up", "SIGTERM", "down"]


async def test_signal_in_the_middle_of_the_set_up_ends_it(notes, said):
    supervisor = Supervisor(said.append)

    async def set_up():
        await supervisor.start(Program("broker", python(FOLLOWS, notes.path), write=said.append))
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    await asyncio.wait_for(supervisor.run(set_up), 10)
    assert notes.events() == ["up", "SIGTERM", "down"]


def test_pause_grows_from_one_second_to_thirty_and_varies():
    assert pause_seconds(0) == 1
    for failures in (1, 3, 5, 100_000):
        pauses = [pause_seconds(failures) for _ in range(50)]
        assert len(set(pauses)) > 1
        assert min(pauses) >= min(15, 2 ** (failures - 1))
        assert max(pauses) <= min(30, 2**failures)


def test_control_c_in_a_terminal_reaches_the_supervisor_alone(notes, tmp_path):
    with terminal(FOLLOWS, notes, tmp_path) as (supervisor, press):
        press("\x03")
        assert supervisor.wait(10) == 0
    assert notes.events() == ["up", "SIGTERM", "down"]
    assert left_in(tmp_path) == []


def test_second_control_c_kills_at_once(notes, tmp_path):
    with terminal(STUBBORN, notes, tmp_path) as (supervisor, press):
        press("\x03")
        time.sleep(0.5)
        assert supervisor.poll() is None
        press("\x03")
        assert supervisor.wait(5) == 0
    assert notes.survivors() == set()
    assert left_in(tmp_path) == []


def test_closed_terminal_stops_everything(notes, tmp_path):
    with terminal(FOLLOWS, notes, tmp_path) as (supervisor, press):
        press(None)
        assert supervisor.wait(10) == 0
    assert notes.events() == ["up", "SIGTERM", "down"]
    assert left_in(tmp_path) == []


async def test_supervisor_under_nohup_outlives_its_terminal(notes, said):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervisor = Supervisor(said.append)

        async def set_up():
            await supervisor.start(Program("broker", python(FOLLOWS, notes.path), write=said.append))
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.2)
            assert notes.events() == ["up"]
            os.kill(os.getpid(), signal.SIGTERM)

        await supervisor.run(set_up)
    finally:
        signal.signal(signal.SIGHUP, before)


@only_linux
async def test_kill_of_the_supervisor_ends_everything(notes, tmp_path):
    with terminal(FOLLOWS, notes, tmp_path) as (supervisor, _):
        assert left_in(tmp_path)
        supervisor.kill()
        supervisor.wait()
        await until(lambda: not left_in(tmp_path))
    assert notes.events() == ["up", "SIGTERM", "down"]


HOST = """
import asyncio, sys
from pathlib import Path
from standalone.postgres import Postgres
from standalone.program import Program
from standalone.supervisor import Supervisor

code, notes, data = sys.argv[1:]
supervisor = Supervisor(print)

async def set_up():
    await supervisor.start(Postgres(Path(data), durable=False))
    await supervisor.start(Program("worker", [sys.executable, "-c", code, notes], write=print))
    print("all up", flush=True)

asyncio.run(supervisor.run(set_up))
"""


class Notes:
    """What the programs of these tests wrote about themselves: lines of an event and a process."""

    def __init__(self, path):
        self.path = path

    def events(self):
        return [event for event, _ in self._lines()]

    def pids(self, event=None):
        return [int(pid) for what, pid in self._lines() if event in (None, what)]

    def survivors(self):
        """Those that live on; the kernel takes a moment to carry out a kill."""
        deadline = time.monotonic() + 1
        while (alive := {pid for pid in self.pids() if lives(pid)}) and time.monotonic() < deadline:
            time.sleep(0.01)
        return alive

    def _lines(self):
        return [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []


@pytest.fixture
def notes(tmp_path):
    notes = Notes(tmp_path / "notes")
    yield notes
    for pid in notes.survivors():  # Of a test that failed.
        os.kill(pid, signal.SIGKILL)


@contextmanager
def terminal(code, notes, tmp_path):
    """A supervisor of Postgres and `code` as the foreground of a terminal, and a function to press keys in it; None
    closes it."""
    ours, theirs = pty.openpty()
    supervisor = subprocess.Popen(
        [sys.executable, "-c", HOST, code, str(notes.path), str(tmp_path / "data")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        # Else Python ends with status 120 where the terminal is gone when it empties its buffer.
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    os.close(theirs)

    def press(keys):
        if keys is None:
            os.close(ours)
        else:
            os.write(ours, keys.encode())

    try:
        shown = b""
        while b"all up\r\n" not in shown:
            shown += os.read(ours, 1024)
        yield supervisor, press
    finally:
        supervisor.kill()
        supervisor.wait()
        with suppress(OSError):
            os.close(ours)


def lives(pid):
    """A killed orphan is dead, however late its new parent takes notice."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def printed(said, line):
    async def ready():
        return line in said

    return ready


def left_in(folder):
    """Processes that work below `folder` or name it, other than these tests; and sockets and locks in it."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and (
                process.cwd().startswith(str(folder)) or str(folder) in " ".join(process.cmdline())
            ):
                processes.append(process.pid)
    return processes


async def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)
