"""A model made known before any worker serves it: exported where it has to be, loaded once, put on the volume."""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from custody import models
from custody.database import Database
from custody.errors import StartError
from custody.installation import check_volume
from custody.models import Registration
from custody.volume import Volume
from custody.wire import ModelReference
from inference_worker.child import handed_on, keep_to_itself
from inference_worker.cpus import granted_cpus
from inference_worker.engines import ModelDescription
from inference_worker.slots import START_SECONDS, Slots

SUMS = "SHA256SUMS"
"""Beside an exported model: what it was exported from, and the digests of its files; `sha256sum --check` reads it."""


@dataclass(frozen=True)
class Added:
    model: ModelReference
    description: ModelDescription


@dataclass(frozen=True)
class _Forms:
    """The file that is registered, and what goes with it."""

    model: Path
    beside: Sequence[Path] = ()


async def add(
    source: Path,
    *,
    name: str | None,
    database_url: str,
    volume: Path,
    engine: str,
    start_seconds: float = START_SECONDS,
) -> Added:
    """The version of `source`, an absolute path, under `name` or under its file's name; `engine` is the one that is to
    serve it. A .pt is exported, and its ONNX form is the one that counts.

    Raises `StartError` with nothing registered: where it is no model that the engine takes, or where its file's name
    alone would make it a new version of another model."""
    keep_to_itself()
    wanted = models.checked_name(models.name_of(source.name) if name is None else name)
    async with Database(database_url, name="wharf models add", role="wharf_worker", size=2, prepares=False) as database:
        async with database.transaction() as transaction:
            await check_volume(transaction, Volume(volume, instance="models-add"))
        with tempfile.TemporaryDirectory(prefix="wharf-models-add-") as folder:
            forms = await _export(source, Path(folder)) if source.suffix == ".pt" else _Forms(source)
            digest = models.digest_of(forms.model)
            description = await _describe(forms.model, source, engine, start_seconds)
            if name is None:
                async with database.transaction() as transaction:
                    known = await models.newest_path(transaction, wanted)
                if known is not None and known.digest != digest:
                    raise StartError(
                        f"There is a model {wanted} already, with other bytes. Say --name {wanted} to make {source} "
                        "its next version, or give it another --name."
                    )
            files = models.install(forms.model, volume, name=wanted, beside=forms.beside)
        registration = Registration(
            files, description.task, description.classes, description.input_width, description.input_height
        )
        async with database.transaction() as transaction:
            return Added(await models.register(transaction, registration), description)


async def _export(source: Path, folder: Path) -> _Forms:
    origin = models.digest_of(source)
    command = [sys.executable, "-P", "-m", "inference_worker.engines.export", str(source), str(folder)]
    exporting = await asyncio.create_subprocess_exec(
        *command, env=handed_on(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        answer, printed = await exporting.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            exporting.kill()
        await exporting.wait()
        raise
    if exporting.returncode:
        lines = printed.decode(errors="replace").strip().splitlines()
        if lines and lines[-1].startswith("ModuleNotFoundError"):
            raise StartError(
                f"{source} is exported by ultralytics, which is not all here ({lines[-1].partition(': ')[2]}). "
                "Install `wharfinger[worker,ultralytics]`, or add an .onnx file that was exported elsewhere."
            )
        raise StartError(answer.decode() or f"The export of {source} broke. Its last lines:\n" + "\n".join(lines[-20:]))
    model, ir = folder / f"{source.stem}.onnx", folder / f"{source.stem}_openvino_model"
    sums = folder / SUMS
    _write_sums(sums, f"# exported from {source.name}, SHA-256 {origin.hex()}")
    return _Forms(model, [ir, sums])


def _write_sums(target: Path, heading: str) -> None:
    files = sorted(file for file in target.parent.rglob("*") if file.is_file())
    lines = [f"{sha256(file.read_bytes()).hexdigest()}  {file.relative_to(target.parent)}" for file in files]
    target.write_text("\n".join([heading, *lines, ""]))


async def _describe(model: Path, source: Path, engine: str, start_seconds: float) -> ModelDescription:
    """What an engine finds out by loading it, in a process of its own: a model may crash it."""
    slot = Slots(
        1,
        engine=engine,
        model_path=model,
        volume_root=model.parent,
        threads=granted_cpus(),
        precision="f32",
        max_pixels=1,
        read_patience_seconds=0,
        time_limit_seconds=1,
        start_limit_seconds=start_seconds,
    )
    try:
        return (await slot.start()).model
    except StartError as error:
        raise StartError(str(error).replace(str(model), str(source))) from error
    finally:
        await slot.close()
