"""How the command line and the SDK find the service and its key, and how `wharf up` lets itself be found.

`wharf up` keeps two files in its data folder: `api-key`, and `server` where its URL is not the default one. A data
folder in another place than the default is found through a pointer file in the user's state folder.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from wharfinger.errors import ConfigurationError

DEFAULT_SERVER = "http://127.0.0.1:8000"
KEY_FILE = "api-key"
SERVER_FILE = "server"
ROOTS_DATA_FOLDER = Path("/var/lib/wharfinger")

_LOOPBACK = {"127.0.0.1", "localhost", "::1", "0.0.0.0", "::"}  # noqa: S104 - names to compare with, nothing is bound


@dataclass(frozen=True)
class Connection:
    server: str
    api_key: str | None = field(repr=False)

    @property
    def local(self) -> bool:
        """Whether the server is on this machine, where no proxy belongs in between."""
        return urlsplit(self.server).hostname in _LOOPBACK


def find(server: str | None = None, api_key: str | None = None, environ: Mapping[str, str] = os.environ) -> Connection:
    """The service to talk to. What the caller names comes first, then `WHARF_SERVER`, `WHARF_API_KEY` and
    `WHARF_API_KEY_FILE`, then what `wharf up` left in its data folder. The key stays None where there is none.

    Raises ConfigurationError for a URL or a key that cannot be used.
    """
    folder = current_data_folder(environ)
    url = _checked_url(server or environ.get("WHARF_SERVER") or _local_server(folder))
    key = (
        api_key
        or environ.get("WHARF_API_KEY")
        or _named_key(environ)
        # The local key is for the local service: another server must not get to see it.
        or (_read(folder / KEY_FILE) if _same_service(url, _local_server(folder)) else None)
    )
    return Connection(url, _checked_key(key))


def default_data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where `wharf up` keeps its data unless it is told otherwise."""
    if sys.platform != "win32" and os.geteuid() == 0:
        return ROOTS_DATA_FOLDER
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "wharfinger"
    return Path(environ.get("XDG_DATA_HOME") or _home() / ".local" / "share") / "wharfinger"


def remember(data: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Make `data` the folder in which this user's command line looks for the running service.

    A user without a folder to write this to has to name the service by WHARF_DATA; that stops no service.
    """
    pointer = _pointer(environ)
    with suppress(OSError):
        pointer.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = pointer.with_name(f"{pointer.name}.{os.getpid()}")
        draft.write_text(f"{data.absolute()}\n", encoding="utf-8")
        draft.replace(pointer)


def forget(data: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Take back `remember(data)`; a service that was remembered since then stays."""
    pointer = _pointer(environ)
    with suppress(OSError):
        if pointer.read_text(encoding="utf-8").strip() == str(data.absolute()):
            pointer.unlink()


def current_data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the `wharf up` that was started last, or the usual one."""
    named = environ.get("WHARF_DATA") or _read(_pointer(environ))
    return Path(named) if named else default_data_folder(environ)


def _pointer(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_STATE_HOME") or _home() / ".local" / "state") / "wharfinger" / "current"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # A container's user without a name.
        return Path("/")


def _local_server(folder: Path) -> str:
    return _read(folder / SERVER_FILE) or DEFAULT_SERVER


def _named_key(environ: Mapping[str, str]) -> str | None:
    path = environ.get("WHARF_API_KEY_FILE")
    if not path:
        return None
    key = _read(Path(path))
    if not key:
        raise ConfigurationError(f"WHARF_API_KEY_FILE names {path}, which holds no key: write the key into that file")
    return key


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read {path} ({error}): set WHARF_SERVER and WHARF_API_KEY, or be the user who runs `wharf up`"
        ) from error


def _checked_url(server: str) -> str:
    url = _split(server)
    if url is None or url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigurationError(f"{server!r} is not a server's URL: write it like {DEFAULT_SERVER}")
    return server.rstrip("/")


def _checked_key(key: str | None) -> str | None:
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigurationError("the API key holds characters that no key has: copy it again, on one line")
    return key


def _same_service(url: str, other: str) -> bool:
    return _address(url) == _address(other)


def _address(server: str) -> tuple[str, str | None, int | None]:
    url = _split(server)
    if url is None:
        return ("", None, None)
    host = "loopback" if url.hostname in _LOOPBACK else url.hostname
    return (url.scheme, host, url.port or {"http": 80, "https": 443}.get(url.scheme))


def _split(server: str) -> SplitResult | None:
    try:
        url = urlsplit(server)
        _ = url.port
    except ValueError:
        return None
    return url
