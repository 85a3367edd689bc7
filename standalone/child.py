"""The launcher of child processes: it ties a program's life to its parent's, drops root where asked, then becomes the
program, so that the process the parent sees is the program itself.

    python -I -S child.py --parent PID --death-signal NUMBER [--user UID:GID:NAME [--reach PATH]...] -- PROGRAM [ARG]...

`--death-signal`: what Linux sends the program when the *thread* that started it ends, kill -9 included. macOS has no
such thing: there a program outlives a parent that was killed with -9, and the next start finds and stops it.

`--user`: the user to become; NAME may be empty. All capabilities go, save one, and that one only where it is needed:
where the user cannot walk to a `--reach` path (a checkout below /root, data below `mktemp -d`, both of mode 0700),
CAP_DAC_READ_SEARCH is kept, by which the program can read, not write, what root can. Containers often withhold that
capability; then the launcher names the folder that blocks the way and ends with status 126.

It runs by path, before every start, so it imports little and nothing of this project.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

CANNOT_START = 126

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 4
CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
CAPABILITY_VERSION_3 = 0x20080522


def main(arguments: list[str]) -> None:
    options, program = _parse(arguments)
    # A parent started with `nohup` or `&` ignores some of these, and what is ignored stays so across exec.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if user := options.get("--user"):
        _become(user[0], options.get("--reach", []))
    # After the change of user, which clears it.
    _die_with(int(options["--parent"][0]), int(options["--death-signal"][0]))
    try:
        os.execvp(program[0], program)  # noqa: S606 - becoming the program is the purpose
    except OSError as error:
        _refuse(f"{program[0]} cannot be run: {error.strerror}")


def _parse(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    end = arguments.index("--")
    options: dict[str, list[str]] = {}
    for name, value in zip(arguments[:end:2], arguments[1:end:2], strict=True):
        options.setdefault(name, []).append(value)
    return options, arguments[end + 1 :]


def _become(user: str, reach: list[str]) -> None:
    uid, gid, name = user.split(":", 2)
    if sys.platform == "linux":
        _prctl(PR_SET_KEEPCAPS, 1)
    try:
        if name:
            os.initgroups(name, int(gid))
        else:
            os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    except PermissionError:
        _refuse(f"root may not become user {name or uid} here; start as that user, or grant CAP_SETUID and CAP_SETGID")
    blocked = _first_blocked(reach)
    if blocked and not _keep_search():
        _refuse(
            f"user {name or uid} may not enter {blocked}; run `chmod o+x '{blocked}'`, "
            "or choose a data folder (--data) and an installation that lie elsewhere"
        )


def _first_blocked(paths: list[str]) -> Path | None:
    """The first folder on the way to one of `paths`, from the root down, that this user may not walk through."""
    ways = (reversed(Path(path).absolute().parents) for path in paths)
    return next((folder for way in ways for folder in way if not os.access(folder, os.X_OK)), None)


def _keep_search() -> bool:
    """Keeps CAP_DAC_READ_SEARCH, and only that, across the coming exec. False where the process may not."""
    needed = 1 << CAP_DAC_READ_SEARCH | 1 << CAP_SETPCAP
    if sys.platform != "linux" or _permitted() & needed != needed:
        return False
    search = 1 << CAP_DAC_READ_SEARCH
    return (
        _set_capabilities(needed)
        # Without this, access(2), which Postgres asks about its own program, knows nothing of the capability.
        and _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        and _set_capabilities(search)
        and _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)
    )


def _permitted() -> int:
    sets = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(_header(), sets)
    return sets[1]


def _set_capabilities(bits: int) -> bool:
    """`bits` become the effective, the permitted and the inheritable ones; all others go."""
    sets = (ctypes.c_uint32 * 6)(bits, bits, bits)  # The lower 32 capabilities, then the upper 32.
    return bool(ctypes.CDLL(None).capset(_header(), sets) == 0)


def _header() -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)


def _die_with(parent: int, death_signal: int) -> None:
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # It died before the line above.
        os.kill(os.getpid(), death_signal)


def _prctl(option: int, *arguments: int) -> bool:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return bool(ctypes.CDLL(None).prctl(option, *values) == 0)


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(message + "\n")
    sys.exit(CANNOT_START)


if __name__ == "__main__":
    main(sys.argv[1:])
