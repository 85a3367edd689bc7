"""What KEDA asks PostgreSQL, as a worker's login or one of its own."""

import re
import secrets
from typing import Any

import psycopg
import pytest

from custody.database import Database
from tests.charts.rendering import CHART, QUEUED, rendered
from tests.conftest import Installation
from tests.support.domain import POOL, Domain


async def test_keda_s_question_counts_what_waits_unless_the_pool_is_paused(
    installation: Installation, api_database: Database, worker_database: Database
) -> None:
    domain = Domain(installation, api_database, worker_database)
    tenant = domain.add_tenant("acme")
    await domain.submit(tenant, inputs=3)
    await domain.submit(tenant, inputs=2, pool="another")
    values: dict[str, Any] = QUEUED | {"pools": [{"name": "a", "model": POOL, "autoscaling": {"enabled": True}}]}
    [scaled] = [o for o in rendered(values) if o["kind"] == "ScaledObject"]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    with psycopg.connect(installation.url("wharf_worker"), autocommit=True) as worker:
        assert worker.execute(query).fetchall() == [(3,)]
        domain.rows("INSERT INTO wharf.pools (name, state) VALUES (%s, 'paused')", [POOL])
        assert worker.execute(query).fetchall() == [(0,)]
        domain.rows("UPDATE wharf.pools SET state = 'draining'")
        assert worker.execute(query).fetchall() == [(3,)]
        # More than keeps the most workers busy is not counted: there may be a million.
        scaling = {"enabled": True, "maxReplicas": 2, "backlogPerWorker": 1}
        values["pools"][0]["autoscaling"] = scaling
        [scaled] = [o for o in rendered(values) if o["kind"] == "ScaledObject"]
        assert worker.execute(scaled["spec"]["triggers"][0]["metadata"]["query"]).fetchall() == [(2,)]


async def test_keda_s_own_login_sees_how_much_waits_and_nothing_else(
    installation: Installation, api_database: Database, worker_database: Database
) -> None:
    domain = Domain(installation, api_database, worker_database)
    await domain.submit(domain.add_tenant("acme"), inputs=3)
    values = QUEUED | {"pools": [{"name": "a", "model": POOL, "autoscaling": {"enabled": True}}]}
    [scaled] = [o for o in rendered(values) if o["kind"] == "ScaledObject"]
    login = f"keda_{secrets.token_hex(4)}"
    statements = re.findall(r"^    ((?:CREATE|GRANT) .*\bkeda\b.*;)$", (CHART / "README.md").read_text(), re.MULTILINE)
    assert len(statements) == 5
    try:
        for statement in statements:
            domain.rows(re.sub(r"\bkeda\b", login, statement))
        with psycopg.connect(installation.url(login), autocommit=True) as keda:
            assert keda.execute(scaled["spec"]["triggers"][0]["metadata"]["query"]).fetchall() == [(3,)]
            for secret in ("SELECT tenant_id FROM wharf.tasks", "SELECT id FROM wharf.files"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    keda.execute(secret)
    finally:
        domain.rows(f"DROP OWNED BY {login}")
        domain.rows(f"DROP ROLE {login}")
