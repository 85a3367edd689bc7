"""A child process that cannot outlive its parent, leads a session of its own, and leaves nothing of itself behind."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LAUNCHER = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Account:
    """A user of this machine; `name` is empty where the number has none."""

    uid: int
    gid: int
    name: str


class Process:
    """A running child. It belongs to no event loop: one may start it and another end it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        death_signal: signal.Signals,
        output: int | IO[bytes],
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
        reach: Sequence[Path] = (),
    ) -> "Process":
        """`argv` begins with a path or a name on PATH. `death_signal`: sent by Linux when this process dies; `output`:
        where standard output and error go, as `subprocess` takes it; `account`: whom to become, by root only;
        `reach`: paths that this user must be able to walk to."""
        # The kernel ties the child's life to the thread that forked it.
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Start child processes from the main thread: they die with the thread that starts them.")
        options = ["--parent", str(os.getpid()), "--death-signal", str(int(death_signal))]
        if account:
            options += ["--user", f"{account.uid}:{account.gid}:{account.name}"]
            options += [text for path in reach for text in ("--reach", str(path))]
        return cls(
            subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), *options, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd="/" if account else None,
                # Its own session: Ctrl-C in the terminal reaches the parent alone, which decides.
                start_new_session=True,
            )
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def output(self) -> IO[bytes]:
        """The reading end, where `output` was `subprocess.PIPE`."""
        if self._popen.stdout is None:
            raise ValueError("The output goes elsewhere.")
        return self._popen.stdout

    async def exited(self) -> int:
        """The exit status once it has ended (minus the signal's number where a signal ended it). What is left of its
        process group is killed."""
        if self._popen.returncode is None:
            await _end_of(self._popen)
            # Before it is reaped, where that can be had: until then no other process group can bear its number.
            _signal_group(self.pid, signal.SIGKILL)
        return self._popen.wait()

    async def end(self, *steps: tuple[signal.Signals, float]) -> int:
        """Sends each signal and waits that many seconds for the end; after the last, kills. Returns the status."""
        for number, seconds in steps:
            self.send(number)
            with suppress(TimeoutError):
                return await asyncio.wait_for(self.exited(), seconds)
        self.send_group(signal.SIGKILL)
        return await self.exited()

    def send(self, number: signal.Signals) -> None:
        """To the process alone; nothing happens where it has ended."""
        if self._popen.returncode is None:
            # Not Popen.send_signal, which reaps, and so frees the group's number.
            os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """To the process and all that it started in its session."""
        if self._popen.returncode is None:
            _signal_group(self.pid, number)


def _signal_group(leader: int, number: signal.Signals) -> None:
    # macOS answers EPERM where only the dead leader is left of the group.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


async def _end_of(popen: subprocess.Popen[bytes]) -> None:
    """Waits for the end without reaping, where the system can tell of it; else polls, and reaps."""
    descriptor = _descriptor(popen.pid)
    if descriptor is None:
        while popen.poll() is None:  # noqa: ASYNC110 - nothing here tells of the end
            await asyncio.sleep(0.1)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _descriptor(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None on macOS and where a sandbox forbids it."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
