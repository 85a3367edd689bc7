-- Jobs, their tasks (which are the dispatch queue), and results.

-- `state` is written by two statements only, finish and cancel. `queued` and `running` are seen from the tasks:
-- both are `open` here. `done` and `failed` are NULL while they still move and frozen afterwards.
CREATE TABLE wharf.jobs (
    id          uuid PRIMARY KEY,
    tenant_id   uuid NOT NULL REFERENCES wharf.tenants (id),
    model       text NOT NULL,
    parameters  jsonb NOT NULL,
    priority    text NOT NULL CHECK (priority IN ('interactive', 'batch')),
    metadata    jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    total       integer NOT NULL CHECK (total > 0),
    state       text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'succeeded', 'failed', 'cancelled', 'expired')),
    done        integer,
    failed      integer,
    created_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    UNIQUE (id, tenant_id),
    CHECK ((state = 'open') = (finished_at IS NULL)),
    CHECK ((done IS NULL) = (failed IS NULL)),
    CHECK (done >= 0 AND failed >= 0 AND done + failed <= total),
    CHECK (state <> 'open' OR done IS NULL),
    CHECK (state <> 'succeeded' OR (done IS NOT NULL AND done = total)),
    CHECK (state <> 'failed' OR (done IS NOT NULL AND done + failed = total AND failed > 0))
);
CREATE INDEX jobs_by_tenant ON wharf.jobs (tenant_id, id);
CREATE INDEX jobs_open ON wharf.jobs (id) WHERE state = 'open';
CREATE INDEX jobs_not_frozen ON wharf.jobs (id) WHERE state <> 'open' AND done IS NULL;

-- One input of a job. It carries all that a worker must know of its file, so that it outlives the file's row.
-- `attempt` fences: only the holder of the newest one ends the task. `spared` attempts were given back unstarted.
CREATE TABLE wharf.tasks (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL,
    job_id       uuid NOT NULL,
    input        integer NOT NULL CHECK (input >= 0),
    file_id      uuid,
    filename     text,
    sha256       bytea NOT NULL,    -- no foreign key: an ended task outlives its bytes
    size         bigint NOT NULL,
    media_type   text NOT NULL,
    width        integer NOT NULL,
    height       integer NOT NULL,
    orientation  smallint NOT NULL,
    pool         text NOT NULL,
    class        text NOT NULL CHECK (class IN ('interactive', 'batch')),
    state        text NOT NULL DEFAULT 'queued'
                 CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    not_before   timestamptz NOT NULL DEFAULT now(),
    released_at  timestamptz,
    claimed_at   timestamptz,
    lease_until  timestamptz,
    attempt      integer NOT NULL DEFAULT 0,
    spared       integer NOT NULL DEFAULT 0 CHECK (spared BETWEEN 0 AND attempt),
    worker       text,
    error_code   text,
    error_detail text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz,
    UNIQUE (job_id, input),
    UNIQUE (id, tenant_id),
    FOREIGN KEY (job_id, tenant_id) REFERENCES wharf.jobs (id, tenant_id),
    CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CHECK (state <> 'running' OR (worker IS NOT NULL AND attempt > 0)),
    CHECK ((state IN ('queued', 'running')) = (ended_at IS NULL)),
    CHECK (state <> 'failed' OR error_code IS NOT NULL),
    CHECK (state <> 'succeeded' OR error_code IS NULL)
);
-- `interactive` sorts after `batch`: descending puts it first.
CREATE INDEX tasks_queue ON wharf.tasks (pool, class DESC, id) WHERE state = 'queued';
CREATE INDEX tasks_leases ON wharf.tasks (lease_until) WHERE state = 'running';
CREATE INDEX tasks_by_worker ON wharf.tasks (worker) WHERE state = 'running';
CREATE INDEX tasks_open ON wharf.tasks (job_id, id) WHERE state IN ('queued', 'running');
CREATE INDEX tasks_holding ON wharf.tasks (sha256) WHERE state IN ('queued', 'running');

CREATE TABLE wharf.results (
    task_id       uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL,
    attempt       integer NOT NULL,
    model         text NOT NULL,
    model_version integer NOT NULL,
    model_digest  bytea NOT NULL CHECK (octet_length(model_digest) = 32),
    detections    jsonb NOT NULL,
    timings       jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (task_id, tenant_id) REFERENCES wharf.tasks (id, tenant_id)
);

ALTER TABLE wharf.jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.jobs FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.jobs TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.jobs TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant())) WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
CREATE POLICY worker_all ON wharf.jobs TO wharf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE (state, done, failed, finished_at) ON wharf.jobs TO wharf_api;
GRANT SELECT, UPDATE (state, done, failed, finished_at) ON wharf.jobs TO wharf_worker;

ALTER TABLE wharf.tasks ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.tasks FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.tasks TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.tasks TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant())) WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
CREATE POLICY worker_all ON wharf.tasks TO wharf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE (state, lease_until, ended_at) ON wharf.tasks TO wharf_api;
GRANT SELECT, UPDATE (state, not_before, claimed_at, lease_until, attempt, spared, worker, error_code, error_detail,
    ended_at) ON wharf.tasks TO wharf_worker;

-- A worker stores a result for the tenant of its task and for no other: the foreign key carries both.
ALTER TABLE wharf.results ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.results FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.results TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.results FOR SELECT TO wharf_api USING (tenant_id = (SELECT wharf.current_tenant()));
CREATE POLICY worker_adds ON wharf.results FOR INSERT TO wharf_worker WITH CHECK (true);
GRANT SELECT ON wharf.results TO wharf_api;
GRANT INSERT ON wharf.results TO wharf_worker;
