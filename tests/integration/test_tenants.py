"""Tenants and roles: row-level security is the wall, tried in plain SQL as each process's own role."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from broker.maintenance.migrate.migration import first_key
from custody import erasure, idempotency, tenants
from custody.audit import Action, Audit
from custody.cache import Computation
from custody.database import Database
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.tasks import Tasks
from custody.wire import Role
from tests.support.domain import MODEL, Domain

pytestmark = pytest.mark.postgres

PROCESS_ROLES = ["wharf_api", "wharf_worker", "wharf_relay", "wharf_cleanup"]
WALLED = [
    "api_keys", "audit", "audit_objects", "cached_results", "files", "idempotency_keys", "jobs", "purged_files",
    "purges", "results", "tasks", "tenants",
]  # fmt: skip
SHARED = ["blobs", "cleanup_runs", "installation", "migrations", "models", "pools", "relays", "verify_runs", "workers"]
"""Tables that hold nothing of a tenant."""

OUT_OF_REACH = ("released", "suspects")
"""What the API has no right to: only the fleet's processes, and the cleanup, read and write it."""

CHANGES = {
    "api_keys": "revoked_at = now()",
    "audit": "action = 'file.read'",
    "audit_objects": "object_id = gen_random_uuid()",
    "cached_results": "detections = '[]'",
    "files": "deleted_at = now()",
    "idempotency_keys": "status = 500",
    "jobs": "state = 'cancelled', finished_at = now()",
    "purged_files": "purge_id = gen_random_uuid()",
    "purges": "results = 0",
    "results": "detections = '[]'",
    "tasks": "state = 'cancelled', lease_until = NULL, ended_at = now()",
    "tenants": "name = 'mine'",
}

INSERTS = {
    "api_keys": """
        INSERT INTO wharf.api_keys (id, tenant_id, name, role, secret_sha256)
        VALUES (gen_random_uuid(), %(tenant)s, 'back door', 'admin', sha256('open'))
    """,
    "audit": """
        INSERT INTO wharf.audit (tenant_id, id, at, key_id, request_id, action, outcome)
        VALUES (%(tenant)s, gen_random_uuid(), now(), gen_random_uuid(), 'r', 'file.read', 'done')
    """,
    "audit_objects": """
        INSERT INTO wharf.audit_objects (tenant_id, object_id, receipt_id)
        VALUES (%(tenant)s, gen_random_uuid(), gen_random_uuid())
    """,
    "cached_results": """
        INSERT INTO wharf.cached_results
            (sha256, tenant_id, recipe, model, model_version, model_digest, detections, timings)
        VALUES (%(sha256)s, %(tenant)s, sha256('recipe'), 'digits', 1, sha256('model'), '[]', '{}')
    """,
    "files": """
        INSERT INTO wharf.files (id, tenant_id, sha256, size, media_type, width, height)
        VALUES (gen_random_uuid(), %(tenant)s, %(sha256)s, 1, 'image/png', 1, 1)
    """,
    "idempotency_keys": """
        INSERT INTO wharf.idempotency_keys (tenant_id, key, fingerprint, status, resource)
        VALUES (%(tenant)s, 'mine', sha256('mine'), 200, '{}')
    """,
    "jobs": """
        INSERT INTO wharf.jobs (id, tenant_id, model, parameters, priority, total)
        VALUES (gen_random_uuid(), %(tenant)s, 'digits', '{}', 'batch', 1)
    """,
    "purged_files": """
        INSERT INTO wharf.purged_files (file_id, tenant_id, purge_id)
        VALUES (gen_random_uuid(), %(tenant)s, gen_random_uuid())
    """,
    "purges": """
        INSERT INTO wharf.purges (id, tenant_id, sha256, file_ids, results, tasks_cancelled, bytes_gone_by)
        VALUES (gen_random_uuid(), %(tenant)s, %(sha256)s, '{}', 0, 0, now())
    """,
    "results": """
        INSERT INTO wharf.results
            (task_id, tenant_id, attempt, model, model_version, model_digest, detections, timings)
        VALUES (%(task)s, %(tenant)s, 1, 'digits', 1, sha256('model'), '[]', '{}')
    """,
    "tasks": """
        INSERT INTO wharf.tasks (id, tenant_id, job_id, input, sha256, size, media_type, width, height, orientation,
            pool, class)
        VALUES (gen_random_uuid(), %(tenant)s, %(job)s, 99, %(sha256)s, 1, 'image/png', 1, 1, 1, 'digits', 'batch')
    """,
    "tenants": "INSERT INTO wharf.tenants (id, name) VALUES (gen_random_uuid(), 'new')",
}


@dataclass(frozen=True)
class Furnished:
    """An installation with rows of two tenants in every table. `known`: what `acme` might know of `globex`'s."""

    installation: Any
    acme: UUID
    globex: UUID
    known: dict[str, object]

    def run(self, role: str, tenant: UUID | None, statement: str, values=None) -> tuple[int, list[tuple]]:
        """What a statement does and gives as a process would send it; afterwards it is undone."""
        with psycopg.connect(self.installation.url(role)) as connection:
            connection.execute("SELECT set_config('wharf.tenant', %s, true)", [str(tenant or "")])
            try:
                done = connection.execute(statement, values)
                return done.rowcount, done.fetchall() if done.description else []
            finally:
                connection.rollback()


@pytest.fixture(scope="module")
def furnished(shared_installation) -> Furnished:
    async def furnish() -> Furnished:
        url = shared_installation.url
        async with (
            Database(url("wharf_api"), name="api") as api,
            Database(url("wharf_worker"), name="worker") as worker,
        ):
            domain = Domain(shared_installation, api, worker)
            acme, globex = domain.add_tenant("acme"), domain.add_tenant("globex")
            known = [await rows_of(domain, tenant) for tenant in (acme, globex)]
        return Furnished(shared_installation, acme, globex, known[1])

    return asyncio.run(furnish())


async def rows_of(domain: Domain, tenant: UUID) -> dict[str, object]:
    """A row of this tenant in every table."""
    file = (await domain.keep(tenant, tenant.bytes)).files[0]
    domain.tasks = Tasks(computes=Computation(bytes.fromhex(MODEL.digest), "1"))
    job = await domain.submit_on(tenant, [file.id], cache=True)
    [claim] = await domain.claim()
    await domain.end(claim)
    async with domain.api.transaction(tenant) as transaction:
        await idempotency.begin(transaction, tenant, "key", bytes(32))
        owner = tenants.Principal(new_id(), Role.ADMIN, tenant, "whoever")
        await tenants.create_key(transaction, owner, "laptop", Role.READER, None)
        purged = (await domain.keep(tenant, b"taken back by " + tenant.bytes)).files[0]
        assert await erasure.purge_file(transaction, purged.id, gone_within=1.0)
        await Audit("content").record(transaction, owner, "a-request", Action.JOB_SUBMITTED, jobs=[job])
    for table in WALLED:
        assert domain.rows(f"SELECT 1 FROM wharf.{table} WHERE {owner_column(table)} = %s", [tenant])
    return {"tenant": tenant, "sha256": bytes.fromhex(file.sha256), "job": job, "task": claim.task_id}


def owner_column(table: str) -> str:
    return "id" if table == "tenants" else "tenant_id"


async def test_every_table_has_a_wall_or_holds_nothing_of_a_tenant(domain):
    """A new table is walled off, or it is written down above that it need not be."""
    found = domain.rows(
        """
        SELECT c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS walled,
               EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id') AS of_a_tenant
        FROM pg_class c WHERE c.relnamespace = 'wharf'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
        """
    )
    assert {row["name"] for row in found} == {*WALLED, *SHARED, *OUT_OF_REACH}
    for row in found:
        assert row["walled"] == (row["name"] not in SHARED), row
        assert row["name"] not in SHARED or not row["of_a_tenant"], row
    for table in OUT_OF_REACH:
        rights = "SELECT has_any_column_privilege('wharf_api', %s, 'SELECT, INSERT, UPDATE, REFERENCES') AS any"
        assert domain.rows(rights, [f"wharf.{table}"]) == [{"any": False}]


async def test_every_policy_of_the_api_asks_for_the_tenant(domain):
    found = domain.rows(
        """
        SELECT tablename, cmd, qual, with_check FROM pg_policies
        WHERE schemaname = 'wharf' AND roles && '{wharf_api,public}'
        """
    )
    assert {row["tablename"] for row in found} == set(WALLED)
    for row in found:
        column = owner_column(row["tablename"])
        for condition in (row["qual"], row["with_check"]):
            assert condition is None or condition.startswith(f"({column} = ( SELECT wharf.current_tenant()"), row


@pytest.mark.parametrize("table", WALLED)
def test_a_tenant_sees_its_own_rows_only(furnished, table):
    for tenant in (furnished.acme, furnished.globex):
        _, owners = furnished.run("wharf_api", tenant, f"SELECT DISTINCT {owner_column(table)} FROM wharf.{table}")
        assert owners == [(tenant,)]


@pytest.mark.parametrize("table", WALLED)
def test_a_tenant_changes_no_row_of_another_and_adds_none_for_it(furnished, table):
    owner = owner_column(table)
    for statement in (
        f"UPDATE wharf.{table} SET {CHANGES[table]} WHERE {owner} = %(tenant)s",
        f"DELETE FROM wharf.{table} WHERE {owner} = %(tenant)s",
        f"TRUNCATE wharf.{table} CASCADE",
        f"UPDATE wharf.{table} SET {owner} = %(tenant)s",
        INSERTS[table],
    ):
        assert refused_or_void(furnished, furnished.acme, statement), statement


@pytest.mark.parametrize("table", WALLED)
def test_nothing_is_seen_changed_or_added_where_no_tenant_is_set(furnished, table):
    assert furnished.run("wharf_api", None, f"SELECT count(*) FROM wharf.{table}") == (1, [(0,)])
    for statement in (f"UPDATE wharf.{table} SET {CHANGES[table]}", INSERTS[table]):
        assert refused_or_void(furnished, None, statement), statement


@pytest.mark.parametrize("table", ["files", "idempotency_keys", "jobs", "tasks", "api_keys"])
def test_the_same_changes_work_for_the_tenant_itself(furnished, table):
    """Else the refusals above would prove nothing."""
    own = furnished.known
    update = f"UPDATE wharf.{table} SET {CHANGES[table]}"
    if table in ("jobs", "tasks"):
        update = f"UPDATE wharf.{table} SET state = state"
    for statement in (update, INSERTS[table]):
        assert furnished.run("wharf_api", furnished.globex, statement, own)[0] == 1


async def test_the_tenant_of_a_transaction_ends_with_it(domain, acme):
    """Behind a transaction pooler the connection is somebody else's next."""
    seen = []
    async with domain.api.transaction(acme) as transaction:
        for _ in range(2):
            found = await transaction.execute("SELECT wharf.current_tenant() AS tenant")
            seen.append((await found.fetchone())["tenant"])
            await transaction.commit()
    assert seen == [acme, None]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT sha256 FROM wharf.blobs",
        "INSERT INTO wharf.blobs (sha256, size) VALUES (sha256('x'), 1)",
        "UPDATE wharf.blobs SET state = 'deleting'",
        "SELECT secret_sha256 FROM wharf.api_keys",
        "SELECT * FROM wharf.api_keys",
        "UPDATE wharf.api_keys SET role = 'admin'",
        "UPDATE wharf.api_keys SET secret_sha256 = sha256('mine')",
        "UPDATE wharf.tenants SET operator = true",
        "UPDATE wharf.files SET sha256 = sha256('x')",
        "UPDATE wharf.tasks SET attempt = 0",
        "UPDATE wharf.installation SET volume_id = gen_random_uuid()",
        "INSERT INTO wharf.models (name, version, digest, path, task, classes, input_width, input_height)"
        " VALUES ('mine', 1, sha256('x'), 'x', 'detect', '[]', 1, 1)",
        "SELECT checksum FROM wharf.migrations",
        "DELETE FROM wharf.migrations",
        "UPDATE wharf.audit SET outcome = 'done'",
        "DELETE FROM wharf.audit",
        "SELECT wharf.forget_receipts(365, 1)",
        "CREATE TABLE wharf.mine (id int)",
        "ALTER TABLE wharf.files DISABLE ROW LEVEL SECURITY",
        "SET ROLE wharf_owner",
        "SET ROLE wharf_worker",
        "SELECT wharf.open_tenant('initech', gen_random_uuid())",
        "SELECT wharf.set_pool_state('digits', 'paused')",
        "SELECT wharf.retire_model('digits', NULL)",
        "SELECT wharf.require_operator()",
        "SELECT wharf.tasks_of_picture(gen_random_uuid(), sha256('x'))",
        "SELECT wharf.suspect(sha256('x'), '-infinity')",
        "DELETE FROM wharf.results",
        "INSERT INTO wharf.results (task_id, tenant_id, attempt, detections) VALUES (NULL, NULL, 1, '[]')",
        "INSERT INTO wharf.cached_results (sha256) VALUES (sha256('x'))",
        "UPDATE wharf.purges SET results = 0",
        "INSERT INTO wharf.pools (name, state) VALUES ('digits', 'paused')",
        "UPDATE wharf.models SET state = 'retired'",
        "INSERT INTO wharf.relays (name) VALUES ('mine')",
    ],
)
def test_the_api_may_not(furnished, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        furnished.run("wharf_api", furnished.acme, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM wharf.files",
        "SELECT id FROM wharf.api_keys",
        "SELECT id FROM wharf.tenants",
        "SELECT key FROM wharf.idempotency_keys",
        "SELECT sha256 FROM wharf.blobs",
        "SELECT detections FROM wharf.results",
        "SELECT detections FROM wharf.cached_results",
        "UPDATE wharf.cached_results SET detections = '[]'",
        "UPDATE wharf.results SET detections = '[]'",
        "DELETE FROM wharf.results",
        "UPDATE wharf.tasks SET tenant_id = gen_random_uuid()",
        "UPDATE wharf.tasks SET sha256 = sha256('x')",
        "INSERT INTO wharf.jobs (id) VALUES (gen_random_uuid())",
        "SELECT * FROM wharf.authenticate(sha256('x'))",
        "SELECT wharf.take_blob(sha256('x'), 1)",
        "SELECT wharf.blob_present(sha256('x'))",
        "SELECT wharf.hold_blobs(ARRAY[sha256('x')])",
        "SELECT wharf.purge(sha256('x'), gen_random_uuid(), interval '1 day')",
        "SELECT wharf.set_pool_state('digits', 'paused')",
        "SELECT wharf.retire_model('digits', NULL)",
        "SELECT wharf.pool_backlog('digits', 1)",
        "UPDATE wharf.models SET state = 'active'",
        "SET ROLE wharf_owner",
    ],
)
def test_a_worker_may_not(furnished, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        furnished.run("wharf_worker", None, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM wharf.files",
        "SELECT id FROM wharf.api_keys",
        "SELECT id FROM wharf.tenants",
        "SELECT sha256 FROM wharf.blobs",
        "SELECT detections FROM wharf.results",
        "INSERT INTO wharf.results (task_id) VALUES (gen_random_uuid())",
        "INSERT INTO wharf.tasks (id) VALUES (gen_random_uuid())",
        "INSERT INTO wharf.jobs (id) VALUES (gen_random_uuid())",
        "UPDATE wharf.tasks SET sha256 = sha256('x')",
        "UPDATE wharf.tasks SET attempt = 0",
        "DELETE FROM wharf.tasks",
        "SELECT wharf.report_corrupt(gen_random_uuid(), 1)",
        "SELECT wharf.set_pool_state('digits', 'paused')",
        "UPDATE wharf.pools SET state = 'paused'",
        "SET ROLE wharf_owner",
    ],
)
def test_a_relay_may_not(furnished, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        furnished.run("wharf_relay", None, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT filename FROM wharf.files",
        "SELECT filename FROM wharf.tasks",
        "SELECT metadata FROM wharf.jobs",
        "SELECT detections FROM wharf.results",
        "SELECT id FROM wharf.api_keys",
        "INSERT INTO wharf.files (id) VALUES (gen_random_uuid())",
        "UPDATE wharf.files SET sha256 = sha256('x')",
        "UPDATE wharf.results SET detections = '[]'",
        "DELETE FROM wharf.audit",
        "DELETE FROM wharf.purges",
        "DELETE FROM wharf.models",
        "SELECT wharf.purge(sha256('x'), gen_random_uuid(), interval '1 day')",
        "SET ROLE wharf_owner",
    ],
)
def test_a_cleanup_may_not(furnished, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        furnished.run("wharf_cleanup", None, statement)


async def test_a_worker_stores_no_result_under_another_tenant_than_its_tasks(domain, acme, globex):
    await domain.submit(acme)
    [claim] = await domain.claim()
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await run(domain.worker, None, INSERTS["results"], {"task": claim.task_id, "tenant": globex})
    assert await domain.end(claim)
    assert domain.rows("SELECT tenant_id FROM wharf.results") == [{"tenant_id": acme}]


async def test_a_tenant_puts_no_task_into_anothers_job(domain, acme, globex):
    file = (await domain.keep(acme, b"a picture")).files[0]
    job = await domain.submit(globex)
    values = {"tenant": acme, "job": job, "sha256": bytes.fromhex(file.sha256)}
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await run(domain.api, acme, INSERTS["tasks"], values)


async def test_no_process_role_owns_a_thing_or_goes_around_the_wall(domain):
    roles = domain.rows(
        """
        SELECT r.rolname AS name,
               r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication AS mighty,
               EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid) AS member_of_another,
               EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid)
               OR EXISTS (SELECT FROM pg_proc p WHERE p.proowner = r.oid)
               OR EXISTS (SELECT FROM pg_namespace n WHERE n.nspowner = r.oid)
               OR EXISTS (SELECT FROM pg_database d WHERE d.datdba = r.oid) AS owner
        FROM pg_roles r WHERE r.rolname = ANY (%s)
        """,
        [PROCESS_ROLES],
    )
    nothing = {"mighty": False, "member_of_another": False, "owner": False}
    assert sorted(roles, key=lambda row: row["name"]) == [{"name": name, **nothing} for name in sorted(PROCESS_ROLES)]
    assert domain.rows("SELECT rolsuper OR rolbypassrls AS mighty FROM pg_roles WHERE rolname = 'wharf_owner'") == [
        {"mighty": False}
    ]


async def test_everything_in_the_schema_belongs_to_the_owners_role(domain):
    assert domain.rows(
        """
        SELECT DISTINCT pg_get_userbyid(owner) AS owner FROM (
            SELECT relowner AS owner FROM pg_class WHERE relnamespace = 'wharf'::regnamespace
            UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'wharf'::regnamespace
            UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname = 'wharf') every
        """
    ) == [{"owner": "wharf_owner"}]


async def test_no_function_that_runs_as_the_owner_is_for_everybody_or_trusts_a_search_path(domain):
    found = domain.rows(
        """
        SELECT p.proname, p.proconfig, has_function_privilege('public', p.oid, 'EXECUTE') AS public
        FROM pg_proc p WHERE p.pronamespace = 'wharf'::regnamespace AND p.prosecdef
        """
    )
    assert len(found) >= 5
    for row in found:
        assert not row["public"], row
        assert row["proconfig"] == ['search_path=""'], row


@pytest.fixture
def logins(domain):
    """Logins that a process must refuse, by what is wrong with them."""
    names = {"member of the owner": "test_of_owner", "bypasses": "test_bypasses", "superuser": "test_superuser"}
    domain.rows(f"CREATE ROLE {names['member of the owner']} LOGIN IN ROLE wharf_owner")
    domain.rows(f"CREATE ROLE {names['bypasses']} LOGIN BYPASSRLS IN ROLE wharf_api")
    domain.rows(f"CREATE ROLE {names['superuser']} LOGIN SUPERUSER")
    yield names
    for name in names.values():
        domain.rows(f"DROP ROLE {name}")


@pytest.mark.parametrize("fault", ["member of the owner", "bypasses", "superuser"])
async def test_no_process_starts_as_a_role_that_goes_around_the_wall(domain, logins, fault):
    with pytest.raises(StartError, match="row-level security"):
        await Database(domain.installation.url(logins[fault]), name="test").open()


@pytest.mark.parametrize("role", PROCESS_ROLES)
async def test_processes_start_as_their_own_roles(domain, role):
    async with Database(domain.installation.url(role), name="test"):
        pass


async def test_a_process_refuses_a_database_that_is_not_there_or_was_never_migrated(domain, postgres):
    with pytest.raises(StartError, match=r"does not answer.*\n.*for example"):
        await Database(postgres.url("wharf_api", "nowhere"), name="test").open()
    with pytest.raises(StartError, match="wharf migrate"):
        await Database(postgres.url("wharf_api", "postgres"), name="test").open()


# Keys


async def test_a_key_tells_who_is_asking_until_it_is_revoked(domain, acme):
    owner = tenants.Principal(new_id(), Role.ADMIN, acme, "acme")
    async with domain.api.transaction(acme) as transaction:
        key = await tenants.create_key(transaction, owner, "laptop", Role.WRITER, None)
    asked = await authenticate(domain, key.secret)
    assert asked == tenants.Principal(key.id, Role.WRITER, acme, "acme")
    assert await authenticate(domain, key.secret + "x") is None
    async with domain.api.transaction(acme) as transaction:
        assert await tenants.revoke_key(transaction, owner, key.id)
        assert await tenants.revoke_key(transaction, owner, key.id)
        assert not await tenants.revoke_key(transaction, owner, new_id())
    assert await authenticate(domain, key.secret) is None


async def test_a_secret_is_kept_nowhere(domain, acme):
    owner = tenants.Principal(new_id(), Role.ADMIN, acme, "acme")
    async with domain.api.transaction(acme) as transaction:
        key = await tenants.create_key(transaction, owner, "laptop", Role.WRITER, None)
        listed = await tenants.list_keys(transaction, owner)
    assert [one.id for one in listed] == [key.id]
    assert key.secret not in str(listed) + str(domain.rows("SELECT * FROM wharf.api_keys"))


async def test_a_tenant_lists_and_revokes_its_own_keys_only(domain, acme, globex):
    mine, theirs = [tenants.Principal(new_id(), Role.ADMIN, tenant, "whoever") for tenant in (acme, globex)]
    async with domain.api.transaction(globex) as transaction:
        key = await tenants.create_key(transaction, theirs, "laptop", Role.ADMIN, None)
    for owner in (mine, theirs):
        async with domain.api.transaction(acme) as transaction:
            assert await tenants.list_keys(transaction, owner) == []
            assert not await tenants.revoke_key(transaction, owner, key.id)
    assert await authenticate(domain, key.secret)


async def test_only_the_operator_makes_keys_for_another_tenant(domain, acme):
    owner = tenants.Principal(new_id(), Role.ADMIN, acme, "acme")

    async def make(owner: tenants.Principal, tenant: str):
        async with domain.api.transaction(owner.tenant_id) as transaction:
            return await tenants.create_key(transaction, owner, "laptop", Role.ADMIN, tenant)

    for name in ("globex", "default"):
        with pytest.raises(CustodyError) as refused:
            await make(owner, name)
        assert refused.value.code == "forbidden"
    assert (await make(owner, "acme")).tenant == "acme"
    operator = await authenticate(domain, await first_key(domain.installation.url(), "default"))
    keys = await asyncio.gather(*(make(operator, "globex") for _ in range(5)))
    asked = [await authenticate(domain, key.secret) for key in keys]
    assert {one.tenant for one in asked} == {"globex"}
    assert len({one.tenant_id for one in asked}) == 1
    assert asked[0].tenant_id not in (operator.tenant_id, acme)


async def authenticate(domain: Domain, secret: str) -> tenants.Principal | None:
    async with domain.api.transaction() as transaction:
        return await tenants.authenticate(transaction, secret)


async def run(database: Database, tenant: UUID | None, statement: str, values=None) -> int:
    async with database.transaction(tenant) as transaction:
        return (await transaction.execute(statement, values)).rowcount


def refused_or_void(furnished: Furnished, tenant: UUID | None, statement: str) -> bool:
    try:
        rows, _ = furnished.run("wharf_api", tenant, statement, furnished.known)
    except psycopg.errors.InsufficientPrivilege:
        return True
    return rows == 0
