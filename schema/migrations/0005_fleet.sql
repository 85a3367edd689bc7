-- The fleet: tasks released to a queue by relays, deadlines, pools that pause, and inputs that can never work.

DROP INDEX wharf.tasks_queue;
CREATE INDEX tasks_ready ON wharf.tasks (pool, class, tenant_id, id) WHERE state = 'queued';

-- The tasks that a message in a queue names, from just before it is published until the task is claimed. A table of its
-- own, since a task's row has many indexes; not logged, since what a crash takes from it costs a second message, which
-- is void. `tasks.released_at` is copied from here with the claim.
CREATE UNLOGGED TABLE wharf.released (
    pool        text NOT NULL,
    class       text NOT NULL,
    tenant_id   uuid NOT NULL,
    task_id     uuid NOT NULL,
    released_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool, class, tenant_id, task_id)
);
ALTER TABLE wharf.released ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.released FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.released TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY fleet_all ON wharf.released TO wharf_relay, wharf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON wharf.released TO wharf_relay, wharf_worker;

-- `failed` ran and failed, `unprocessable` can never work.
ALTER TABLE wharf.tasks
    DROP CONSTRAINT tasks_state_check,
    DROP CONSTRAINT tasks_check4,
    ADD CONSTRAINT tasks_state_check
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'unprocessable', 'cancelled')),
    ADD CONSTRAINT tasks_check4 CHECK (state NOT IN ('failed', 'unprocessable') OR error_code IS NOT NULL);

-- `expires_at`: what has not ended by then does not begin, and the job becomes `expired`. `traceparent`: of the request
-- that submitted it (W3C), so that its trace goes on in relays and workers.
ALTER TABLE wharf.jobs
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN traceparent text CHECK (length(traceparent) = 55);
CREATE INDEX jobs_deadlines ON wharf.jobs (expires_at) WHERE state = 'open' AND expires_at IS NOT NULL;

-- A row for each pool that somebody has paused or drained; `active`, as without a row, where it was resumed.
-- `paused`: nothing of it begins. `draining`: what is there is worked off, and nothing more is accepted.
CREATE TABLE wharf.pools (
    name       text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    state      text NOT NULL CHECK (state IN ('active', 'paused', 'draining')),
    changed_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON wharf.pools TO wharf_api, wharf_worker, wharf_relay;

-- The relays that live now. `fault`: why it reaches no queue; NULL where it does.
CREATE TABLE wharf.relays (
    name       text PRIMARY KEY,
    fault      text,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON wharf.relays TO wharf_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON wharf.relays TO wharf_relay;

CREATE POLICY relay_all ON wharf.jobs TO wharf_relay USING (true) WITH CHECK (true);
CREATE POLICY relay_all ON wharf.tasks TO wharf_relay USING (true) WITH CHECK (true);
GRANT SELECT, UPDATE (state, done, failed, finished_at) ON wharf.jobs TO wharf_relay;
GRANT SELECT, UPDATE (state, not_before, lease_until, error_code, error_detail, ended_at)
    ON wharf.tasks TO wharf_relay;
GRANT UPDATE (released_at) ON wharf.tasks TO wharf_worker;
GRANT SELECT ON wharf.models, wharf.workers TO wharf_relay;

-- Pools and models belong to no tenant: only the operator's own transactions change them.
CREATE FUNCTION wharf.require_operator() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM wharf.tenants t WHERE t.id = wharf.current_tenant() AND t.operator) THEN
        RAISE insufficient_privilege USING MESSAGE = 'only the operator''s tenant may do this';
    END IF;
END
$$;

CREATE FUNCTION wharf.set_pool_state(wanted_pool text, wanted_state text) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT wharf.require_operator();
        INSERT INTO wharf.pools (name, state) VALUES (wanted_pool, wanted_state)
        ON CONFLICT (name) DO UPDATE SET state = excluded.state, changed_at = now();
    END;

-- Gives how many versions it retired; NULL as the version means all of them.
CREATE FUNCTION wharf.retire_model(wanted_name text, wanted_version integer) RETURNS integer
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT wharf.require_operator();
        WITH retired AS (
            UPDATE wharf.models SET state = 'retired'
            WHERE name = wanted_name AND state = 'active' AND (wanted_version IS NULL OR version = wanted_version)
            RETURNING version
        )
        SELECT count(*)::integer FROM retired;
    END;

-- How many inputs wait in a pool, of all tenants, counted up to `most`; tells nothing of whose they are.
CREATE FUNCTION wharf.pool_backlog(wanted_pool text, most integer) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT count(*)::integer FROM (
            SELECT FROM wharf.tasks WHERE pool = wanted_pool AND state = 'queued' LIMIT most
        ) waiting;
    END;

-- How many inputs of a pool workers hold, of all tenants: never more than their slots and what they fetch ahead.
CREATE FUNCTION wharf.pool_running(wanted_pool text) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT count(*)::integer FROM wharf.tasks WHERE pool = wanted_pool AND state = 'running';
    END;

REVOKE ALL ON FUNCTION wharf.require_operator, wharf.set_pool_state, wharf.retire_model, wharf.pool_backlog,
    wharf.pool_running FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.set_pool_state, wharf.retire_model, wharf.pool_backlog, wharf.pool_running TO wharf_api;
