"""A RabbitMQ of the tests' own: a private node, which they start, stop, kill, wipe and ask."""

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import quote

import pika
import psutil
import pytest
from pika.exceptions import AMQPError

from tests.support.certificates import Certificates

START_SECONDS = 60
STOP_SECONDS = 30
CTL_SECONDS = 60
VHOSTS_AT_ONCE = 16

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "vm_memory_high_watermark": '{absolute, "512MB"}',
        "disk_free_limit": "10000000",
    }
)

# An idle node spins on no core, and a busy one leaves the machine to the tests.
EMULATOR = "+S 2:2 +SDio 2 +sbwt none +sbwtdcpu none +sbwtdio none"
LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"

# The parent of the node's processes: it ends them all when the server ends; and when we do, in whatever way, for then
# the pipe closes.
LEADER = """
exec 3<&0
"$1" -address 127.0.0.1 >>"$3" 2>&1 &
epmd=$!
"$2" >>"$3" 2>&1 &
server=$!
{ read -r _ <&3; kill -9 $server; } &
echo $server
wait $server
kill -9 $epmd $!
wait
"""


@cache
def programs() -> Path | None:
    """The folder of RabbitMQ's own scripts. Not that of Debian's wrappers, which want root and become another user."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/rabbitmq/sbin"]
    found = shutil.which("rabbitmq-server", path=os.pathsep.join(places))
    folders = [*([Path(found).resolve().parent] if found else []), *Path("/usr/lib/rabbitmq/lib").glob("*/sbin")]
    return next((folder for folder in folders if (folder / "rabbitmq-env").exists()), None)


def available() -> bool:
    return programs() is not None and shutil.which("epmd") is not None and shutil.which("erl") is not None


def require_rabbitmq() -> None:
    """Where there is no RabbitMQ, the test is skipped; in CI it fails."""
    if available():
        return
    words = "no RabbitMQ on this machine: apt-get install rabbitmq-server, or run .ci/with-rabbitmq COMMAND"
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)


class RabbitMQ:
    """One node. `folder`: for all that is its own; made where it is missing. `tls`: serve amqps on a second port;
    `client_certificates`: and let in only who shows one. `settings`: of the application `rabbit`, as Erlang terms.

    Ports, user and password stay the same whatever is restarted or wiped. Where a start fails, and when this process
    ends in whatever way, nothing is left running. No thread minds from where it is called; a method blocks."""

    user = "wharf"

    def __init__(
        self,
        folder: Path,
        *,
        tls: bool = False,
        client_certificates: bool = False,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.password = secrets.token_urlsafe(12)
        self.port, self.tls_port, self._distribution_port, epmd_port = _free_ports(4)
        self.certificates = Certificates(folder / "certificates") if tls else None
        self.log = folder / "rabbitmq.log"
        self._data = folder / "data"
        self._definitions = folder / "definitions.json"
        self._leader: subprocess.Popen[str] | None = None
        self._server: psutil.Process | None = None
        self._spare_vhosts: list[str] = []

        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        cookie = home / ".erlang.cookie"
        cookie.touch(mode=0o600)
        cookie.write_text(secrets.token_hex(16))
        plugins = folder / "enabled_plugins"
        plugins.write_text("[].")
        # Not rabbitmq.conf: to translate that would add a second to each start.
        config = folder / "advanced.config"
        config.write_text(self._config({**SETTINGS, **settings}, client_certificates))
        inherited = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
        self._environment = {name: os.environ[name] for name in inherited if name in os.environ} | {
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_NODENAME": f"wharf-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            # Nothing of what this machine's own RabbitMQ is told.
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_MNESIA_BASE": str(self._data),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{EMULATOR} {LOOPBACK}",
            "RABBITMQ_CTL_ERL_ARGS": f"+S 1:1 {LOOPBACK}",
            # The script then becomes the server, and hides it behind no shell.
            "detached": "1",
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def url(self, vhost: str = "/", *, user: str | None = None, password: str | None = None, tls: bool = False) -> str:
        name, secret = quote(user or self.user, safe=""), quote(password or self.password, safe="")
        place = f"localhost:{self.tls_port}" if tls else f"127.0.0.1:{self.port}"
        return f"{'amqps' if tls else 'amqp'}://{name}:{secret}@{place}/{quote(vhost, safe='')}"

    def start(self) -> None:
        """Returns once it grants a login. What was durable is there again, unless it was wiped."""
        require_rabbitmq()
        if self._leader:
            raise RuntimeError("This RabbitMQ is running.")
        epmd, server = shutil.which("epmd"), f"{programs()}/rabbitmq-server"
        began = self.log.stat().st_size if self.log.exists() else 0
        self._leader = subprocess.Popen(
            ["/bin/sh", "-c", LEADER, "leader", str(epmd), server, str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        try:
            assert self._leader.stdout
            self._server = psutil.Process(int(self._leader.stdout.readline()))
            deadline = time.monotonic() + START_SECONDS
            while not self._grants_a_login():
                if self._leader.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"RabbitMQ did not start. Its last words ({self.log}):\n{self._said(began)}")
                time.sleep(0.02)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """As an operator would: it closes connections and saves what it has, which takes about 2 s."""
        if self._leader and self._server:
            with suppress(psutil.NoSuchProcess):
                self._server.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._leader.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """All its processes, at once, as the kernel does that runs out of memory. Nothing happens where it is not
        running. A quorum queue that was declared less than about 1 s before has no leader after the next start."""
        if self._leader is None:
            return
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._leader.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._leader.wait()
        for pipe in (self._leader.stdin, self._leader.stdout):
            assert pipe
            pipe.close()
        self._leader = self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Forgets everything: queues, messages, vhosts, users but its own. It must not be running."""
        if self._leader:
            raise RuntimeError("Stop or kill this RabbitMQ before its data are removed.")
        shutil.rmtree(self._data, ignore_errors=True)
        self._spare_vhosts.clear()

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.ctl("version").split("-")[0].split("."))

    @property
    def pid(self) -> int:
        """The server's."""
        return self._running().pid

    def memory_bytes(self) -> int:
        """Resident, of the server."""
        return int(self._running().memory_info().rss)

    def cpu_seconds(self) -> float:
        """What the server has used since it started."""
        times = self._running().cpu_times()
        return float(times.user + times.system)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints, without headings. Takes about 0.4 s. `RuntimeError` with its words if it fails."""
        done = subprocess.run(
            [f"{programs()}/rabbitmqctl", "--silent", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CTL_SECONDS,
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()

    def new_vhost(self) -> str:
        """One that nobody has used. They are made 16 at a time: that takes 0.6 s, and one alone 0.8 s."""
        if not self._spare_vhosts:
            names = [f"test-{secrets.token_hex(6)}" for _ in range(VHOSTS_AT_ONCE)]
            everything = {"user": self.user, "configure": ".*", "write": ".*", "read": ".*"}
            definitions = {
                "vhosts": [{"name": name} for name in names],
                "permissions": [{"vhost": name, **everything} for name in names],
            }
            self._definitions.write_text(json.dumps(definitions))
            self.ctl("import_definitions", str(self._definitions))
            self._spare_vhosts = names
        return self._spare_vhosts.pop()

    def _config(self, settings: Mapping[str, str], client_certificates: bool) -> str:
        terms = {
            "tcp_listeners": f'[{{"127.0.0.1", {self.port}}}]',
            "default_user": f'<<"{self.user}">>',
            "default_pass": f'<<"{self.password}">>',
            **settings,
        }
        if self.certificates:
            files = {
                "cacertfile": self.certificates.authority.certificate,
                "certfile": self.certificates.server.certificate,
                "keyfile": self.certificates.server.key,
            }
            options = [f"{{{name}, {json.dumps(str(path))}}}" for name, path in files.items()]
            options.append("{verify, verify_peer}" if client_certificates else "{verify, verify_none}")
            options.append(f"{{fail_if_no_peer_cert, {str(client_certificates).lower()}}}")
            terms["ssl_listeners"] = f'[{{"127.0.0.1", {self.tls_port}}}]'
            terms["ssl_options"] = f"[{', '.join(options)}]"
        return f"[{{rabbit, [{', '.join(f'{{{name}, {term}}}' for name, term in terms.items())}]}}].\n"

    def _grants_a_login(self) -> bool:
        with suppress(OSError):
            # First whether anyone listens: pika would log each attempt as an error.
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
            with suppress(AMQPError):
                pika.BlockingConnection(pika.URLParameters(self.url())).close()
                return True
        return False

    def _said(self, began: int) -> str:
        with self.log.open("rb") as log:
            log.seek(began)
            return "\n".join(log.read().decode(errors="replace").strip().splitlines()[-15:])

    def _running(self) -> psutil.Process:
        if self._server is None:
            raise RuntimeError("This RabbitMQ is not running.")
        return self._server


def _free_ports(count: int) -> Sequence[int]:
    """Below those that the system hands out by itself: nobody takes one while the node is down."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            candidate = socket.socket()
            sockets.append(candidate)
            try:
                candidate.bind(("127.0.0.1", random.randrange(10000, 32000)))
            except OSError:
                sockets.pop().close()
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
