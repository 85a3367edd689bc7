-- The result cache: what a tenant's picture gave before, it gives again without being looked at.

-- `pipeline`: what the workers of this version do around the model, and with which engine; NULL where none has said so.
ALTER TABLE wharf.models ADD COLUMN pipeline text;
GRANT UPDATE (pipeline) ON wharf.models TO wharf_worker;

-- `cache`: its inputs may be answered from the cache, and what they give is kept there. Not those of older releases.
ALTER TABLE wharf.jobs ADD COLUMN cache boolean NOT NULL DEFAULT false;

ALTER TABLE wharf.results ADD COLUMN cached boolean NOT NULL DEFAULT false;

-- What makes two results of the same bytes the same. The model's name is part of it, for a result names its model.
CREATE FUNCTION wharf.recipe(model text, digest bytea, pipeline text, parameters jsonb) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN sha256(convert_to(model || E'\n' || encode(digest, 'hex') || E'\n' || pipeline || E'\n' || parameters::text,
        'UTF8'));
REVOKE ALL ON FUNCTION wharf.recipe FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.recipe TO wharf_api, wharf_worker;

-- A copy of its own: it outlives the result that it was made with, and what is said of the picture goes with it in a
-- purge. First the bytes, then the tenant: who is after one of them, or both, reads few rows.
CREATE TABLE wharf.cached_results (
    sha256         bytea NOT NULL CHECK (octet_length(sha256) = 32),
    tenant_id      uuid NOT NULL REFERENCES wharf.tenants (id),
    recipe         bytea NOT NULL CHECK (octet_length(recipe) = 32),
    model          text NOT NULL,
    model_version  integer NOT NULL,
    model_digest   bytea NOT NULL CHECK (octet_length(model_digest) = 32),
    engine         text,
    engine_version text,
    verified       boolean,
    detections     jsonb NOT NULL,
    timings        jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sha256, tenant_id, recipe)
);
ALTER TABLE wharf.cached_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.cached_results FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.cached_results TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.cached_results FOR SELECT TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant()));
CREATE POLICY worker_all ON wharf.cached_results TO wharf_worker USING (true) WITH CHECK (true);
CREATE POLICY cleanup_all ON wharf.cached_results TO wharf_cleanup USING (true) WITH CHECK (true);
GRANT SELECT ON wharf.cached_results TO wharf_api;
GRANT SELECT (sha256, tenant_id, recipe, model), INSERT ON wharf.cached_results TO wharf_worker;
GRANT SELECT (sha256, tenant_id, created_at), DELETE ON wharf.cached_results TO wharf_cleanup;
GRANT SELECT (ended_at) ON wharf.tasks TO wharf_cleanup;

-- While a task runs, `recipe` is what it is at work on for all who want the same, if `recipe_attempt` is its attempt:
-- a worker of the release before claims without a word of it. While a task is queued, `recipe` without
-- `recipe_attempt` is what it waits for.
ALTER TABLE wharf.tasks ADD COLUMN recipe bytea, ADD COLUMN recipe_attempt integer;
GRANT UPDATE (recipe, recipe_attempt) ON wharf.tasks TO wharf_worker;

-- Whoever answers a task from the cache says no more than that: what the answer is, it can neither read nor invent. The
-- cleanup may take an answer away in the same moment; what comes of that may be tried again.
CREATE FUNCTION wharf.copy_answer() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    SELECT c.model, c.model_version, c.model_digest, c.engine, c.engine_version, c.verified, c.detections,
        c.timings || jsonb_build_object('queue', round(extract(epoch FROM now() - t.created_at) * 1000, 3))
    INTO NEW.model, NEW.model_version, NEW.model_digest, NEW.engine, NEW.engine_version, NEW.verified, NEW.detections,
        NEW.timings
    FROM wharf.tasks t JOIN wharf.cached_results c USING (sha256, tenant_id, recipe)
    WHERE t.id = NEW.task_id AND t.tenant_id = NEW.tenant_id AND t.state = 'succeeded';
    IF NOT FOUND THEN
        RAISE serialization_failure USING MESSAGE = 'the answer has just been taken out of the cache';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER copy_answer BEFORE INSERT ON wharf.results
    FOR EACH ROW WHEN (NEW.cached) EXECUTE FUNCTION wharf.copy_answer();
CREATE POLICY api_answers ON wharf.results FOR INSERT TO wharf_api
    WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
GRANT INSERT (task_id, tenant_id, attempt, cached) ON wharf.results TO wharf_api;

-- A task that others wait for has come to another end than a success, or is queued again: they go on at once.
-- Whoever ended it, a purge, a cancel, a process of the release before. One of them runs next, so that a hundred are as
-- good as all. A twin that is locked is in the hands of somebody who looks at it once more.
CREATE FUNCTION wharf.dispatch_twins() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    WITH waiting AS MATERIALIZED (
        SELECT t.id FROM wharf.tasks t
        WHERE t.sha256 = NEW.sha256 AND t.tenant_id = NEW.tenant_id AND t.recipe = OLD.recipe
          AND t.state = 'queued' AND t.recipe_attempt IS NULL
        LIMIT 100 FOR UPDATE SKIP LOCKED
    )
    UPDATE wharf.tasks t SET not_before = now(), recipe = NULL FROM waiting WHERE t.id = waiting.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER dispatch_twins AFTER UPDATE OF state ON wharf.tasks
    FOR EACH ROW WHEN (
        OLD.state = 'running' AND NEW.state NOT IN ('running', 'succeeded') AND OLD.recipe_attempt = OLD.attempt)
    EXECUTE FUNCTION wharf.dispatch_twins();

-- What was computed from bytes that may have been damaged is no answer: neither what was kept before they were found
-- so, nor what came until they were put back.
CREATE FUNCTION wharf.forget_answers() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    DELETE FROM wharf.cached_results c WHERE c.sha256 = NEW.sha256;
    RETURN NULL;
END
$$;
CREATE TRIGGER forget_answers AFTER UPDATE OF state ON wharf.blobs
    FOR EACH ROW WHEN (OLD.state <> NEW.state AND 'quarantined' IN (OLD.state, NEW.state))
    EXECUTE FUNCTION wharf.forget_answers();
REVOKE ALL ON FUNCTION wharf.copy_answer, wharf.dispatch_twins, wharf.forget_answers FROM PUBLIC;

-- Takes from the transaction's tenant all that it has of these bytes, and writes the receipt `receipt_id`: the files'
-- rows, whether live, expired or deleted; the results, those in the cache as well; the filenames of its jobs' inputs; and
-- the inputs that have not ended are cancelled. Gives the jobs of the latter; NULL, and no receipt, where the tenant has nothing of them.
--
-- The bytes' row is locked first: no upload, job or cleanup that has to do with these bytes runs at the same time, and
-- what they have committed is seen by the statements below. Then the tasks in id order, as all do who lock several.
-- A worker's end of a task comes before that, and its result is seen here, or after it, and finds the task cancelled.
CREATE OR REPLACE FUNCTION wharf.purge(wanted_sha256 bytea, receipt_id uuid, gone_within interval) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
DECLARE
    me uuid := wharf.current_tenant();
    of_tasks uuid[];
    of_files uuid[];
    of_jobs uuid[];
    results_gone integer;
    cancelled_tasks integer;
    answers_gone integer;
BEGIN
    -- Nobody waits for the lock of bytes that the tenant has nothing of: that would tell that others have.
    IF NOT EXISTS (SELECT FROM wharf.files f WHERE f.sha256 = wanted_sha256 AND f.tenant_id = me)
        AND wharf.tasks_of_picture(me, wanted_sha256) = '{}'
        AND NOT EXISTS (SELECT FROM wharf.cached_results c WHERE c.sha256 = wanted_sha256 AND c.tenant_id = me)
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
    DELETE FROM wharf.cached_results c WHERE c.sha256 = wanted_sha256 AND c.tenant_id = me;
    GET DIAGNOSTICS answers_gone = ROW_COUNT;
    UPDATE wharf.tasks t
    SET purged_at = now(), filename = NULL,
        error_detail = CASE WHEN t.error_code IS NOT NULL THEN 'What was said of it has been purged.' END
    WHERE t.id = ANY (of_tasks);

    WITH gone AS (
        DELETE FROM wharf.files f WHERE f.sha256 = wanted_sha256 AND f.tenant_id = me RETURNING f.id
    )
    SELECT coalesce(array_agg(g.id ORDER BY g.id), '{}') INTO of_files FROM gone g;
    IF of_files = '{}' AND of_tasks = '{}' AND answers_gone = 0 THEN
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
