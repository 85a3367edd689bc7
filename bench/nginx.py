"""The limit of taking uploads: nginx that puts each body into a file, and neither hashes nor syncs it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import tree_seconds
from bench.pictures import NUMBER, numbered
from bench.request import Request
from bench.scenario import program
from tests.e2e.service import Part, free_port

CONFIGURATION = """
{user}
worker_processes auto;
daemon off;
pid nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path coming;
    proxy_temp_path other; fastcgi_temp_path other; uwsgi_temp_path other; scgi_temp_path other;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/files;
        dav_methods PUT;
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    url: str
    pid: int

    def cpu_seconds(self) -> dict[str, float]:
        return {"nginx": tree_seconds(self.pid)}


@contextmanager
def nginx(folder: Path) -> Iterator[Nginx]:
    """`folder`: on the disk that is measured; made."""
    binary = program("nginx")
    (folder / "files").mkdir(parents=True)
    port = free_port()
    configuration = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(CONFIGURATION.format(port=port, folder=folder, user=user))
    options = ("-p", str(folder), "-c", str(configuration), "-e", "stderr")
    part = Part("nginx", options, {}, folder / "log", program=(binary,))
    try:
        part.start()
        part.until(lambda: _listens(port))
        yield Nginx(f"http://127.0.0.1:{port}", part.pid)
    finally:
        part.stop()


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return True
    return False


def put(jpeg: bytes) -> Request:
    """Each into a file of its own."""
    return Request(f"/{NUMBER.decode()}.jpg", numbered(jpeg), status=201, method="PUT")
