-- not in a transaction
-- What a tenant may learn of others by the time that an answer takes, and what processes must know of damaged bytes.

-- A purge looks for the open tasks of its tenant, and reads none of the others'. It serves who asks for the bytes alone
-- as well as the index that it replaces.
CREATE INDEX CONCURRENTLY IF NOT EXISTS tasks_holding_by_tenant ON wharf.tasks (sha256, tenant_id)
    WHERE state IN ('queued', 'running');
DROP INDEX CONCURRENTLY IF EXISTS wharf.tasks_holding;

-- A worker looks for no bytes that are known to be damaged or gone.
GRANT EXECUTE ON FUNCTION wharf.blob_faults TO wharf_worker;

-- For metrics and health: how many bytes are quarantined, `most` standing for that many or more.
CREATE OR REPLACE FUNCTION wharf.blobs_quarantined(most integer) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT count(*)::integer FROM (SELECT FROM wharf.blobs WHERE state = 'quarantined' LIMIT most) found;
    END;
REVOKE ALL ON FUNCTION wharf.blobs_quarantined FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.blobs_quarantined TO wharf_api;

-- For the lock alone: a cleanup that takes a job away locks it before its tasks. Who reruns it holds the job and waits
-- for its bytes, and a purge holds bytes and waits for tasks: so nobody waits in a circle.
GRANT UPDATE (traceparent) ON wharf.jobs TO wharf_cleanup;
