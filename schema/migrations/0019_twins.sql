-- not in a transaction
-- Of a tenant's tasks that want the same, one runs at a time. Whoever claims looks here first; two who claim at the same
-- moment are kept apart by it.

CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS tasks_at_work ON wharf.tasks (sha256, tenant_id, recipe)
    WHERE state = 'running' AND recipe_attempt = attempt;

-- Those that wait for it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS tasks_waiting ON wharf.tasks (sha256, tenant_id, recipe)
    WHERE state = 'queued' AND recipe IS NOT NULL AND recipe_attempt IS NULL;
