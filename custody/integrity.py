"""Integrity: which bytes were found right and when, which are quarantined, and the history of the looks at them.

A blob that is `quarantined` (`fault`: `corrupt` or `missing`) takes no new reference until an upload of the same bytes
has put them in place. It is marked before its bytes are moved, as a cleanup marks before it unlinks: a death in between
leaves damaged bytes under a row that promises nothing, and the next run finds them there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from custody.database import Transaction
from custody.ids import new_id

Fault = Literal["corrupt", "missing"]
RUNS_KEPT = timedelta(days=90)

Stopped = Literal["done", "time", "asked", "error", "killed"]


@dataclass(frozen=True)
class Custody:
    """Bytes that are promised. `looked`: when they were last found right, in PostgreSQL's words; with the SHA-256 it
    says where a walk goes on."""

    sha256: bytes
    size: int
    looked: str


@dataclass
class Counts:
    """Of one run. `restored`: quarantined before, and found right after all; `strangers`: files in the tree that no row
    names, None where they were not counted; `quarantined`: in all, at its end."""

    checked: int = 0
    bytes: int = 0
    corrupt: int = 0
    missing: int = 0
    unreadable: int = 0
    restored: int = 0
    strangers: int | None = None
    quarantined: int | None = None

    @property
    def damage(self) -> int:
        """What this run has found wrong."""
        return self.corrupt + self.missing + self.unreadable


@dataclass(frozen=True)
class Run:
    id: UUID
    started_at: datetime
    ended_at: datetime | None
    stopped: Stopped | None
    quick: bool
    counts: Counts


RUN = ", ".join(("id", "started_at", "ended_at", "stopped", "quick", *(count.name for count in fields(Counts))))


async def seen_quarantined(transaction: Transaction, *, most: int) -> int:
    """For roles that may not read `blobs`: how many are quarantined, `most` standing for that many or more."""
    found = await transaction.execute("SELECT wharf.blobs_quarantined(%s) AS blobs", [most])
    row = await found.fetchone()
    return int(row["blobs"]) if row else 0


class Integrity:
    """The statements of a verification. All under the role wharf_cleanup."""

    async def begin(self, transaction: Transaction, *, quick: bool) -> Run:
        """A new run. The caller makes sure that no other one lives: those without an end were killed. Old ones go."""
        await transaction.execute("DELETE FROM wharf.verify_runs WHERE started_at < now() - %s", [RUNS_KEPT])
        await transaction.execute("UPDATE wharf.verify_runs SET stopped = 'killed' WHERE stopped IS NULL")
        await transaction.execute("INSERT INTO wharf.verify_runs (id, quick) VALUES (%s, %s)", [new_id(), quick])
        [run] = await self.history(transaction, limit=1)
        return run

    async def report(self, transaction: Transaction, run: UUID, counts: Counts, *, stopped: Stopped | None) -> None:
        """What has come of the run so far; `stopped`: why it has ended, None where it goes on."""
        await transaction.execute(
            """
            UPDATE wharf.verify_runs
            SET checked = %(checked)s, bytes = %(bytes)s, corrupt = %(corrupt)s, missing = %(missing)s,
                unreadable = %(unreadable)s, restored = %(restored)s, strangers = %(strangers)s,
                quarantined = %(quarantined)s, stopped = %(stopped)s,
                ended_at = CASE WHEN %(stopped)s::text IS NOT NULL THEN clock_timestamp() END
            WHERE id = %(run)s
            """,
            {**asdict(counts), "stopped": stopped, "run": run},
        )

    async def history(self, transaction: Transaction, *, limit: int) -> list[Run]:
        """Newest first."""
        found = await transaction.execute(f"SELECT {RUN} FROM wharf.verify_runs ORDER BY id DESC LIMIT %s", [limit])
        return [
            Run(
                id=row["id"],
                started_at=row["started_at"],
                ended_at=row["ended_at"],
                stopped=row["stopped"],
                quick=row["quick"],
                counts=Counts(**{name: row[name] for name in asdict(Counts())}),
            )
            for row in await found.fetchall()
        ]

    async def least_recent(
        self, transaction: Transaction, *, before: datetime, after: Custody | None, limit: int
    ) -> list[Custody]:
        """Promised bytes that were not found right since `before`, the longest ago first; `after`: the last one of the
        page before."""
        found = await transaction.execute(
            """
            SELECT sha256, size, coalesce(verified_at, '-infinity')::text AS looked FROM wharf.blobs
            WHERE state = 'present' AND coalesce(verified_at, '-infinity') < %(before)s
              AND (coalesce(verified_at, '-infinity'), sha256) > (%(looked)s::timestamptz, %(sha256)s)
            ORDER BY coalesce(verified_at, '-infinity'), sha256 LIMIT %(limit)s
            """,
            {
                "before": before,
                "looked": after.looked if after else "-infinity",
                "sha256": after.sha256 if after else b"",
                "limit": limit,
            },
        )
        return [Custody(**row) for row in await found.fetchall()]

    async def in_order(self, transaction: Transaction, *, after: Custody | None, limit: int) -> list[Custody]:
        """Promised bytes, in the order of their SHA-256."""
        return await self._in_order(transaction, "present", after, limit)

    async def quarantined(self, transaction: Transaction, *, after: Custody | None, limit: int) -> list[Custody]:
        return await self._in_order(transaction, "quarantined", after, limit)

    async def found_right(self, transaction: Transaction, several: Sequence[bytes]) -> None:
        """Never waits: what somebody else holds now is looked at again next time."""
        await transaction.execute(
            """
            WITH free AS MATERIALIZED (
                SELECT sha256 FROM wharf.blobs WHERE sha256 = ANY (%s) AND state = 'present'
                FOR NO KEY UPDATE SKIP LOCKED
            )
            UPDATE wharf.blobs b SET verified_at = now() FROM free WHERE b.sha256 = free.sha256
            """,
            [list(several)],
        )

    async def lock(self, transaction: Transaction, sha256: bytes) -> str | None:
        """The blob's state, which nobody else changes until the transaction ends; None where it has gone."""
        found = await transaction.execute("SELECT state FROM wharf.blobs WHERE sha256 = %s FOR UPDATE", [sha256])
        row = await found.fetchone()
        return None if row is None else str(row["state"])

    async def quarantine(self, transaction: Transaction, sha256: bytes, fault: Fault) -> None:
        """Call it with the row locked and `present`."""
        await transaction.execute(
            "UPDATE wharf.blobs SET state = 'quarantined', fault = %s WHERE sha256 = %s", [fault, sha256]
        )

    async def restore(self, transaction: Transaction, sha256: bytes) -> None:
        """The bytes are in their place and right. Call it with the row locked and `quarantined`."""
        await transaction.execute(
            "UPDATE wharf.blobs SET state = 'present', fault = NULL, verified_at = now() WHERE sha256 = %s", [sha256]
        )

    async def count_quarantined(self, transaction: Transaction) -> Mapping[str, int]:
        """By fault."""
        found = await transaction.execute(
            "SELECT fault, count(*)::int AS blobs FROM wharf.blobs WHERE state = 'quarantined' GROUP BY fault"
        )
        return {row["fault"]: row["blobs"] for row in await found.fetchall()}

    async def files_lost(self, transaction: Transaction) -> Mapping[str, int]:
        """By the tenant's name: how many of its files have damaged or missing bytes."""
        found = await transaction.execute(
            """
            SELECT t.name, count(*)::int AS files
            FROM wharf.blobs b
            JOIN wharf.files f ON f.sha256 = b.sha256 AND f.deleted_at IS NULL
                AND (f.pinned OR f.expires_at IS NULL OR f.expires_at > now())
            JOIN wharf.tenants t ON t.id = f.tenant_id
            WHERE b.state = 'quarantined' GROUP BY t.name ORDER BY t.name
            """
        )
        return {row["name"]: row["files"] for row in await found.fetchall()}

    async def unnamed(self, transaction: Transaction, names: set[bytes], prefix: bytes) -> int:
        """How many of `names`, which all begin with the byte `prefix`, no row has."""
        found = await transaction.execute(
            "SELECT sha256 FROM wharf.blobs WHERE sha256 BETWEEN %s AND %s", [prefix, prefix + b"\xff" * 31]
        )
        return len(names - {row["sha256"] for row in await found.fetchall()})

    async def states(self, transaction: Transaction, several: Sequence[bytes]) -> Mapping[bytes, str]:
        """Of those that have a row."""
        found = await transaction.execute(
            "SELECT sha256, state FROM wharf.blobs WHERE sha256 = ANY (%s)", [list(set(several))]
        )
        return {row["sha256"]: row["state"] for row in await found.fetchall()}

    async def _in_order(self, transaction: Transaction, state: str, after: Custody | None, limit: int) -> list[Custody]:
        found = await transaction.execute(
            f"""
            SELECT sha256, size, '' AS looked FROM wharf.blobs
            WHERE state = '{state}' AND sha256 > %s ORDER BY sha256 LIMIT %s
            """,
            [after.sha256 if after else b"", limit],
        )
        return [Custody(**row) for row in await found.fetchall()]
