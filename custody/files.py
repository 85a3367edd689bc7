"""Files: what tenants hold of the bytes on the volume. The upload half of the custody protocol lives here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from psycopg.rows import DictRow
from psycopg.types.json import Json

from custody.database import Transaction
from custody.errors import CustodyError
from custody.ids import new_id
from custody.volume import Staged, Volume
from custody.wire import File, FilePatch, FileState, JobInput

LIVE = "deleted_at IS NULL AND (pinned OR expires_at IS NULL OR expires_at > now())"
# From now on: as long as was asked for (%(kept_for)s, in seconds), or as the tenant or else the service keeps files.
EXPIRY = """
    now() + coalesce(
        make_interval(secs => %(kept_for)s::float8),
        (SELECT t.file_retention FROM wharf.tenants t WHERE t.id = wharf.current_tenant()),
        make_interval(secs => %(retention)s::float8))
"""
COLUMNS = "id, sha256, size, media_type, width, height, orientation, filename, created_at, expires_at, pinned"


@dataclass(frozen=True)
class Media:
    """What the bytes are, read from the bytes. Pixels with the EXIF orientation (1 to 8) applied."""

    media_type: str
    width: int
    height: int
    orientation: int


@dataclass(frozen=True)
class Upload:
    """Staged bytes that a tenant wants kept."""

    staged: Staged
    media: Media
    filename: str | None


@dataclass(frozen=True)
class Kept:
    """`held_before`: this tenant held every byte already, whatever others hold."""

    files: Sequence[File]
    held_before: bool


class Files:
    """`retention_days`: how long a file is kept where neither its upload nor its tenant says otherwise."""

    def __init__(self, volume: Volume, *, retention_days: float = 30.0) -> None:
        self._volume = volume
        self._retention_seconds = retention_days * 24 * 3600

    async def keep(
        self, transaction: Transaction, tenant: UUID, uploads: Sequence[Upload], *, kept_for: float | None = None
    ) -> Kept:
        """A file row for each upload, its bytes in the tree once. After it they are gone from `staging/`. `kept_for`:
        seconds until the files expire."""
        distinct: dict[bytes, Staged] = {}
        for staged in sorted((upload.staged for upload in uploads), key=lambda staged: staged.sha256):
            if distinct.setdefault(staged.sha256, staged) is not staged:
                await self._volume.drop(staged)
        taken = await self._take(transaction, list(distinct.values()), kept_for)
        for row in taken:
            staged = distinct[row["sha256"]]
            if row["state"] == "present":
                await self._volume.drop(staged)
            else:
                # Bytes before the promise: a crash in between leaves a file without a row, never the reverse.
                await self._volume.keep(staged)
        at = {row["sha256"]: (row["created_at"], row["expires_at"]) for row in taken}
        files = [_new_file(upload, *at[upload.staged.sha256]) for upload in uploads]
        await self._add(transaction, tenant, files)
        return Kept(files, held_before=all(row["held"] for row in taken))

    async def keep_known(
        self,
        transaction: Transaction,
        tenant: UUID,
        sha256: bytes,
        filename: str | None,
        *,
        kept_for: float | None = None,
    ) -> File | None:
        """A new file row on bytes that the tenant holds already; None where it does not. `kept_for` as in `keep`."""
        if not await self._hold(transaction, await self._held(transaction, [sha256])):
            return None
        found = await transaction.execute(
            f"SELECT {COLUMNS} FROM wharf.files WHERE sha256 = %s AND {LIVE} ORDER BY id DESC LIMIT 1", [sha256]
        )
        row = await found.fetchone()
        if row is None:
            return None
        known = _file(row)
        media = Media(known.media_type, known.width, known.height, known.orientation)
        return await self._insert(transaction, tenant, sha256, known.size, media, filename or known.filename, kept_for)

    async def holds(self, transaction: Transaction, sha256: bytes) -> bool:
        """False also where its bytes are damaged, so that whoever has them sends them again."""
        return bool(await self._held(transaction, [sha256])) and not await self._states(transaction, [sha256])

    async def get(self, transaction: Transaction, file_id: UUID) -> File | None:
        found = await transaction.execute(f"SELECT {COLUMNS} FROM wharf.files WHERE id = %s AND {LIVE}", [file_id])
        files = await self._with_states(transaction, await found.fetchall())
        return files[0] if files else None

    async def page(self, transaction: Transaction, *, before: UUID | None, limit: int) -> list[File]:
        """Newest first; `before`: the last id of the page before."""
        found = await transaction.execute(
            f"""
            SELECT {COLUMNS} FROM wharf.files
            WHERE {LIVE} AND (%(before)s::uuid IS NULL OR id < %(before)s) ORDER BY id DESC LIMIT %(limit)s
            """,
            {"before": before, "limit": limit},
        )
        return await self._with_states(transaction, await found.fetchall())

    async def change(self, transaction: Transaction, file_id: UUID, patch: FilePatch) -> File | None:
        """What the patch names; None where the tenant has no such file. A file that is unpinned when its time is over
        already is kept from now on as a new one is."""
        changed = await transaction.execute(
            f"""
            UPDATE wharf.files SET
                pinned = coalesce(%(pinned)s, pinned),
                expires_at = CASE
                    WHEN %(dated)s THEN coalesce(%(expires_at)s::timestamptz, {EXPIRY})
                    WHEN NOT %(pinned)s AND expires_at <= now() THEN {EXPIRY}
                    ELSE expires_at END
            WHERE id = %(file)s AND {LIVE} RETURNING {COLUMNS}
            """,
            {
                "file": file_id,
                "pinned": patch.pinned if "pinned" in patch.model_fields_set else None,
                "dated": "expires_at" in patch.model_fields_set,
                "expires_at": patch.expires_at,
                "kept_for": None,
                "retention": self._retention_seconds,
            },
        )
        files = await self._with_states(transaction, await changed.fetchall())
        return files[0] if files else None

    async def delete(self, transaction: Transaction, file_id: UUID) -> File | None:
        """The tenant lets go of the file, if it has it. Its bytes stay while anything else, a running task say, refers
        to them."""
        found = await transaction.execute(
            f"UPDATE wharf.files SET deleted_at = now() WHERE id = %s AND {LIVE} RETURNING {COLUMNS}", [file_id]
        )
        row = await found.fetchone()
        return None if row is None else _file(row)

    async def hold(self, transaction: Transaction, inputs: Sequence[JobInput]) -> list[File]:
        """The files that a job's inputs name, their bytes held until the transaction ends.

        Raises `CustodyError` with the field of the first input that names none of this tenant's (`not_found`), or one
        whose bytes are damaged (`file_corrupt`)."""
        ids = [wanted.file for wanted in inputs if wanted.file]
        sha256s = [bytes.fromhex(wanted.sha256) for wanted in inputs if wanted.sha256]
        # Nobody locks, or waits for, bytes that the tenant has no file of.
        held = await transaction.execute(
            f"""
            SELECT held.sha256 FROM wharf.hold_blobs(ARRAY (
                SELECT sha256 FROM wharf.files WHERE id = ANY (%(ids)s) AND {LIVE}
                UNION
                SELECT sha256 FROM wharf.files WHERE sha256 = ANY (%(sha256s)s) AND {LIVE}
            )) AS held (sha256)
            """,
            {"ids": ids, "sha256s": sha256s},
        )
        present = {row["sha256"] for row in await held.fetchall()}
        # Read once they are held: what was purged meanwhile is not among them.
        by_id = await self._by(transaction, "id", ids)
        by_sha256 = await self._by(transaction, "sha256", sha256s)
        named: list[File] = []
        for number, wanted in enumerate(inputs):
            file = by_id.get(wanted.file) if wanted.file else by_sha256.get(bytes.fromhex(wanted.sha256 or ""))
            if file is None:
                raise _no_such_input(number, wanted)
            sha256 = bytes.fromhex(file.sha256)
            if sha256 not in present:
                if await self._states(transaction, [sha256]):
                    raise damaged(file, field=f"inputs.{number}.{_kind(wanted)}")
                raise _no_such_input(number, wanted)
            named.append(file)
        return named

    async def hold_known(self, transaction: Transaction, wanted: Sequence[bytes]) -> set[bytes]:
        """Those of the bytes that the tenant has a file of, held until the transaction ends."""
        # Nobody locks, or waits for, bytes that the tenant has no file of: that would tell that others have.
        present = await self._hold(transaction, await self._held(transaction, wanted))
        # Whoever takes a file's bytes away for good takes this lock too, and is seen now.
        return await self._held(transaction, present)

    async def damaged(self, transaction: Transaction, wanted: set[bytes]) -> set[bytes]:
        """Those of the bytes that the tenant has a file of and that are quarantined."""
        return set(await self._states(transaction, await self._held(transaction, wanted))) if wanted else set()

    async def _with_states(self, transaction: Transaction, rows: Sequence[DictRow]) -> list[File]:
        states = await self._states(transaction, [row["sha256"] for row in rows])
        return [_file(row | {"state": states.get(row["sha256"], FileState.PRESENT)}) for row in rows]

    async def _states(self, transaction: Transaction, wanted: Iterable[bytes]) -> Mapping[bytes, FileState]:
        """Of those that are not `present`."""
        found = await transaction.execute("SELECT sha256, fault FROM wharf.blob_faults(%s)", [list(set(wanted))])
        return {row["sha256"]: FileState(row["fault"]) for row in await found.fetchall()}

    async def _by(self, transaction: Transaction, column: str, wanted: Sequence[object]) -> Mapping[object, File]:
        if not wanted:
            return {}
        found = await transaction.execute(
            f"SELECT {COLUMNS} FROM wharf.files WHERE {column} = ANY (%s) AND {LIVE} ORDER BY id", [list(wanted)]
        )
        return {row[column]: _file(row) for row in await found.fetchall()}

    async def _held(self, transaction: Transaction, wanted: Iterable[bytes]) -> set[bytes]:
        found = await transaction.execute(
            f"SELECT DISTINCT sha256 FROM wharf.files WHERE sha256 = ANY (%s) AND {LIVE}", [list(wanted)]
        )
        return {row["sha256"] for row in await found.fetchall()}

    async def _hold(self, transaction: Transaction, wanted: Iterable[bytes]) -> set[bytes]:
        found = await transaction.execute("SELECT wharf.hold_blobs(%s) AS sha256", [sorted(set(wanted))])
        return {row["sha256"] for row in await found.fetchall()}

    async def _take(self, transaction: Transaction, several: Sequence[Staged], kept_for: float | None) -> list[DictRow]:
        """Locks the row of each one's bytes, in their order; gives its state, whether the tenant has a file of them
        already, and the two times of a new one."""
        found = await transaction.execute(
            f"""
            SELECT s.sha256, wharf.take_blob(s.sha256, s.size) AS state,
                   (SELECT true FROM wharf.files f WHERE f.sha256 = s.sha256 AND {LIVE} LIMIT 1) IS NOT NULL AS held,
                   now() AS created_at, {EXPIRY} AS expires_at
            FROM (
                SELECT decode(hex, 'hex') AS sha256, size
                FROM json_to_recordset(%(staged)s) AS s (hex text, size bigint)
            ) s
            """,
            {
                "staged": Json([{"hex": staged.sha256.hex(), "size": staged.size} for staged in several]),
                "kept_for": kept_for,
                "retention": self._retention_seconds,
            },
        )
        return await found.fetchall()

    async def _add(self, transaction: Transaction, tenant: UUID, files: Sequence[File]) -> None:
        """Of bytes that were taken, and are in the tree: they are `present` from now on. Where they were before, that
        changes nothing but takes the same time."""
        await transaction.execute(
            """
            INSERT INTO wharf.files
                (id, tenant_id, sha256, size, media_type, width, height, orientation, filename, created_at, expires_at)
            SELECT f.id, %(tenant)s, decode(f.sha256, 'hex'), f.size, f.media_type, f.width, f.height, f.orientation,
                f.filename, f.created_at, f.expires_at
            FROM json_to_recordset(%(files)s) AS f (id uuid, sha256 text, size bigint, media_type text, width int,
                height int, orientation smallint, filename text, created_at timestamptz, expires_at timestamptz)
            CROSS JOIN LATERAL wharf.blob_present(decode(f.sha256, 'hex'))
            """,
            {"tenant": tenant, "files": Json([file.model_dump(mode="json") for file in files])},
        )

    async def _insert(
        self,
        transaction: Transaction,
        tenant: UUID,
        sha256: bytes,
        size: int,
        media: Media,
        filename: str | None,
        kept_for: float | None,
    ) -> File:
        inserted = await transaction.execute(
            f"""
            INSERT INTO wharf.files
                (id, tenant_id, sha256, size, media_type, width, height, orientation, filename, expires_at)
            VALUES (%(id)s, %(tenant)s, %(sha256)s, %(size)s, %(media_type)s, %(width)s, %(height)s, %(orientation)s,
                %(filename)s, {EXPIRY}) RETURNING {COLUMNS}
            """,
            {
                "id": new_id(),
                "tenant": tenant,
                "sha256": sha256,
                "size": size,
                **asdict(media),
                "filename": filename,
                "kept_for": kept_for,
                "retention": self._retention_seconds,
            },
        )
        row = await inserted.fetchone()
        assert row is not None
        return _file(row)


def _new_file(upload: Upload, created_at: datetime, expires_at: datetime) -> File:
    return File(
        id=new_id(),
        sha256=upload.staged.sha256.hex(),
        size=upload.staged.size,
        **asdict(upload.media),
        filename=upload.filename,
        created_at=created_at,
        expires_at=expires_at,
        pinned=False,
    )


def _file(row: DictRow) -> File:
    return File(**{**row, "sha256": row["sha256"].hex()})


def damaged(file: File, *, field: str | None = None) -> CustodyError:
    return CustodyError(
        "file_corrupt",
        f"The bytes of file {file.id} (sha256 {file.sha256}) are damaged or gone. Upload the same bytes again: that "
        "puts every file back that has them.",
        field=field,
    )


def _kind(wanted: JobInput) -> str:
    return "file" if wanted.file else "sha256"


def _no_such_input(number: int, wanted: JobInput) -> CustodyError:
    kind, name = _kind(wanted), wanted.file or wanted.sha256
    return CustodyError(
        "not_found",
        f"Input {number}: you hold no {kind} {name}. Upload it first, or correct the reference.",
        field=f"inputs.{number}.{kind}",
    )
