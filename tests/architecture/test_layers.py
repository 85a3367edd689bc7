"""Who may know whom, and who writes what: the rules that keep the house walkable."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("broker", "custody", "inference_worker", "standalone", "wharfinger")
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|GRANT|SET|LISTEN|NOTIFY)\s+[a-zA-Z(%{]")
WRITE = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM) wharf\.(\w+)")

# The modules that write a table. Submitting a job makes its tasks, releasing them
# puts them into a queue, and everything else in a task's life is one module's.
# What nobody needs any more is taken away by the cleanup, whosever it was.
WRITERS = {
    "tenants": {"custody.tenants"},
    "api_keys": {"custody.tenants"},
    "audit": {"custody.audit"},
    "audit_objects": {"custody.audit"},
    "files": {"custody.cleanup", "custody.files"},
    "idempotency_keys": {"custody.cleanup", "custody.idempotency"},
    "jobs": {"custody.cleanup", "custody.jobs"},
    "tasks": {"custody.cleanup", "custody.jobs", "custody.tasks", "custody.releases"},
    "released": {"custody.releases", "custody.tasks"},
    "results": {"custody.cleanup", "custody.tasks"},
    "models": {"custody.models"},
    "workers": {"custody.models"},
    "relays": {"custody.relays"},
    "blobs": {"custody.cleanup", "custody.integrity"},
    "suspects": {"custody.cleanup"},
    "cleanup_runs": {"custody.cleanup"},
    "verify_runs": {"custody.integrity"},
    "installation": {"broker.maintenance.migrate.migration", "custody.installation"},
    "migrations": {"broker.maintenance.migrate.migration"},
}


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    ended = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", ended.stdout)


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "custody"])
def test_no_process_speaks_sql(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in parsed(package)
        if "maintenance" not in path.parts
        for node in ast.walk(tree)
        if _is_sql(node)
    ]
    assert found == []


def test_every_table_is_written_by_its_owner_alone() -> None:
    writers: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path, _ in parsed(package):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for table in WRITE.findall(path.read_text()):
                writers.setdefault(table, set()).add(module)
    assert writers == WRITERS


def test_the_state_of_a_job_is_written_by_two_statements() -> None:
    text = (ROOT / "custody" / "jobs.py").read_text()
    updates = re.findall(r"UPDATE wharf\.jobs\b.*?(?=WHERE)", text, re.DOTALL)
    assert sum("state" in update for update in updates) == 2


def test_only_commands_read_the_environment() -> None:
    reading = {
        str(path.relative_to(ROOT))
        for package in ("broker", "custody", "inference_worker", "standalone")
        for path, tree in parsed(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    # What `up`, `demo`, Postgres and slots are handed on, what ultralytics reads at its import, and the standard
    # variables that OpenTelemetry reads by itself.
    assert reading <= {
        *("standalone/command.py", "standalone/demo.py", "standalone/postgres.py", "standalone/doctor/command.py"),
        *("inference_worker/child.py", "inference_worker/engines/ultralytics.py", "custody/spans.py"),
    }


def parsed(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def _is_sql(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("execute", "executemany", "copy")
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(STATEMENT.match(node.value))
