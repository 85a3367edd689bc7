-- Erasure: a tenant takes a picture back, with all that was made of it.

-- `purged_at`: its result, its filename and what was said of its failure are gone.
ALTER TABLE wharf.tasks
    ADD COLUMN purged_at timestamptz,
    ADD CONSTRAINT tasks_purged CHECK (purged_at IS NULL OR (ended_at IS NOT NULL AND filename IS NULL)) NOT VALID;

-- A purge cancels inputs of a job that goes on: it ends as `failed`, and such inputs count as neither done nor failed.
ALTER TABLE wharf.jobs
    DROP CONSTRAINT jobs_check5,
    ADD CONSTRAINT jobs_check5 CHECK (state <> 'failed' OR (done IS NOT NULL AND done < total)) NOT VALID;

-- The receipts. A purge that is sent again, since its answer was lost, is answered with the one of the first.
CREATE TABLE wharf.purges (
    id              uuid PRIMARY KEY,
    tenant_id       uuid NOT NULL REFERENCES wharf.tenants (id),
    sha256          bytea NOT NULL CHECK (octet_length(sha256) = 32),
    file_ids        uuid[] NOT NULL,
    results         integer NOT NULL,
    tasks_cancelled integer NOT NULL,
    purged_at       timestamptz NOT NULL DEFAULT now(),
    bytes_gone_by   timestamptz NOT NULL
);
CREATE INDEX purges_by_content ON wharf.purges (tenant_id, sha256, id);

-- Which receipt names a file. A table, since row-level security lets no index on an array be used.
CREATE TABLE wharf.purged_files (
    file_id   uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    purge_id  uuid NOT NULL REFERENCES wharf.purges (id)
);

ALTER TABLE wharf.purges ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.purges FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.purges TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.purges FOR SELECT TO wharf_api USING (tenant_id = (SELECT wharf.current_tenant()));
GRANT SELECT ON wharf.purges TO wharf_api;

ALTER TABLE wharf.purged_files ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.purged_files FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.purged_files TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.purged_files FOR SELECT TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant()));
GRANT SELECT ON wharf.purged_files TO wharf_api;

-- Takes from the transaction's tenant all that it has of these bytes, and writes the receipt `receipt_id`: the files'
-- rows, whether live, expired or deleted; the results; the filenames of its jobs' inputs; and the inputs that have not
-- ended are cancelled. Gives the jobs of the latter; NULL, and no receipt, where the tenant has nothing of them.
--
-- The bytes' row is locked first: no upload, job or cleanup that has to do with these bytes runs at the same time, and
-- what they have committed is seen by the statements below. Then the tasks in id order, as all do who lock several.
-- A worker's end of a task comes before that, and its result is seen here, or after it, and finds the task cancelled.
CREATE FUNCTION wharf.purge(wanted_sha256 bytea, receipt_id uuid, gone_within interval) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
DECLARE
    me uuid := wharf.current_tenant();
    of_tasks uuid[];
    of_files uuid[];
    of_jobs uuid[];
    results_gone integer;
    cancelled_tasks integer;
BEGIN
    -- Nobody waits for the lock of bytes that the tenant has nothing of: that would tell that others have.
    IF NOT EXISTS (SELECT FROM wharf.files f WHERE f.sha256 = wanted_sha256 AND f.tenant_id = me)
        AND wharf.tasks_of_picture(me, wanted_sha256) = '{}'
    THEN
        RETURN NULL;
    END IF;
    PERFORM FROM wharf.blobs b WHERE b.sha256 = wanted_sha256 FOR UPDATE;

    of_tasks := wharf.tasks_of_picture(me, wanted_sha256);
    PERFORM FROM wharf.tasks t WHERE t.id = ANY (of_tasks) ORDER BY t.id FOR UPDATE;
    WITH cancelled AS (
        UPDATE wharf.tasks t SET state = 'cancelled', lease_until = NULL, ended_at = now()
        WHERE t.id = ANY (of_tasks) AND t.state IN ('queued', 'running')
        RETURNING t.job_id
    )
    SELECT count(*), coalesce(array_agg(DISTINCT c.job_id), '{}') INTO cancelled_tasks, of_jobs FROM cancelled c;
    DELETE FROM wharf.results r WHERE r.task_id = ANY (of_tasks);
    GET DIAGNOSTICS results_gone = ROW_COUNT;
    UPDATE wharf.tasks t
    SET purged_at = now(), filename = NULL,
        error_detail = CASE WHEN t.error_code IS NOT NULL THEN 'What was said of it has been purged.' END
    WHERE t.id = ANY (of_tasks);

    WITH gone AS (
        DELETE FROM wharf.files f WHERE f.sha256 = wanted_sha256 AND f.tenant_id = me RETURNING f.id
    )
    SELECT coalesce(array_agg(g.id ORDER BY g.id), '{}') INTO of_files FROM gone g;
    IF of_files = '{}' AND of_tasks = '{}' THEN
        RETURN NULL;
    END IF;

    INSERT INTO wharf.suspects AS s (sha256, since)
        SELECT b.sha256, '-infinity' FROM wharf.blobs b WHERE b.sha256 = wanted_sha256
        ON CONFLICT (sha256) DO UPDATE SET since = excluded.since, look_at = excluded.look_at;

    INSERT INTO wharf.purges (id, tenant_id, sha256, file_ids, results, tasks_cancelled, bytes_gone_by)
        VALUES (receipt_id, me, wanted_sha256, of_files, results_gone, cancelled_tasks, now() + gone_within);
    INSERT INTO wharf.purged_files (file_id, tenant_id, purge_id)
        SELECT gone.file_id, me, receipt_id FROM unnest(of_files) AS gone (file_id);
    RETURN of_jobs;
END
$$;

-- What the tenant's jobs have of these bytes, unless it has been purged. Two parts, each with an index of its own.
CREATE FUNCTION wharf.tasks_of_picture(of_tenant uuid, wanted_sha256 bytea) RETURNS uuid[]
    LANGUAGE sql VOLATILE SET search_path = ''
    BEGIN ATOMIC
        SELECT coalesce(array_agg(found.id), '{}') FROM (
            SELECT t.id FROM wharf.tasks t
            WHERE t.sha256 = wanted_sha256 AND t.tenant_id = of_tenant AND t.state IN ('queued', 'running')
            UNION ALL
            SELECT t.id FROM wharf.tasks t
            WHERE t.sha256 = wanted_sha256 AND t.tenant_id = of_tenant AND t.state NOT IN ('queued', 'running')
              AND t.purged_at IS NULL
        ) found;
    END;

REVOKE ALL ON FUNCTION wharf.purge, wharf.tasks_of_picture FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.purge TO wharf_api;

-- For the lock alone: a cleanup that takes a job away locks its tasks before its results, as a purge does.
GRANT UPDATE (purged_at) ON wharf.tasks TO wharf_cleanup;
