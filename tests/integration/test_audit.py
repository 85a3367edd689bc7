"""Receipts: added by the API for its own tenant, changed by nobody, removed by the cleanup when they are old; found by
index."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from custody import audit
from custody.audit import Action, Audit
from custody.database import ROLES
from custody.errors import CustodyError
from custody.ids import new_id
from custody.tenants import Principal
from custody.wire import Outcome, Receipt, Role

pytestmark = pytest.mark.postgres

RECEIPTS = 100_000
"""That acme has in `seasoned`; another tenant has as many."""

STEP = timedelta(seconds=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
KEY, RARE_KEY, FILE, RARE_FILE = (UUID(int=number) for number in range(1, 5))


def principal(tenant: UUID) -> Principal:
    return Principal(new_id(), Role.WRITER, tenant, "acme")


async def record(domain, tenant: UUID, action: Action = Action.FILE_DELETED, reads="all", **said) -> Principal:
    who = principal(tenant)
    async with domain.api.transaction(tenant) as transaction:
        await Audit(reads).record(transaction, who, "a-request", action, **said)
    return who


async def page(domain, tenant: UUID, **wanted) -> list[Receipt]:
    async with domain.api.transaction(tenant) as transaction:
        return await audit.page(transaction, **{"before": None, "limit": 100, **wanted})


async def test_a_receipt_says_who_did_what_to_what(domain, acme):
    [file] = (await domain.keep(acme, b"bytes")).files
    job = new_id()
    who = await record(
        domain, acme, Action.JOB_SUBMITTED, files=[file, file], jobs=[job], names=["digits"], details={"a": 1}
    )
    [receipt] = await page(domain, acme)
    assert abs(receipt.at - datetime.now(UTC)) < timedelta(seconds=60)
    assert (receipt.key_id, receipt.request_id, receipt.action) == (who.key_id, "a-request", "job.submitted")
    assert [(each.id, each.sha256) for each in receipt.files] == [(file.id, file.sha256)]
    assert (receipt.jobs, receipt.names, receipt.details) == ([job], ["digits"], {"a": 1})
    assert (receipt.outcome, receipt.keys) == (Outcome.DONE, [])
    for named in (file.id, job):
        assert await page(domain, acme, object_id=named) == [receipt]
    assert await page(domain, acme, object_id=new_id()) == []


async def test_bytes_that_were_asked_for_without_a_file_are_named_by_their_sha256(domain, acme):
    await record(domain, acme, Action.FILE_SEEN, sha256=[b"\1" * 32])
    [receipt] = await page(domain, acme)
    assert [(each.id, each.sha256) for each in receipt.files] == [(None, "01" * 32)]


async def test_a_receipt_goes_where_its_transaction_goes(domain, acme):
    async with domain.api.transaction(acme) as transaction:
        await Audit("all").record(transaction, principal(acme), "r", Action.FILE_DELETED, jobs=[new_id()])
        await transaction.rollback()
    assert await page(domain, acme) == []
    assert domain.rows("SELECT object_id FROM wharf.audit_objects") == []


@pytest.mark.parametrize(
    ("reads", "kept"),
    [
        ("none", {"file.deleted"}),
        ("content", {"file.deleted", "file.read", "results.read"}),
        ("all", {"file.deleted", "file.read", "results.read", "file.seen", "job.listed"}),
    ],
)
async def test_which_reads_leave_a_receipt_is_a_setting(domain, acme, reads, kept):
    for action in ("file.deleted", "file.read", "results.read", "file.seen", "job.listed"):
        await record(domain, acme, Action(action), reads)
    assert {receipt.action for receipt in await page(domain, acme)} == kept


def test_whatever_is_no_read_always_leaves_a_receipt():
    reads = {action for action in Action if not Audit("none").keeps(action)}
    assert {action.value.partition(".")[2] for action in reads} == {"read", "seen", "listed"}


async def test_what_cannot_be_written_is_refused(domain, acme):
    domain.rows("REVOKE INSERT ON wharf.audit FROM wharf_api")
    with pytest.raises(CustodyError) as refused:
        await record(domain, acme)
    assert (refused.value.code, refused.value.kind.status) == ("audit_unavailable", 503)


async def test_filters_find_what_fits_all_of_them_newest_first(domain, acme):
    by = [await record(domain, acme, action, jobs=[FILE]) for action in (Action.FILE_READ, Action.FILE_DELETED)]
    newest, oldest = all_of_them = await page(domain, acme)
    assert await page(domain, acme, object_id=FILE) == all_of_them
    assert await page(domain, acme, key_id=by[0].key_id) == [oldest]
    assert await page(domain, acme, action="file.deleted", object_id=FILE) == [newest]
    assert await page(domain, acme, action="file.deleted", key_id=by[0].key_id) == []
    assert await page(domain, acme, request_id="a-request", limit=1) == [newest]
    assert await page(domain, acme, before=newest.id) == [oldest]
    assert await page(domain, acme, before=newest.id, object_id=FILE) == [oldest]
    assert await page(domain, acme, since=newest.at, until=newest.at) == []
    assert newest in await page(domain, acme, since=newest.at)
    assert newest not in await page(domain, acme, until=newest.at)
    assert newest in await page(domain, acme, until=newest.at + timedelta(milliseconds=1), before=new_id())
    assert await page(domain, acme, since=datetime(9999, 12, 31, tzinfo=UTC)) == []
    assert await page(domain, acme, since=datetime(1, 1, 1, tzinfo=UTC)) == all_of_them


async def test_tenants_see_their_own_receipts_only(domain, acme, globex):
    await record(domain, acme, jobs=[FILE])
    assert await page(domain, globex) == await page(domain, globex, object_id=FILE) == []
    for table in ("audit", "audit_objects"):
        async with domain.api.transaction(globex) as transaction:
            found = await transaction.execute(f"SELECT tenant_id FROM wharf.{table}")
            assert await found.fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            async with domain.api.transaction(globex) as transaction:
                await transaction.execute(INSERTS[table], [acme])


INSERTS = {
    "audit": """
        INSERT INTO wharf.audit (tenant_id, id, at, key_id, request_id, action, outcome)
        VALUES (%s, gen_random_uuid(), now(), gen_random_uuid(), 'r', 'file.read', 'done')
    """,
    "audit_objects": "INSERT INTO wharf.audit_objects VALUES (%s, gen_random_uuid(), gen_random_uuid())",
}


@pytest.mark.parametrize("role", ["postgres", *ROLES])
@pytest.mark.parametrize("table", ["audit", "audit_objects"])
async def test_nobody_changes_or_removes_a_receipt(domain, acme, role, table):
    await record(domain, acme, jobs=[FILE])
    for statement in (
        f"UPDATE wharf.{table} SET tenant_id = tenant_id",
        f"DELETE FROM wharf.{table}",
        f"TRUNCATE wharf.{table}",
    ):
        with psycopg.connect(domain.installation.url()) as connection:
            connection.execute(f"SET ROLE {role}")
            connection.execute("SELECT set_config('wharf.tenant', %s, true)", [str(acme)])
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    assert len(await page(domain, acme, object_id=FILE)) == 1


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("wharf_owner", "wharf_api")])
async def test_receipts_are_of_no_concern_to_other_processes(domain, role):
    for statement in ("SELECT id FROM wharf.audit", "SELECT receipt_id FROM wharf.audit_objects", INSERTS["audit"]):
        with (
            psycopg.connect(domain.installation.url(role)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement, [new_id()] if "%s" in statement else None)


async def test_the_cleanup_alone_forgets_and_only_what_is_old(domain, acme, globex):
    for tenant in (acme, globex):
        await record(domain, tenant, jobs=[FILE], keys=[KEY])
        for days in (29, 31, 40, 400):
            old(domain, tenant, days)
    assert forget(domain, days=36500, limit=10) == 0  # a time before 1970
    assert forget(domain, days=365, limit=10) == 2
    assert forget(domain, days=365, limit=10) == 0
    assert forget(domain, days=0, limit=3) == 3  # as if 30 were asked for
    assert forget(domain, days=-1, limit=10) == 1
    assert forget(domain, days=0, limit=10) == 0
    for tenant in (acme, globex):
        assert len(await page(domain, tenant)) == 2
        assert len(await page(domain, tenant, object_id=FILE)) == 2
    assert domain.rows("SELECT count(*) AS n FROM wharf.audit_objects WHERE object_id <> %s", [KEY]) == [{"n": 4}]
    for role in ("wharf_api", "wharf_worker", "wharf_relay"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            forget(domain, days=365, limit=1, role=role)


def old(domain, tenant: UUID, days: int) -> None:
    """A receipt so many days old."""
    moment = datetime.now(UTC) - timedelta(days=days)
    values = {"id": UUID(int=int(moment.timestamp() * 1000) << 80 | days), "tenant": tenant, "at": moment, "file": FILE}
    domain.rows(
        """
        INSERT INTO wharf.audit (tenant_id, id, at, key_id, request_id, action, outcome, files)
        VALUES (%(tenant)s, %(id)s, %(at)s, gen_random_uuid(), 'r', 'file.read', 'done', ARRAY[%(file)s])
        """,
        values,
    )
    domain.rows("INSERT INTO wharf.audit_objects VALUES (%(tenant)s, %(file)s, %(id)s)", values)


def forget(domain, *, days: int, limit: int, role: str = "wharf_cleanup") -> int:
    with psycopg.connect(domain.installation.url(role)) as connection:
        [(gone,)] = connection.execute("SELECT wharf.forget_receipts(%s, %s)", [days, limit]).fetchall()
    return gone


@pytest.fixture(scope="module")
def seasoned(shared_installation) -> tuple[str, UUID]:
    """Many receipts of two tenants, in turns; three of acme's are by the rare key, and so on."""
    acme, globex = new_id(), new_id()
    with psycopg.connect(shared_installation.url(), autocommit=True) as connection:
        for number, tenant in enumerate((acme, globex)):
            connection.execute("INSERT INTO wharf.tenants VALUES (%s, %s)", [tenant, f"tenant-{number}"])
            connection.execute(
                """
                INSERT INTO wharf.audit (tenant_id, id, at, key_id, request_id, action, outcome, files)
                SELECT %(tenant)s, id, at, CASE WHEN rare THEN %(rare_key)s ELSE %(key)s END, 'request-' || n,
                    CASE WHEN rare THEN 'file.deleted' ELSE 'file.read' END, 'done',
                    ARRAY[CASE WHEN rare THEN %(rare_file)s ELSE %(file)s END]
                FROM (
                    SELECT n, at, n %% (%(receipts)s / 3) = 9 AS rare,
                        (left(wharf.first_id_at(at)::text, 24) || lpad(to_hex(n), 12, '0'))::uuid AS id
                    FROM (SELECT n, %(begin)s + n * %(step)s AS at FROM generate_series(1, %(receipts)s) n) moments
                ) receipts
                """,
                {
                    "tenant": tenant, "receipts": RECEIPTS, "begin": BEGIN, "step": STEP, "key": KEY,
                    "rare_key": RARE_KEY, "file": FILE, "rare_file": RARE_FILE,
                },
            )  # fmt: skip
        connection.execute(
            "INSERT INTO wharf.audit_objects SELECT tenant_id, unnest(files), id FROM wharf.audit ORDER BY id"
        )
        connection.execute("ANALYZE")
    return shared_installation.url("wharf_api"), acme


class Recorded:
    """A transaction that remembers the statements it was sent."""

    def __init__(self, transaction) -> None:
        self._transaction = transaction
        self.sent: list[tuple] = []

    async def execute(self, statement, values, *, prepare):
        assert not prepare  # else the server would keep one plan for rare and common keys
        self.sent.append((statement, values))
        return await self._transaction.execute(statement, values, prepare=prepare)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, 50),
        ({"before": UUID(int=int(BEGIN.timestamp() * 1000) + 500_000 << 80)}, 50),
        ({"key_id": KEY}, 50),
        ({"key_id": RARE_KEY}, 3),
        ({"key_id": RARE_KEY, "since": BEGIN, "until": BEGIN + timedelta(seconds=RECEIPTS // 2)}, 2),
        ({"key_id": new_id()}, 0),
        ({"action": "file.deleted"}, 3),
        ({"request_id": "request-77"}, 1),
        ({"object_id": FILE}, 50),
        ({"object_id": RARE_FILE}, 3),
        ({"object_id": FILE, "until": BEGIN + timedelta(seconds=10)}, 8),
        ({"object_id": RARE_FILE, "key_id": RARE_KEY}, 3),
        ({"since": BEGIN + timedelta(seconds=500), "until": BEGIN + timedelta(seconds=510)}, 10),
    ],
)
async def test_every_filter_reads_an_index_and_few_rows(seasoned, wanted, found):
    url, tenant = seasoned
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as transaction:
        await transaction.execute("SELECT set_config('wharf.tenant', %s, true)", [str(tenant)])
        recorded = Recorded(transaction)
        assert len(await audit.page(recorded, **{"before": None, "limit": 50, **wanted})) == found
        [(statement, values)] = recorded.sent
        explained = await transaction.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
        [row] = await explained.fetchall()
    nodes = list(walk(row["QUERY PLAN"][0]["Plan"]))
    said = json.dumps(row["QUERY PLAN"], indent=1)
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}, said
    assert sum(rows_read(node) for node in nodes if "Relation Name" in node) <= 2 * 50 + 10, said


def rows_read(node: dict) -> float:
    return (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]


def walk(node: dict) -> Iterator[dict]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)
