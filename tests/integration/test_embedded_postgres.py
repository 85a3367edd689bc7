"""The embedded Postgres, on the wheel's programs and, where it is installed, on Debian's Postgres 15."""

import asyncio
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from custody.errors import StartError
from standalone.database_cluster import account_for, programs_of_the_wheel
from standalone.postgres import Postgres
from standalone.process import Process
from standalone.server_log import LARGEST, ServerLog

DEBIAN = Path("/usr/lib/postgresql/15/bin")
IS_ROOT = os.geteuid() == 0

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
only_root = pytest.mark.skipif(not IS_ROOT, reason="only root changes user")


@pytest.fixture(params=["wheel", "debian"])
def programs(request):
    if request.param == "wheel":
        return programs_of_the_wheel()
    if not DEBIAN.exists():
        pytest.skip(f"{DEBIAN} is not installed")
    return DEBIAN


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder that was started and stopped once, to be copied by tests that begin with a cluster."""
    folder = tmp_path_factory.mktemp("made") / "data"
    with running(folder) as postgres:
        execute(postgres, "CREATE TABLE boxes (id int PRIMARY KEY)")
    return folder


@pytest.fixture
def data(made, tmp_path):
    """A folder with a cluster that has the empty table `boxes`."""
    copy_folder(made, tmp_path / "data")
    return tmp_path / "data"


async def test_second_start_finds_the_rows_of_the_first(tmp_path, programs):
    async with Postgres(tmp_path / "data", programs) as postgres:
        execute(postgres, "CREATE TABLE boxes (id int)")
        execute(postgres, "INSERT INTO boxes VALUES (1), (2)")
    async with Postgres(tmp_path / "data", programs) as postgres:
        assert query(postgres, "SELECT id FROM boxes ORDER BY id") == [(1,), (2,)]


async def test_stop_leaves_the_cluster_and_the_log_and_nothing_else(data):
    async with Postgres(data) as postgres:
        assert processes_of(data)
        assert socket_folder(postgres).stat().st_mode & 0o777 == 0o700
    assert processes_of(data) == set()
    assert sorted(path.name for path in data.iterdir()) == ["cluster", "postgres.log"]


async def test_every_commit_is_durable_unless_a_test_says_otherwise(data):
    settings = (
        "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')"
    )
    async with Postgres(data) as postgres:
        assert query(postgres, settings) == [("on", "on", "on")]
        assert query(postgres, "SHOW data_checksums") == [("on",)]
    async with Postgres(data, durable=False) as postgres:
        assert query(postgres, settings) == [("off", "off", "off")]


async def test_nothing_listens_on_the_network(data):
    async with Postgres(data) as postgres:
        assert query(postgres, "SHOW listen_addresses") == [("",)]


async def test_rows_survive_a_kill_of_the_server_and_its_address_stays(tmp_path, programs):
    async with Postgres(tmp_path / "data", programs) as postgres:
        execute(postgres, "CREATE TABLE boxes (id int)")
        execute(postgres, "INSERT INTO boxes SELECT generate_series(1, 1000)")
        address = postgres.url()
        os.kill(server_of(tmp_path / "data"), signal.SIGKILL)
        assert await postgres.wait() == -signal.SIGKILL
        await postgres.start()
        assert postgres.url() == address
        assert query(postgres, "SELECT count(*) FROM boxes") == [(1000,)]


@only_linux
async def test_start_does_not_wait_for_a_query_that_outlived_its_server(data):
    async with Postgres(data, durable=False) as postgres:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            backend = connection.info.backend_pid
            busy = threading.Thread(target=compute_for_ever, args=[connection])
            busy.start()
            await until(
                lambda: query(postgres, f"SELECT state FROM pg_stat_activity WHERE pid={backend}") == [("active",)]
            )
            os.kill(server_of(data), signal.SIGKILL)
            await postgres.wait()
            began = time.monotonic()
            await postgres.start()
            assert time.monotonic() - began < 5
            assert backend not in processes_of(data)
            busy.join()
        assert query(postgres, "SELECT 1") == [(1,)]


async def test_start_is_retried_while_a_query_that_cannot_be_found_outlives_its_server(data, monkeypatch):
    """On macOS, and where a container withholds the right to look."""
    monkeypatch.setattr("standalone.orphans._processes_in", lambda _: set())
    async with Postgres(data, durable=False) as postgres:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            backend = connection.info.backend_pid
            busy = threading.Thread(target=compute_for_ever, args=[connection])
            busy.start()
            await until(
                lambda: query(postgres, f"SELECT state FROM pg_stat_activity WHERE pid={backend}") == [("active",)]
            )
            os.kill(server_of(data), signal.SIGKILL)
            await postgres.wait()
            starting = asyncio.create_task(postgres.start())
            await until(lambda: "pre-existing shared memory block" in (data / "postgres.log").read_text())
            os.kill(backend, signal.SIGKILL)
            await starting
            busy.join()
        assert query(postgres, "SELECT 1") == [(1,)]


async def test_kill_ends_it_at_once_and_loses_nothing(data):
    async with Postgres(data) as postgres:
        execute(postgres, "INSERT INTO boxes VALUES (7)")
        postgres.kill()
        assert await asyncio.wait_for(postgres.wait(), 3) == 0
    async with Postgres(data) as postgres:
        assert query(postgres, "SELECT id FROM boxes") == [(7,)]


@only_linux
async def test_kill_of_the_parent_leaves_no_process_and_no_lock(data):
    with host(data) as (parent, _):
        assert processes_of(data)
        parent.kill()
        await until(lambda: not processes_of(data))
    async with Postgres(data) as postgres:
        assert query(postgres, "SELECT count(*) FROM boxes") == [(0,)]


@only_linux
async def test_kill_of_the_parent_in_the_middle_of_initdb_leaves_nothing_in_the_way(tmp_path):
    data = tmp_path / "data"
    with host(data, wait_until_up=False) as (parent, _):
        await until(lambda: (data / "cluster.new" / "PG_VERSION").exists())
        parent.kill()
        await until(lambda: not processes_of(data))
    assert not (data / "cluster").exists()
    async with Postgres(data, durable=False) as postgres:
        assert query(postgres, "SELECT 1") == [(1,)]
    assert not (data / "cluster.new").exists()


async def test_cancelled_start_leaves_nothing(tmp_path):
    data = tmp_path / "data"
    starting = asyncio.create_task(Postgres(data).start())
    await until(lambda: (data / "cluster.new" / "PG_VERSION").exists())
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes_of(data) == set()
    async with Postgres(data, durable=False) as postgres:
        assert query(postgres, "SELECT 1") == [(1,)]


async def test_server_left_by_a_killed_parent_is_stopped_first(data):
    orphan = start_by_hand(data)
    try:
        await until(lambda: (data / "cluster" / "postmaster.pid").exists())
        async with Postgres(data) as postgres:
            assert await asyncio.wait_for(orphan.exited(), 5) == 0
            assert query(postgres, "SELECT count(*) FROM boxes") == [(0,)]
        assert "was not properly shut down" not in (data / "postgres.log").read_text()
    finally:
        await orphan.end()


async def test_pid_file_that_names_another_program_is_no_obstacle_and_that_program_lives_on(data):
    with sleep_as_owner_of(data / "cluster") as other:
        (data / "cluster" / "postmaster.pid").write_text(f"{other.pid}\n{data / 'cluster'}\n")
        async with Postgres(data) as postgres:
            assert query(postgres, "SELECT 1") == [(1,)]
        assert other.poll() is None


async def test_two_starts_on_one_folder_name_the_holder_and_leave_it_alone(data):
    async with Postgres(data) as first:
        with pytest.raises(StartError, match=f"{data} is in use by process {os.getpid()}"):
            await Postgres(data).start()
        assert query(first, "SELECT 1") == [(1,)]
        await Postgres(data).stop()  # Never started: nothing of the first is its to remove.
        assert query(first, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("name", ["with 'some' \"spaces\"", "a,b", "x" * 150, "schiffs-größe"])
async def test_folder_may_have_any_name(made, tmp_path, name):
    data = tmp_path / name
    copy_folder(made, data)
    async with Postgres(data, durable=False) as postgres:
        assert query(postgres, "SELECT count(*) FROM boxes") == [(0,)]
        socket = socket_folder(postgres)
    assert not socket.exists()


@only_linux
async def test_socket_folder_elsewhere_goes_at_the_next_start_after_a_kill(made, tmp_path):
    data = tmp_path / ("x" * 150)
    copy_folder(made, data)
    with host(data) as (parent, url):
        parent.kill()
        await until(lambda: not processes_of(data))
    left = folder_in(url)
    assert left.is_dir()
    assert data not in left.parents
    async with Postgres(data, durable=False):
        assert not left.exists()


async def test_url_names_any_role_and_database_whatever_the_environment_says(data, monkeypatch):
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATABASE", "elsewhere")
    async with Postgres(data, durable=False) as postgres:
        execute(postgres, 'CREATE ROLE "wharf api/1" LOGIN')
        execute(postgres, 'CREATE DATABASE "ein hafen?"')
        with psycopg.connect(postgres.url("wharf api/1", "ein hafen?")) as connection:
            assert connection.execute("SELECT current_user, current_database()").fetchone() == (
                "wharf api/1",
                "ein hafen?",
            )


def test_one_event_loop_may_start_it_and_another_stop_it(data):
    postgres = Postgres(data, durable=False)
    asyncio.run(postgres.start())
    assert query(postgres, "SELECT 1") == [(1,)]
    asyncio.run(postgres.stop())
    assert processes_of(data) == set()


async def test_start_from_another_thread_is_refused(data):
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(asyncio.run, Postgres(data).start())
    async with Postgres(data, durable=False):
        pass


async def test_cluster_of_another_version_is_named_and_left_alone(data):
    (data / "cluster" / "PG_VERSION").write_text("9\n")
    with pytest.raises(StartError, match=r"was made by PostgreSQL 9, and PostgreSQL \d+ in .* cannot read it"):
        await Postgres(data).start()
    assert sorted(path.name for path in data.iterdir()) == ["cluster", "postgres.log"]


async def test_folder_that_is_no_cluster_is_named_and_left_alone(tmp_path):
    cluster = tmp_path / "data" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "precious").touch()
    if IS_ROOT:
        shutil.chown(cluster, "nobody")
    with pytest.raises(StartError, match="PG_VERSION is missing"):
        await Postgres(tmp_path / "data").start()
    assert [path.name for path in cluster.iterdir()] == ["precious"]


async def test_damaged_cluster_is_called_damaged(data):
    (data / "cluster" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(StartError, match="damaged"):
        await Postgres(data).start()
    assert processes_of(data) == set()


async def test_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=f"{tmp_path}/file.* cannot be used for the database"):
        await Postgres(tmp_path / "file" / "data").start()


async def test_missing_programs_are_named(data, tmp_path):
    with pytest.raises(StartError, match=f"{tmp_path}/nothing/postgres"):
        await Postgres(data, tmp_path / "nothing").start()


async def test_full_disk_is_called_full(small_disk):
    with pytest.raises(StartError, match="disk is full"):
        await Postgres(small_disk).start()
    assert processes_of(small_disk) == set()


@only_root
async def test_cluster_keeps_its_owner(data):
    nobody = pwd.getpwnam("nobody").pw_uid
    give(data / "cluster", nobody)
    async with Postgres(data, durable=False):
        assert psutil.Process(server_of(data)).uids().effective == nobody


@only_root
async def test_new_cluster_goes_to_nobody_where_there_is_no_user_postgres(tmp_path, monkeypatch):
    users = [user for user in pwd.getpwall() if "postgres" not in user.pw_name]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    async with Postgres(tmp_path / "data", durable=False) as postgres:
        assert query(postgres, "SELECT 1") == [(1,)]
        assert psutil.Process(server_of(tmp_path / "data")).username() == "nobody"


@only_root
async def test_cluster_of_root_is_refused_with_the_command_that_helps(data):
    give(data / "cluster", 0)
    with pytest.raises(StartError, match="chown -R "):
        await Postgres(data).start()


@only_root
async def test_root_can_keep_programs_and_data_where_only_root_may_enter(made, tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    programs = copy_of_the_wheel(private)
    data = private / "data"
    copy_folder(made, data)
    with host(data, programs) as (parent, _):
        assert capabilities(server_of(data)) == {CAP_DAC_READ_SEARCH}
        parent.kill()
        await until(lambda: not processes_of(data))


@only_root
def test_server_has_no_capability_where_it_needs_none(made, open_folder):
    copy_folder(made, open_folder / "data")
    with host(open_folder / "data", copy_of_the_wheel(open_folder)):
        assert capabilities(server_of(open_folder / "data")) == set()


@only_root
def test_root_without_the_capability_is_told_which_folder_blocks(made, open_folder):
    programs = copy_of_the_wheel(open_folder)
    blocking = open_folder / "private"
    blocking.mkdir(mode=0o700)
    copy_folder(made, blocking / "data")
    copy_folder(made, open_folder / "data")
    with host(open_folder / "data", programs, preexec_fn=lose_search):
        assert capabilities(server_of(open_folder / "data")) == set()
    said = f"may not enter {blocking}; run `chmod o\\+x '{blocking}'`"
    with pytest.raises(AssertionError, match=said), host(blocking / "data", programs, preexec_fn=lose_search):
        pass


def test_log_is_cut_once_it_is_long_and_its_lines_are_kept_aside(tmp_path):
    log = ServerLog(tmp_path / "log")
    with log.open() as file:
        file.write(b"short\n")
        file.flush()
        log.shorten()
        assert log.since(0) == "short\n"
        file.write(b"x" * LARGEST)
        file.flush()
        log.shorten()
        file.write(b"after\n")
    assert log.since(0) == "after\n"
    assert (tmp_path / "log.1").stat().st_size == LARGEST + len(b"short\n")


CAP_DAC_READ_SEARCH = 2

HOST = """
import asyncio, sys
from pathlib import Path
from standalone.postgres import Postgres

async def main():
    async with Postgres(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None) as postgres:
        print(postgres.url(), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@contextmanager
def running(data):
    postgres = Postgres(data, durable=False)
    asyncio.run(postgres.start())
    try:
        yield postgres
    finally:
        asyncio.run(postgres.stop())


@contextmanager
def host(data, programs=None, *, wait_until_up=True, preexec_fn=None):
    """Another process that runs Postgres on `data` until the block ends: it, and the server's URL."""
    parent = subprocess.Popen(
        [sys.executable, "-c", HOST, data, programs or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )
    with parent:
        try:
            url = parent.stdout.readline().strip() if wait_until_up else ""
            assert url or not wait_until_up, parent.communicate()[1]
            yield parent, url
        finally:
            if parent.poll() is None:
                parent.communicate()


@pytest.fixture
def open_folder():
    """A folder that every user may enter; tests' own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A disk on which initdb has not room enough."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextmanager
def sleep_as_owner_of(folder):
    other = subprocess.Popen(["sleep", "60"], user=folder.stat().st_uid if IS_ROOT else None)
    try:
        yield other
    finally:
        other.kill()
        other.wait()


def give(folder, uid):
    subprocess.run(["chown", "-R", str(uid), folder], check=True)


def socket_folder(postgres):
    return folder_in(postgres.url())


def folder_in(url):
    return Path(psycopg.conninfo.conninfo_to_dict(url)["host"])


def copy_folder(folder, target):
    subprocess.run(["cp", "-a", folder, target], check=True)


def copy_of_the_wheel(folder):
    package = programs_of_the_wheel().parents[1]
    shutil.copytree(package, folder / package.name)
    if (libraries := package.with_suffix(".libs")).exists():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / "pginstall" / "bin"


def lose_search():
    ctypes.CDLL(None).prctl(24, CAP_DAC_READ_SEARCH, 0, 0, 0)  # PR_CAPBSET_DROP


def capabilities(pid):
    """The numbers of the capabilities in effect or within reach."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    sets = int(lines["CapEff"], 16) | int(lines["CapPrm"], 16) | int(lines["CapAmb"], 16)
    return {bit for bit in range(64) if sets >> bit & 1}


def query(postgres, statement):
    with psycopg.connect(postgres.url()) as connection:
        return connection.execute(statement).fetchall()


def execute(postgres, statement):
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(statement)


def compute_for_ever(connection):
    with suppress(psycopg.OperationalError):
        connection.execute("SELECT count(*) FROM generate_series(1, 100000000000)")


def server_of(data):
    return int((data / "cluster" / "postmaster.pid").read_text().split("\n", 1)[0])


def processes_of(data):
    """Processes that work in `data`, or name it on their command line, other than the `host`s of these tests."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            command = process.cmdline()
            if HOST not in command and (process.cwd().startswith(f"{data}/") or str(data) in " ".join(command)):
                found.add(process.pid)
    return found


async def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)


def start_by_hand(data):
    """A server on `data` that no `Postgres` knows of."""
    cluster = data / "cluster"
    server = programs_of_the_wheel() / "postgres"
    return Process.spawn(
        [str(server), "-D", str(cluster), "-c", "listen_addresses=", "-c", "unix_socket_directories=."],
        death_signal=signal.SIGINT,
        output=subprocess.DEVNULL,
        account=account_for(cluster),
        reach=(server, cluster),
    )
