"""`wharf migrate` killed with -9 before every message that it sends: the next run completes it."""

import asyncio
import signal

from broker.maintenance.migrate.migration import migrate
from contracts.dump import schema_of
from custody.database import NEEDED_MIGRATION
from tests.integration.test_migrate_disturbed import fork, run


def test_wherever_it_is_killed_the_next_run_completes_it(fresh):
    asyncio.run(migrate(fresh, None))
    wanted = schema_of(fresh)
    completed = set()
    for message in range(1, 200):
        run(fresh, "DROP SCHEMA IF EXISTS wharf CASCADE")
        process = fork(fresh, message)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        left = schema_of(fresh) if run(fresh, "SELECT oid FROM pg_namespace WHERE nspname = 'wharf'") else ""
        if left not in completed:
            asyncio.run(migrate(fresh, None))
            assert schema_of(fresh) == wanted
            completed.add(left)
    assert len(completed) > NEEDED_MIGRATION
