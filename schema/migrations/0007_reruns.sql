-- Reruns: a job on the inputs of another one, and the retry of many that failed.

-- No foreign key: a rerun outlives the job that it repeats.
ALTER TABLE wharf.jobs ADD COLUMN rerun_of uuid;

-- Ended jobs with failed inputs, of those that the caller sees, the oldest first: created before `walk_began`, and not
-- rerun before that either. So a walk never meets what it made, and what it made before its answer was lost is told as
-- `rerun`. A rerun that was cancelled does not count.
CREATE FUNCTION wharf.jobs_to_retry(
    walk_began timestamptz, after_job uuid, wanted_state text, wanted_model text, wanted_error text,
    wanted_metadata jsonb, created_after timestamptz, created_before timestamptz, most integer
) RETURNS TABLE (job uuid, tenant_id uuid, tenant text, failed integer, rerun uuid)
    LANGUAGE sql STABLE SET search_path = ''
    BEGIN ATOMIC
        SELECT j.id, j.tenant_id, t.name, j.failed, newest.id
        FROM wharf.jobs j
        JOIN wharf.tenants t ON t.id = j.tenant_id
        LEFT JOIN LATERAL (
            SELECT r.id FROM wharf.jobs r
            WHERE r.rerun_of = j.id AND r.state <> 'cancelled' ORDER BY r.id DESC LIMIT 1
        ) newest ON true
        WHERE j.failed > 0 AND j.id > after_job AND j.created_at < walk_began
          AND (wanted_state IS NULL OR j.state = wanted_state)
          AND (wanted_model IS NULL OR j.model = wanted_model)
          AND (wanted_metadata IS NULL OR j.metadata @> wanted_metadata)
          AND (created_after IS NULL OR j.created_at >= created_after)
          AND (created_before IS NULL OR j.created_at < created_before)
          AND (wanted_error IS NULL OR EXISTS (
                SELECT FROM wharf.tasks i
                WHERE i.job_id = j.id AND i.state IN ('failed', 'unprocessable') AND i.error_code = wanted_error))
          AND NOT EXISTS (
                SELECT FROM wharf.jobs r
                WHERE r.rerun_of = j.id AND r.state <> 'cancelled' AND r.created_at < walk_began)
        ORDER BY j.id LIMIT most;
    END;

-- The same of all tenants, for the operator's own transactions alone: the owner sees every row.
CREATE FUNCTION wharf.all_jobs_to_retry(
    walk_began timestamptz, after_job uuid, wanted_state text, wanted_model text, wanted_error text,
    wanted_metadata jsonb, created_after timestamptz, created_before timestamptz, most integer
) RETURNS TABLE (job uuid, tenant_id uuid, tenant text, failed integer, rerun uuid)
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT wharf.require_operator();
        SELECT found.job, found.tenant_id, found.tenant, found.failed, found.rerun
        FROM wharf.jobs_to_retry(walk_began, after_job, wanted_state, wanted_model, wanted_error, wanted_metadata,
            created_after, created_before, most) found;
    END;

REVOKE ALL ON FUNCTION wharf.jobs_to_retry, wharf.all_jobs_to_retry FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.jobs_to_retry, wharf.all_jobs_to_retry TO wharf_api;
