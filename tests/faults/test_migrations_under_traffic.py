"""`wharf migrate` while the processes of the release before are at work, and those of this one beside them."""

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest

import starter_model
from standalone.postgres import Postgres
from tests.conftest import ROOT
from tests.e2e.conftest import new_database
from tests.e2e.ledger import Ledger, clients
from tests.e2e.service import Installation, Part, Service, clean_environment, start_worker, until

TAG = "v0.1.0"
COMMIT = "39d8851c963869a9f8bd3162353e275f28787d92"
"""What the tag names, for a repository that came without its tags."""

LONGEST_REQUEST_SECONDS = 30
PAUSE_SECONDS = 0.3
"""Between a client's requests: nothing waits long for the worker, and the test is not about that."""

PAGE = starter_model.PAGE.read_bytes()
WORKER = {"WHARF_MODEL": str(starter_model.MODEL)}


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of v0.1.0."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("v0.1.0 is taken from git, and this is no repository")
    for name in (TAG, COMMIT):
        archive = subprocess.run([git, "-C", str(ROOT), "archive", f"{name}^{{commit}}"], capture_output=True)
        if archive.returncode == 0:
            tree = tmp_path_factory.mktemp(TAG)
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
                files.extractall(tree, filter="data")
            describe(tree)
            return tree
    pytest.skip(f"this repository has neither the tag {TAG} nor its commit {COMMIT:.8}: fetch the whole history")


def describe(tree: Path) -> None:
    """What an installer would have written beside the code: which module each command is in."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    folder = tree / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
    entry_points = ConfigParser()
    entry_points.optionxform = str  # type: ignore[assignment, method-assign]
    entry_points.read_dict(project["entry-points"])
    with (folder / "entry_points.txt").open("w") as file:
        entry_points.write(file)


@pytest.fixture
def old(old_tree: Path, postgres: Postgres) -> Iterator[Installation]:
    """A database and a volume of their own, for processes of v0.1.0."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="wharf-migrate-", dir=memory if memory.is_dir() else None))
    with new_database(postgres) as database, ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        # Without the second, the folder that the tests are started in would come before the first.
        environment = {"PYTHONPATH": str(old_tree), "PYTHONSAFEPATH": "1"}
        installation = Installation(folder, lambda role: postgres.url(role, database), environment)
        stack.callback(installation.stop)
        yield installation


@pytest.fixture
def new(old: Installation, tmp_path: Path) -> Iterator[Installation]:
    """The same database and volume, for processes of this code."""
    installation = Installation(tmp_path, old._database)
    installation.volume = old.volume
    try:
        yield installation
    finally:
        installation.stop()


def test_processes_of_v0_1_0_work_on_while_the_schema_moves_and_those_of_this_release_take_over(
    old_tree: Path, old: Installation, new: Installation
) -> None:
    assert package_folder(old) == old_tree / "broker"
    before = old.migrate()
    old_broker = old.broker(WHARF_INSTANCE="old-broker")
    old_worker = old.worker("old-worker", **WORKER)
    start_worker(old_worker)
    assert "/v1/pools" not in routes(before)
    [(oldest,)] = before.ask("SELECT max(version) FROM wharf.migrations")

    with ExitStack() as load:
        first = load.enter_context(clients(before, PAGE, PAUSE_SECONDS))
        until(lambda: len(first.jobs) > 10, "the load flows")
        migrate = new._part("migrate", ("migrate",), "postgres", {})
        migrate.start()
        assert migrate.ended(60) == 0, migrate.output()
        assert before.ask("SELECT max(version) > %s FROM wharf.migrations", oldest) == [(True,)]
        flows_for(3, first)

        new.broker(WHARF_INSTANCE="new-broker", WHARF_DEFAULT_MODEL="digits")
        new_worker = new.worker("new-worker", **WORKER)
        start_worker(new_worker)
        after = Service(f"http://127.0.0.1:{new.port}", before.key, before.database, before.volume)
        assert "/v1/pools" in routes(after)
        second = load.enter_context(clients(after, PAGE, PAUSE_SECONDS))
        flows_for(3, first, second)
        load.pop_all().close()
    stop(old_broker, old_worker)

    with clients(after, PAGE, PAUSE_SECONDS) as third:
        flows_for(1, third)
    # A broker of v0.1.0 loses its sessions with a migration, and says so to those whose request was on one of them.
    assert first.refusals <= {(503, "database_unavailable")}, troubles(old_broker)
    assert second.refusals | third.refusals == set()
    for ledger in (first, second, third):
        assert ledger.broken == 0
        assert ledger.longest < LONGEST_REQUEST_SECONDS
        ledger.check(after)


def package_folder(installation: Installation) -> Path:
    """Where the processes of this installation find their code."""
    told = subprocess.run(
        [sys.executable, "-c", "import broker; print(broker.__path__[0])"],
        env=clean_environment(installation.environment),
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(told.stdout.strip())


def routes(service: Service) -> set[str]:
    return set(httpx.get(f"{service.url}/openapi.json", trust_env=False).json()["paths"])


def flows_for(seconds: float, *ledgers: Ledger) -> None:
    """Each of them is given promises, in every one of these seconds."""
    for _ in range(round(seconds)):
        targets = [(ledger, ledger.promises + 1) for ledger in ledgers]
        time.sleep(1)
        until(partial(_reached, targets), "every client is answered")


def _reached(targets: list[tuple[Ledger, int]]) -> bool:
    return all(ledger.promises >= target for ledger, target in targets)


def stop(*parts: Part) -> None:
    """As an orchestrator does: each ends by itself, well."""
    for part in parts:
        assert part.process is not None
        part.process.terminate()
        assert part.ended() == 0, part.output()


def troubles(part: Part) -> str:
    """What it had to say of anything but its daily work."""
    lines = [line[-500:] for line in part.output().splitlines() if '"level": "info"' not in line]
    return "\n".join(lines)[-5000:]
