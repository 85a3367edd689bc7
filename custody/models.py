"""Models: which versions are registered, and which workers serve them now."""

import hashlib
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from custody.database import Transaction
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.pools import DRAINING_SECONDS, WORKER_SILENT_SECONDS, seen_backlog
from custody.tenants import operators_only
from custody.volume import sync_path
from custody.wire import Model, ModelReference, ModelVersion

SUFFIXES = (
    *(
        ".onnx",
        ".xml",
        ".pt",
        ".torchscript",
        ".engine",
        ".tflite",
        ".pb",
        ".mnn",
        ".mlpackage",
        ".mlmodel",
        ".aimodel",
    ),
    *(f"_{name}_model" for name in ("openvino", "saved", "paddle", "ncnn", "imx", "rknn", "executorch", "axelera")),
    *(f"_{name}_model" for name in ("deepx", "hailo", "ascend", "xilinx")),
)
"""Ends of the names of models, files and folders. Every engine takes some: openvino the first two, ONNX and OpenVINO's
IR with its .bin beside it."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class ModelFiles:
    """A model as it lies on the volume. `path` is relative to the volume and names the file an engine opens."""

    name: str
    digest: bytes
    path: str


@dataclass(frozen=True)
class Registration:
    """What a worker has found out about a model by loading it. `pipeline`: see `custody.cache.Computation`; None: it
    was looked at, and is not served."""

    files: ModelFiles
    task: str
    classes: Sequence[str]
    input_width: int
    input_height: int
    pipeline: str | None = None


def is_file(model: str) -> bool:
    """Whether `model` is a place on a disk, and no registered name."""
    return Path(model).name.endswith(SUFFIXES)


def name_of(model: str) -> str:
    """The name by which jobs ask for `model`: itself, or, where it is a model file, its stem in plain letters."""
    if not is_file(model):
        return model
    name = Path(model).name
    stem = name.removesuffix(next(suffix for suffix in SUFFIXES if name.endswith(suffix)))
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:63] or "model"


def checked_name(name: str) -> str:
    """Raises `StartError` for what cannot be a model's name."""
    if not NAME.fullmatch(name) or is_file(name):
        raise StartError(
            f"{name!r} cannot be a model's name: it has up to 63 of a-z, 0-9, dot, hyphen and underscore, begins with "
            "a letter or digit, and does not end as a model file does."
        )
    return name


def digest_of(source: Path) -> bytes:
    """One file: its SHA-256. Several, as of an IR or a folder: the SHA-256 over theirs, in a fixed order.

    Raises `StartError` where it is no model."""
    digests = [hashlib.sha256(part.read_bytes()).digest() for part in _parts(source)]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def install(source: Path, volume: Path, *, name: str | None = None, beside: Sequence[Path] = ()) -> ModelFiles:
    """Copies a model into `models/<its name>/<first 16 of its digest>/`, unless it is there; an OpenVINO IR brings its
    .bin and its metadata.yaml along. `beside`: files and folders that go with it and do not count in its digest. The
    folder is renamed into place, so that nobody sees half a model.

    Raises `StartError` where it is no model."""
    name = name or name_of(source.name)
    digest = digest_of(source)
    folder = volume / "models" / name / digest.hex()[:16]
    if not folder.exists():
        growing = folder.with_name(f".{new_id()}.growing")
        growing.mkdir(parents=True)
        for part in _parts(source):
            _copy(part, growing / part.relative_to(source.parent))
        for other in beside:
            for part in _files(other):
                _copy(part, growing / part.relative_to(other.parent))
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


def check_bytes(files: ModelFiles, volume: Path) -> None:
    """Raises `StartError` where the model's bytes on the volume are not those that were registered."""
    if digest_of(volume / files.path) != files.digest:
        raise StartError(
            f"The model {files.name} was changed on the volume: {files.path} has another digest than was registered. "
            "Put the right bytes back, or remove its folder and register it anew from a file that you trust."
        )


async def register(transaction: Transaction, found: Registration) -> ModelReference:
    """The version of these bytes under this name: the known one, or the next number. From now on its answers are looked
    for under the pipeline of the registration, the last one where several workers differ.

    Raises `StartError` for a version that was retired, unless no other is left and inputs still wait for one."""
    # Two workers with two new models of one name would both take the same number.
    await transaction.execute(
        "SELECT pg_advisory_xact_lock(hashtext('wharf.models'), hashtext(%s))", [found.files.name]
    )
    await transaction.execute(
        """
        INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height, pipeline)
        SELECT %(name)s, coalesce(max(version), 0) + 1, %(digest)s, %(path)s, %(task)s, %(classes)s,
               %(width)s, %(height)s, %(pipeline)s
        FROM wharf.models WHERE name = %(name)s
        ON CONFLICT (name, digest) DO UPDATE SET pipeline = coalesce(excluded.pipeline, models.pipeline)
        """,
        {
            "name": found.files.name,
            "digest": found.files.digest,
            "path": found.files.path,
            "task": found.task,
            "classes": Jsonb(list(found.classes)),
            "width": found.input_width,
            "height": found.input_height,
            "pipeline": found.pipeline,
        },
    )
    row = await (
        await transaction.execute(
            """
            SELECT m.version, m.state, EXISTS (
                SELECT FROM wharf.models other WHERE other.name = m.name AND other.state = 'active') AS has_active
            FROM wharf.models m WHERE m.name = %s AND m.digest = %s
            """,
            [found.files.name, found.files.digest],
        )
    ).fetchone()
    assert row is not None
    if row["state"] == "retired":
        await _check_needed(transaction, found.files.name, row["version"], has_active=row["has_active"])
    return ModelReference(name=found.files.name, version=row["version"], digest=found.files.digest.hex())


async def newest_path(transaction: Transaction, name: str) -> ModelFiles | None:
    """Where the newest active version lies, or, where all are retired, the newest of these: see `register`. None where
    no version is registered."""
    found = await transaction.execute(
        """
        SELECT name, digest, path FROM wharf.models
        WHERE name = %s ORDER BY state = 'active' DESC, version DESC LIMIT 1
        """,
        [name],
    )
    row = await found.fetchone()
    return None if row is None else ModelFiles(**row)


async def resolve(transaction: Transaction, name: str | None) -> str:
    """The name of an active model whose pool takes jobs: the one named, or the only one there is.

    Raises `CustodyError`: `model_not_found` or `pool_draining`."""
    found = await transaction.execute(
        """
        SELECT DISTINCT m.name, p.state IS NOT DISTINCT FROM 'draining' AS draining
        FROM wharf.models m LEFT JOIN wharf.pools p ON p.name = m.name
        WHERE m.state = 'active' AND (%(name)s::text IS NULL OR m.name = %(name)s)
        """,
        {"name": name},
    )
    rows = await found.fetchall()
    if len(rows) != 1:
        detail = "Name the model: several are registered" if rows else f"There is no active model {name or 'yet'}"
        raise CustodyError("model_not_found", f"{detail}. GET /v1/models lists them.", field="model")
    [row] = rows
    if row["draining"]:
        raise CustodyError(
            "pool_draining",
            f"{row['name']} is being drained: it works off what waits, and takes jobs again once it is resumed.",
            field="model",
            retry_after=DRAINING_SECONDS,
        )
    return str(row["name"])


async def retire(transaction: Transaction, name: str, version: int | None) -> None:
    """From now on no job is accepted for this version, or for any where `version` is None; what waits still runs.

    Raises `CustodyError`: `not_found` for what was never registered, `forbidden` where the tenant is not the
    operator's."""
    found = await transaction.execute(
        "SELECT 1 FROM wharf.models WHERE name = %(name)s AND version = coalesce(%(version)s, version) LIMIT 1",
        {"name": name, "version": version},
    )
    if await found.fetchone() is None:
        which = f"version {version} of {name}" if version else f"model {name}"
        raise CustodyError("not_found", f"There is no {which}. GET /v1/models lists them.")
    async with operators_only("retires models"):
        await transaction.execute("SELECT wharf.retire_model(%s, %s)", [name, version])


async def ready_workers(transaction: Transaction, names: Collection[str]) -> Mapping[str, int]:
    """How many workers of each model live; without the models that have none."""
    found = await transaction.execute(
        """
        SELECT pool, count(*)::int AS ready FROM wharf.workers
        WHERE pool = ANY (%s) AND seen_at > now() - make_interval(secs => %s) GROUP BY pool
        """,
        [list(names), WORKER_SILENT_SECONDS],
    )
    return {row["pool"]: row["ready"] for row in await found.fetchall()}


async def list_models(transaction: Transaction, name: str | None = None) -> list[Model]:
    found = await transaction.execute(
        """
        SELECT m.name, m.version, m.digest, m.task, m.classes, m.input_width, m.input_height, m.state, m.created_at,
               (SELECT count(*) FROM wharf.workers w WHERE w.pool = m.name
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
    transaction: Transaction, *, worker: str, model: ModelReference, engine: str, slots: int, release: str
) -> None:
    """This worker is warm and lives: said at its start and every few seconds."""
    await transaction.execute(
        """
        INSERT INTO wharf.workers (name, pool, model_version, engine, slots, release) VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, model_version = excluded.model_version,
            engine = excluded.engine, slots = excluded.slots, release = excluded.release, seen_at = now()
        """,
        [worker, model.name, model.version, engine, slots, release],
    )


async def forget_worker(transaction: Transaction, worker: str) -> None:
    await transaction.execute("DELETE FROM wharf.workers WHERE name = %s", [worker])


async def _check_needed(transaction: Transaction, name: str, version: int, *, has_active: bool) -> None:
    if has_active:
        raise StartError(
            f"Version {version} of {name} is retired, and others are active. To serve the newest of these, name the "
            f"model and not its file: {name}"
        )
    if not await seen_backlog(transaction, name, most=1):
        raise StartError(
            f"Version {version} of {name} is retired, and nothing waits for it any more. Other bytes under this name "
            "become its next version; the same bytes can be served under another name."
        )


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
    if not is_file(source.name):
        raise StartError(
            f"{source} is of no known model format. Name an .onnx file or an OpenVINO .xml with its .bin, or, for the "
            "ultralytics engine, a .pt file or what ultralytics exports."
        )
    if not source.exists():
        raise StartError(f"There is no model file {source}. Name an .onnx file or an OpenVINO .xml with its .bin.")
    if source.suffix != ".xml":
        return _files(source)
    weights = source.with_suffix(".bin")
    if not weights.is_file():
        raise StartError(f"{source} needs its weights beside it: {weights} is missing.")
    metadata = source.with_name("metadata.yaml")
    return [source, weights, *([metadata] if metadata.is_file() else [])]


def _files(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]


def _copy(part: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(part, target)
    sync_path(target)
    sync_path(target.parent)
