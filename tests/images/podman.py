"""Podman with a store and networks of its own, and containers that are as poor as a cluster's."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

UID = "1000670000"
"""Of the range that OpenShift gives a project: no line of /etc/passwd knows it."""

# Podman's own limits are higher than those of some machines, whose root may not raise them.
SETTINGS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""


class Podman:
    """`folder`: for its images, which stay, and its settings."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        settings = folder / "containers.conf"
        settings.write_text(SETTINGS.format(folder=folder))
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
        # Apart from this machine's own images: the stand-in has the name of a real one.
        self.command = (
            "podman",
            "--root",
            f"{folder}/store",
            "--runroot",
            f"{folder}/run",
            "--tmpdir",
            f"{folder}/tmp",
        )
        # Where a shell would be: what nobody can execute.
        self._nothing = folder / "nothing"
        self._nothing.write_text("")
        self._nothing.chmod(0o444)

    def __call__(self, *arguments: str, seconds: float = 120) -> str:
        """Standard output. `RuntimeError` with what was printed where it fails."""
        ended = subprocess.run(
            [*self.command, *arguments], env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        if ended.returncode != 0:
            raise RuntimeError(f"podman {' '.join(arguments)}: {ended.returncode}\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def has(self, image: str) -> bool:
        return subprocess.run([*self.command, "image", "exists", image], env=self.environment).returncode == 0

    def megabytes(self, image: str) -> float:
        """Of all its layers, unpacked; of 10^6 bytes."""
        return int(self("image", "inspect", "--format", "{{.Size}}", image)) / 1e6

    def configuration(self, image: str) -> dict[str, object]:
        [found] = json.loads(self("image", "inspect", image))
        return dict(found["Config"])

    def run(self, image: str, *arguments: str, options: Sequence[str] = ()) -> str:
        """What a container printed that has ended well. As any uid, in group 0, without capabilities and shells, with
        nothing to write to but /tmp, on the host's network."""
        poverty = [
            *("--network=host", f"--user={UID}:0", "--cap-drop=all", "--security-opt=no-new-privileges"),
            *("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:rw,mode=1777", *self.without_shells),
        ]
        return self("run", "--rm", *poverty, *options, image, *arguments)

    def log(self, container: str) -> str:
        ended = subprocess.run(
            [*self.command, "logs", container], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return ended.stdout.decode(errors="replace")

    @property
    def without_shells(self) -> list[str]:
        """Options: nothing can be executed where a shell would be."""
        return [f"--volume={self._nothing}:{shell}:ro" for shell in ("/bin/sh", "/bin/bash")]
