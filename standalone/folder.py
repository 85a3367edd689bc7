"""The folder of an embedded Postgres: held by one process at a time, with a socket that only its owner reaches.

    cluster/        what initdb made (PGDATA), mode 0700
    cluster.new/    initdb at work; the next start removes what a crash left of it
    socket/         while it runs, and where its path is short enough for a socket; mode 0700
    running.json    while it runs: the pid of the process that runs it, and where the socket is
    postgres.log    what the server said; postgres.log.1 is older

The lock is on the folder itself, so that nothing of it remains, and the kernel lets go of it with the process.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from custody.errors import StartError
from standalone.process import Account

LONGEST_SOCKET = 103
"""Bytes in a socket's path that every system takes: 107 on Linux, 103 on macOS."""

PORT = 5432
"""Only a part of the socket's file name: nothing listens on the network."""


class Folder:
    """`path`: the folder; `lock` makes it where it is missing, and comes before everything else."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.cluster = self.path / "cluster"
        self.socket = _place_of_socket(self.path)
        self._running = self.path / "running.json"
        self._lock: int | None = None

    def lock(self) -> None:
        """Holds the folder until `unlock`, or until this process dies, however it dies. Holding it twice is holding it.
        Raises `StartError` where another process holds it, or where it cannot be used."""
        if self._lock is not None:
            return
        with explained(self.path):
            # 0711: whoever can read a folder can lock it.
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(descriptor, self.path, self._holder())
            _remove_leftover(self._running)
            with explained(self.path):
                self._running.write_text(json.dumps({"pid": os.getpid(), "socket": str(self.socket)}))
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def make_socket_folder(self, account: Account | None) -> None:
        """A new, empty one that only `account` (the user who is running, where None) and root can enter."""
        with explained(self.socket):
            _remove_socket_folder(self.socket)
            make_private(self.socket, account)

    def unlock(self) -> None:
        """Removes the socket's folder and lets others in; nothing happens where the folder is not held."""
        if self._lock is None:
            return
        try:
            with explained(self.socket):
                _remove_socket_folder(self.socket)
                self._running.unlink(missing_ok=True)
        finally:
            os.close(self._lock)
            self._lock = None

    def _holder(self) -> str:
        try:
            return f"process {json.loads(self._running.read_text())['pid']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def socket_of_running(path: Path) -> Path | None:
    """The folder of the socket of the server that runs in `path`; None where none runs."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        socket = Path(json.loads((path / "running.json").read_text())["socket"])
        return socket if (socket / f".s.PGSQL.{PORT}").exists() else None
    return None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an `OSError` into a `StartError` that says what it is about and what to do."""
    try:
        yield
    except OSError as error:
        raise StartError(
            f"{error.filename or path} cannot be used for the database: {error.strerror}. "
            "Free some space or set its permissions right, or choose another folder (--data)."
        ) from error


def make_private(folder: Path, account: Account | None) -> None:
    """Makes `folder`, which must not be there yet, with mode 0700, and gives it to `account`."""
    folder.mkdir(mode=0o700)
    if account:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def _place_of_socket(folder: Path) -> Path:
    below = folder / "socket"
    length = len(os.fsencode(below / f".s.PGSQL.{PORT}"))
    # In a connection string a comma makes two hosts of one.
    if length <= LONGEST_SOCKET and "," not in str(below):
        return below
    return Path(tempfile.gettempdir()) / f"wharf-{os.urandom(8).hex()}"


def _lock(descriptor: int, folder: Path, holder: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(f"{folder} is in use by {holder}. Stop it first, or choose another folder (--data).") from None
    except OSError as error:
        raise StartError(
            f"{folder} cannot be locked ({error.strerror}): the database needs a local disk. "
            "Choose a folder on one (--data), or set WHARF_DATABASE_URL to a Postgres of yours."
        ) from error


def _remove_leftover(running: Path) -> None:
    """The socket's folder of a run that was killed with -9, where it lies in the folder for temporary files."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        left = Path(json.loads(running.read_text())["socket"])
        if left.name.startswith("wharf-") and left.parent == Path(tempfile.gettempdir()):
            _remove_socket_folder(left)


def _remove_socket_folder(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for file in folder.glob(".s.PGSQL.*"):
        file.unlink()
    folder.rmdir()
