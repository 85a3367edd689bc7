"""Models: which versions are registered, and which workers serve them now."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from custody.database import Transaction
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.volume import sync_path
from custody.wire import Model, ModelReference, ModelVersion

SUFFIXES = (".onnx", ".xml")
"""Of model files: ONNX, and OpenVINO's IR with its .bin beside it."""

WORKER_SILENT_SECONDS = 30.0
"""A worker that has not been seen for longer does not count as living."""


@dataclass(frozen=True)
class ModelFiles:
    """A model as it lies on the volume. `path` is relative to the volume and names the file an engine opens."""

    name: str
    digest: bytes
    path: str


@dataclass(frozen=True)
class Registration:
    """What a worker has found out about a model by loading it."""

    files: ModelFiles
    task: str
    classes: Sequence[str]
    input_width: int
    input_height: int


def name_of(model: str) -> str:
    """The name by which jobs ask for `model`: itself, or, where it is a model file, its stem in plain letters."""
    path = Path(model)
    if path.suffix not in SUFFIXES:
        return model
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "model"


def install(source: Path, volume: Path) -> ModelFiles:
    """Copies a model into `models/<its name>/<first 16 of its digest>/`, unless it is there; an OpenVINO IR brings its
    .bin and its metadata.yaml along. The folder is renamed into place, so that nobody sees half a model."""
    name = name_of(source.name)
    parts = _parts(source)
    digest = _digest(parts)
    folder = volume / "models" / name / digest.hex()[:16]
    if not folder.exists():
        growing = folder.with_name(f".{new_id()}.growing")
        growing.mkdir(parents=True)
        for part in parts:
            shutil.copyfile(part, growing / part.name)
            sync_path(growing / part.name)
        sync_path(growing)
        try:
            growing.rename(folder)
        except OSError:
            # Another worker that started at the same time may have been faster.
            shutil.rmtree(growing)
            if not folder.exists():
                raise
        sync_path(folder.parent)
    return ModelFiles(name, digest, str((folder / source.name).relative_to(volume)))


async def register(transaction: Transaction, found: Registration) -> ModelReference:
    """The version of these bytes under this name: the known one, or the next number."""
    # Two workers with two new models of one name would both take the same number.
    await transaction.execute(
        "SELECT pg_advisory_xact_lock(hashtext('wharf.models'), hashtext(%s))", [found.files.name]
    )
    await transaction.execute(
        """
        INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)
        SELECT %(name)s, coalesce(max(version), 0) + 1, %(digest)s, %(path)s, %(task)s, %(classes)s,
               %(width)s, %(height)s
        FROM wharf.models WHERE name = %(name)s
        ON CONFLICT (name, digest) DO NOTHING
        """,
        {
            "name": found.files.name,
            "digest": found.files.digest,
            "path": found.files.path,
            "task": found.task,
            "classes": Jsonb(list(found.classes)),
            "width": found.input_width,
            "height": found.input_height,
        },
    )
    row = await (
        await transaction.execute(
            "SELECT version FROM wharf.models WHERE name = %s AND digest = %s", [found.files.name, found.files.digest]
        )
    ).fetchone()
    assert row is not None
    return ModelReference(name=found.files.name, version=row["version"], digest=found.files.digest.hex())


async def newest_path(transaction: Transaction, name: str) -> ModelFiles | None:
    """Where the newest active version lies; None where no version is registered."""
    found = await transaction.execute(
        """
        SELECT name, digest, path FROM wharf.models
        WHERE name = %s AND state = 'active' ORDER BY version DESC LIMIT 1
        """,
        [name],
    )
    row = await found.fetchone()
    return None if row is None else ModelFiles(**row)


async def resolve(transaction: Transaction, name: str | None) -> str:
    """The name of an active model: the one named, or the only one there is.

    Raises `CustodyError("model_not_found")`."""
    found = await transaction.execute(
        "SELECT DISTINCT name FROM wharf.models WHERE state = 'active' AND (%(name)s::text IS NULL OR name = %(name)s)",
        {"name": name},
    )
    names = [row["name"] for row in await found.fetchall()]
    if len(names) == 1:
        return str(names[0])
    detail = "Name the model: several are registered" if names else f"There is no active model {name or 'yet'}"
    raise CustodyError("model_not_found", f"{detail}. GET /v1/models lists them.", field="model")


async def list_models(transaction: Transaction, name: str | None = None) -> list[Model]:
    found = await transaction.execute(
        """
        SELECT m.*, (SELECT count(*) FROM wharf.workers w WHERE w.pool = m.name
                     AND w.seen_at > now() - make_interval(secs => %(silent)s))::int AS ready_workers
        FROM wharf.models m WHERE %(name)s::text IS NULL OR m.name = %(name)s
        ORDER BY m.name, m.version DESC
        """,
        {"name": name, "silent": WORKER_SILENT_SECONDS},
    )
    rows = await found.fetchall()
    return [
        Model(
            name=name,
            versions=[_version(row) for row in rows if row["name"] == name],
            ready_workers=next(row["ready_workers"] for row in rows if row["name"] == name),
        )
        for name in dict.fromkeys(row["name"] for row in rows)
    ]


async def report_worker(
    transaction: Transaction, *, worker: str, model: ModelReference, engine: str, slots: int
) -> None:
    """This worker is warm and lives: said at its start and every few seconds."""
    await transaction.execute(
        """
        INSERT INTO wharf.workers (name, pool, model_version, engine, slots) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, model_version = excluded.model_version,
            engine = excluded.engine, slots = excluded.slots, seen_at = now()
        """,
        [worker, model.name, model.version, engine, slots],
    )


async def forget_worker(transaction: Transaction, worker: str) -> None:
    await transaction.execute("DELETE FROM wharf.workers WHERE name = %s", [worker])


def _version(row: DictRow) -> ModelVersion:
    return ModelVersion(
        version=row["version"],
        digest=row["digest"].hex(),
        task=row["task"],
        classes=row["classes"],
        input_width=row["input_width"],
        input_height=row["input_height"],
        state=row["state"],
        created_at=row["created_at"],
    )


def _parts(source: Path) -> list[Path]:
    if not source.is_file():
        raise StartError(f"There is no model file {source}. Name an .onnx file or an OpenVINO .xml with its .bin.")
    if source.suffix == ".onnx":
        return [source]
    if source.suffix == ".xml":
        weights = source.with_suffix(".bin")
        if not weights.is_file():
            raise StartError(f"{source} needs its weights beside it: {weights} is missing.")
        metadata = source.with_name("metadata.yaml")
        return [source, weights, *([metadata] if metadata.is_file() else [])]
    raise StartError(f"{source} is of no known model format. Name an .onnx file or an OpenVINO .xml with its .bin.")


def _digest(parts: Sequence[Path]) -> bytes:
    """One file: its SHA-256. Several: the SHA-256 over theirs, in this order."""
    digests = [hashlib.sha256(part.read_bytes()).digest() for part in parts]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
