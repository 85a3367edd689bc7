SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

CREATE SCHEMA wharf;

ALTER SCHEMA wharf OWNER TO wharf_owner;

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE wharf.jobs (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    model text NOT NULL,
    parameters jsonb NOT NULL,
    priority text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    total integer NOT NULL,
    state text DEFAULT 'open'::text NOT NULL,
    done integer,
    failed integer,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    finished_at timestamp with time zone,
    expires_at timestamp with time zone,
    traceparent text,
    rerun_of uuid,
    cache boolean DEFAULT false NOT NULL,
    CONSTRAINT jobs_check CHECK (((state = 'open'::text) = (finished_at IS NULL))),
    CONSTRAINT jobs_check1 CHECK (((done IS NULL) = (failed IS NULL))),
    CONSTRAINT jobs_check2 CHECK (((done >= 0) AND (failed >= 0) AND ((done + failed) <= total))),
    CONSTRAINT jobs_check3 CHECK (((state <> 'open'::text) OR (done IS NULL))),
    CONSTRAINT jobs_check4 CHECK (((state <> 'succeeded'::text) OR ((done IS NOT NULL) AND (done = total)))),
    CONSTRAINT jobs_check5 CHECK (((state <> 'failed'::text) OR ((done IS NOT NULL) AND (done < total)))),
    CONSTRAINT jobs_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT jobs_priority_check CHECK ((priority = ANY (ARRAY['interactive'::text, 'batch'::text]))),
    CONSTRAINT jobs_state_check CHECK ((state = ANY (ARRAY['open'::text, 'succeeded'::text, 'failed'::text, 'cancelled'::text, 'expired'::text]))),
    CONSTRAINT jobs_total_check CHECK ((total > 0)),
    CONSTRAINT jobs_traceparent_check CHECK ((length(traceparent) = 55))
);

ALTER TABLE ONLY wharf.jobs FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.jobs OWNER TO wharf_owner;

CREATE TABLE wharf.tasks (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    job_id uuid NOT NULL,
    input integer NOT NULL,
    file_id uuid,
    filename text,
    sha256 bytea NOT NULL,
    size bigint NOT NULL,
    media_type text NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    orientation smallint NOT NULL,
    pool text NOT NULL,
    class text NOT NULL,
    state text DEFAULT 'queued'::text NOT NULL,
    not_before timestamp with time zone DEFAULT now() NOT NULL,
    released_at timestamp with time zone,
    claimed_at timestamp with time zone,
    lease_until timestamp with time zone,
    attempt integer DEFAULT 0 NOT NULL,
    spared integer DEFAULT 0 NOT NULL,
    worker text,
    error_code text,
    error_detail text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    purged_at timestamp with time zone,
    recipe bytea,
    recipe_attempt integer,
    CONSTRAINT tasks_check CHECK (((spared >= 0) AND (spared <= attempt))),
    CONSTRAINT tasks_check1 CHECK (((state = 'running'::text) = (lease_until IS NOT NULL))),
    CONSTRAINT tasks_check2 CHECK (((state <> 'running'::text) OR ((worker IS NOT NULL) AND (attempt > 0)))),
    CONSTRAINT tasks_check3 CHECK (((state = ANY (ARRAY['queued'::text, 'running'::text])) = (ended_at IS NULL))),
    CONSTRAINT tasks_check4 CHECK (((state <> ALL (ARRAY['failed'::text, 'unprocessable'::text])) OR (error_code IS NOT NULL))),
    CONSTRAINT tasks_check5 CHECK (((state <> 'succeeded'::text) OR (error_code IS NULL))),
    CONSTRAINT tasks_class_check CHECK ((class = ANY (ARRAY['interactive'::text, 'batch'::text]))),
    CONSTRAINT tasks_input_check CHECK ((input >= 0)),
    CONSTRAINT tasks_purged CHECK (((purged_at IS NULL) OR ((ended_at IS NOT NULL) AND (filename IS NULL)))),
    CONSTRAINT tasks_state_check CHECK ((state = ANY (ARRAY['queued'::text, 'running'::text, 'succeeded'::text, 'failed'::text, 'unprocessable'::text, 'cancelled'::text])))
);

ALTER TABLE ONLY wharf.tasks FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.tasks OWNER TO wharf_owner;

CREATE TABLE wharf.tenants (
    id uuid NOT NULL,
    name text NOT NULL,
    operator boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    file_retention interval,
    job_retention interval,
    CONSTRAINT tenants_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9-]{0,62}$'::text)),
    CONSTRAINT tenants_retention CHECK (((file_retention > '00:00:00'::interval) AND (job_retention > '00:00:00'::interval)))
);

ALTER TABLE ONLY wharf.tenants FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.tenants OWNER TO wharf_owner;

CREATE FUNCTION wharf.jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) RETURNS TABLE(job uuid, tenant_id uuid, tenant text, failed integer, rerun uuid)
    LANGUAGE sql STABLE
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT j.id,
     j.tenant_id,
     t.name,
     j.failed,
     newest.id
    FROM ((wharf.jobs j
      JOIN wharf.tenants t ON ((t.id = j.tenant_id)))
      LEFT JOIN LATERAL ( SELECT r.id
            FROM wharf.jobs r
           WHERE ((r.rerun_of = j.id) AND (r.state <> 'cancelled'::text))
           ORDER BY r.id DESC
          LIMIT 1) newest ON (true))
   WHERE ((j.failed > 0) AND (j.id > jobs_to_retry.after_job) AND (j.created_at < jobs_to_retry.walk_began) AND ((jobs_to_retry.wanted_state IS NULL) OR (j.state = jobs_to_retry.wanted_state)) AND ((jobs_to_retry.wanted_model IS NULL) OR (j.model = jobs_to_retry.wanted_model)) AND ((jobs_to_retry.wanted_metadata IS NULL) OR (j.metadata @> jobs_to_retry.wanted_metadata)) AND ((jobs_to_retry.created_after IS NULL) OR (j.created_at >= jobs_to_retry.created_after)) AND ((jobs_to_retry.created_before IS NULL) OR (j.created_at < jobs_to_retry.created_before)) AND ((jobs_to_retry.wanted_error IS NULL) OR (EXISTS ( SELECT
            FROM wharf.tasks i
           WHERE ((i.job_id = j.id) AND (i.state = ANY (ARRAY['failed'::text, 'unprocessable'::text])) AND (i.error_code = jobs_to_retry.wanted_error))))) AND (NOT (EXISTS ( SELECT
            FROM wharf.jobs r
           WHERE ((r.rerun_of = j.id) AND (r.state <> 'cancelled'::text) AND (r.created_at < jobs_to_retry.walk_began))))))
   ORDER BY j.id
  LIMIT jobs_to_retry.most;
END;

ALTER FUNCTION wharf.jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) OWNER TO wharf_owner;

CREATE FUNCTION wharf.require_operator() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM wharf.tenants t WHERE t.id = wharf.current_tenant() AND t.operator) THEN
        RAISE insufficient_privilege USING MESSAGE = 'only the operator''s tenant may do this';
    END IF;
END
$$;

ALTER FUNCTION wharf.require_operator() OWNER TO wharf_owner;

CREATE FUNCTION wharf.all_jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) RETURNS TABLE(job uuid, tenant_id uuid, tenant text, failed integer, rerun uuid)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT wharf.require_operator() AS require_operator;
 SELECT found.job,
     found.tenant_id,
     found.tenant,
     found.failed,
     found.rerun
    FROM wharf.jobs_to_retry(all_jobs_to_retry.walk_began, all_jobs_to_retry.after_job, all_jobs_to_retry.wanted_state, all_jobs_to_retry.wanted_model, all_jobs_to_retry.wanted_error, all_jobs_to_retry.wanted_metadata, all_jobs_to_retry.created_after, all_jobs_to_retry.created_before, all_jobs_to_retry.most) found(job, tenant_id, tenant, failed, rerun);
END;

ALTER FUNCTION wharf.all_jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) OWNER TO wharf_owner;

CREATE TABLE wharf.api_keys (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    role text NOT NULL,
    secret_sha256 bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    revoked_at timestamp with time zone,
    CONSTRAINT api_keys_name_check CHECK (((length(name) >= 1) AND (length(name) <= 100))),
    CONSTRAINT api_keys_role_check CHECK ((role = ANY (ARRAY['reader'::text, 'writer'::text, 'admin'::text]))),
    CONSTRAINT api_keys_secret_sha256_check CHECK ((octet_length(secret_sha256) = 32))
);

ALTER TABLE ONLY wharf.api_keys FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.api_keys OWNER TO wharf_owner;

CREATE FUNCTION wharf.authenticate(wanted_sha256 bytea) RETURNS TABLE(key_id uuid, role text, tenant_id uuid, tenant text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT k.id,
     k.role,
     t.id,
     t.name
    FROM (wharf.api_keys k
      JOIN wharf.tenants t ON ((t.id = k.tenant_id)))
   WHERE ((k.secret_sha256 = authenticate.wanted_sha256) AND (k.revoked_at IS NULL));
END;

ALTER FUNCTION wharf.authenticate(wanted_sha256 bytea) OWNER TO wharf_owner;

CREATE TABLE wharf.blobs (
    sha256 bytea NOT NULL,
    size bigint NOT NULL,
    state text DEFAULT 'deleting'::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    fault text,
    verified_at timestamp with time zone,
    placed_at timestamp with time zone,
    CONSTRAINT blobs_fault CHECK ((fault = ANY (ARRAY['corrupt'::text, 'missing'::text]))),
    CONSTRAINT blobs_fault_told CHECK (((state <> 'quarantined'::text) OR (fault IS NOT NULL))),
    CONSTRAINT blobs_sha256_check CHECK ((octet_length(sha256) = 32)),
    CONSTRAINT blobs_size_check CHECK ((size > 0)),
    CONSTRAINT blobs_state_check CHECK ((state = ANY (ARRAY['present'::text, 'deleting'::text, 'quarantined'::text])))
);

ALTER TABLE wharf.blobs OWNER TO wharf_owner;

CREATE FUNCTION wharf.blob_faults(wanted bytea[]) RETURNS TABLE(sha256 bytea, fault text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT b.sha256,
     b.fault
    FROM wharf.blobs b
   WHERE ((b.sha256 = ANY (blob_faults.wanted)) AND (b.state = 'quarantined'::text));
END;

ALTER FUNCTION wharf.blob_faults(wanted bytea[]) OWNER TO wharf_owner;

CREATE FUNCTION wharf.blob_present(wanted_sha256 bytea) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 UPDATE wharf.blobs SET state = 'present'::text, fault = NULL::text, placed_at =
         CASE
             WHEN (blobs.state = 'present'::text) THEN blobs.placed_at
             ELSE clock_timestamp()
         END, verified_at =
         CASE
             WHEN (blobs.state = 'present'::text) THEN blobs.verified_at
             ELSE clock_timestamp()
         END
   WHERE (blobs.sha256 = blob_present.wanted_sha256);
END;

ALTER FUNCTION wharf.blob_present(wanted_sha256 bytea) OWNER TO wharf_owner;

CREATE FUNCTION wharf.blobs_quarantined(most integer) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT (count(*))::integer AS count
    FROM ( SELECT
            FROM wharf.blobs
           WHERE (blobs.state = 'quarantined'::text)
          LIMIT blobs_quarantined.most) found;
END;

ALTER FUNCTION wharf.blobs_quarantined(most integer) OWNER TO wharf_owner;

CREATE FUNCTION wharf.copy_answer() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
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

ALTER FUNCTION wharf.copy_answer() OWNER TO wharf_owner;

CREATE FUNCTION wharf.current_tenant() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (NULLIF(current_setting('wharf.tenant'::text, true), ''::text))::uuid;

ALTER FUNCTION wharf.current_tenant() OWNER TO wharf_owner;

CREATE FUNCTION wharf.dispatch_twins() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
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

ALTER FUNCTION wharf.dispatch_twins() OWNER TO wharf_owner;

CREATE FUNCTION wharf.first_id_at(moment timestamp with time zone) RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN ((lpad(to_hex(GREATEST((floor((EXTRACT(epoch FROM moment) * (1000)::numeric)))::bigint, (0)::bigint)), 12, '0'::text) || repeat('0'::text, 20)))::uuid;

ALTER FUNCTION wharf.first_id_at(moment timestamp with time zone) OWNER TO wharf_owner;

CREATE FUNCTION wharf.forget_answers() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
BEGIN
    DELETE FROM wharf.cached_results c WHERE c.sha256 = NEW.sha256;
    RETURN NULL;
END
$$;

ALTER FUNCTION wharf.forget_answers() OWNER TO wharf_owner;

CREATE TABLE wharf.audit (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    at timestamp with time zone NOT NULL,
    key_id uuid NOT NULL,
    request_id text NOT NULL,
    action text NOT NULL,
    outcome text NOT NULL,
    files uuid[],
    sha256 bytea[],
    jobs uuid[],
    keys uuid[],
    names text[],
    details jsonb,
    CONSTRAINT audit_action_check CHECK (((action ~ '^[a-z]+\.[a-z_]+$'::text) AND (length(action) <= 40))),
    CONSTRAINT audit_details_check CHECK (((jsonb_typeof(details) = 'object'::text) AND (pg_column_size(details) <= 4096))),
    CONSTRAINT audit_outcome_check CHECK ((outcome = ANY (ARRAY['done'::text, 'replayed'::text]))),
    CONSTRAINT audit_request_id_check CHECK (((length(request_id) >= 1) AND (length(request_id) <= 128)))
);

ALTER TABLE ONLY wharf.audit FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.audit OWNER TO wharf_owner;

CREATE TABLE wharf.audit_objects (
    tenant_id uuid NOT NULL,
    object_id uuid NOT NULL,
    receipt_id uuid NOT NULL
);

ALTER TABLE ONLY wharf.audit_objects FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.audit_objects OWNER TO wharf_owner;

CREATE FUNCTION wharf.forget_receipts(days integer, most integer) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 WITH old AS (
          SELECT a.tenant_id,
             a.id
            FROM (wharf.tenants t
              CROSS JOIN LATERAL ( SELECT a_1.tenant_id,
                     a_1.id
                    FROM wharf.audit a_1
                   WHERE ((a_1.tenant_id = t.id) AND (a_1.id < wharf.first_id_at((now() - make_interval(days => GREATEST(forget_receipts.days, 30))))))
                   ORDER BY a_1.id
                  LIMIT forget_receipts.most) a)
          LIMIT forget_receipts.most
         ), gone AS (
          DELETE FROM wharf.audit a
            USING old
           WHERE ((a.tenant_id = old.tenant_id) AND (a.id = old.id))
           RETURNING a.tenant_id,
             a.id,
             ((a.files || a.jobs) || a.keys) AS objects
         ), named AS (
          DELETE FROM wharf.audit_objects o
            USING ( SELECT gone_1.tenant_id,
                     gone_1.id,
                     unnest(gone_1.objects) AS object_id
                    FROM gone gone_1) g
           WHERE ((o.tenant_id = g.tenant_id) AND (o.object_id = g.object_id) AND (o.receipt_id = g.id))
         )
  SELECT (count(*))::integer AS count
    FROM gone;
END;

ALTER FUNCTION wharf.forget_receipts(days integer, most integer) OWNER TO wharf_owner;

CREATE FUNCTION wharf.hold_blobs(wanted bytea[]) RETURNS SETOF bytea
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT held.sha256
    FROM ( SELECT b.sha256,
             b.state
            FROM wharf.blobs b
           WHERE (b.sha256 = ANY (hold_blobs.wanted))
           ORDER BY b.sha256
          FOR SHARE OF b) held
   WHERE (held.state = 'present'::text);
END;

ALTER FUNCTION wharf.hold_blobs(wanted bytea[]) OWNER TO wharf_owner;

CREATE FUNCTION wharf.open_tenant(wanted_name text, new_id uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
DECLARE
    found uuid;
BEGIN
    IF NOT EXISTS (SELECT FROM wharf.tenants t WHERE t.id = wharf.current_tenant() AND t.operator) THEN
        RAISE insufficient_privilege USING MESSAGE = 'only the operator''s tenant opens other tenants';
    END IF;
    INSERT INTO wharf.tenants AS t (id, name) VALUES (new_id, wanted_name)
        ON CONFLICT (name) DO UPDATE SET name = t.name
        RETURNING t.id INTO found;
    RETURN found;
END
$$;

ALTER FUNCTION wharf.open_tenant(wanted_name text, new_id uuid) OWNER TO wharf_owner;

CREATE FUNCTION wharf.pool_backlog(wanted_pool text, most integer) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT (count(*))::integer AS count
    FROM ( SELECT
            FROM wharf.tasks
           WHERE ((tasks.pool = pool_backlog.wanted_pool) AND (tasks.state = 'queued'::text))
          LIMIT pool_backlog.most) waiting;
END;

ALTER FUNCTION wharf.pool_backlog(wanted_pool text, most integer) OWNER TO wharf_owner;

CREATE FUNCTION wharf.pool_running(wanted_pool text) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT (count(*))::integer AS count
    FROM wharf.tasks
   WHERE ((tasks.pool = pool_running.wanted_pool) AND (tasks.state = 'running'::text));
END;

ALTER FUNCTION wharf.pool_running(wanted_pool text) OWNER TO wharf_owner;

CREATE FUNCTION wharf.purge(wanted_sha256 bytea, receipt_id uuid, gone_within interval) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
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

ALTER FUNCTION wharf.purge(wanted_sha256 bytea, receipt_id uuid, gone_within interval) OWNER TO wharf_owner;

CREATE FUNCTION wharf.recipe(model text, digest bytea, pipeline text, parameters jsonb) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN sha256(convert_to(((((((model || '
'::text) || encode(digest, 'hex'::text)) || '
'::text) || pipeline) || '
'::text) || (parameters)::text), 'UTF8'::name));

ALTER FUNCTION wharf.recipe(model text, digest bytea, pipeline text, parameters jsonb) OWNER TO wharf_owner;

CREATE FUNCTION wharf.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
BEGIN
    RAISE insufficient_privilege USING MESSAGE = 'receipts are added, and never changed';
END
$$;

ALTER FUNCTION wharf.refuse_change() OWNER TO wharf_owner;

CREATE FUNCTION wharf.report_corrupt(held_task uuid, held_attempt integer) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 WITH quarantined AS (
          UPDATE wharf.blobs b SET state = 'quarantined'::text, fault = 'corrupt'::text
            FROM wharf.tasks t
           WHERE ((t.id = report_corrupt.held_task) AND (t.attempt = report_corrupt.held_attempt) AND (t.state = 'running'::text) AND (b.sha256 = t.sha256) AND (b.state = ANY (ARRAY['present'::text, 'quarantined'::text])) AND ((b.placed_at IS NULL) OR (b.placed_at < t.claimed_at)))
           RETURNING b.sha256
         )
  SELECT (EXISTS ( SELECT
            FROM quarantined)) AS "exists";
END;

ALTER FUNCTION wharf.report_corrupt(held_task uuid, held_attempt integer) OWNER TO wharf_owner;

CREATE TABLE wharf.models (
    name text NOT NULL,
    version integer NOT NULL,
    digest bytea NOT NULL,
    path text NOT NULL,
    task text NOT NULL,
    classes jsonb NOT NULL,
    input_width integer NOT NULL,
    input_height integer NOT NULL,
    state text DEFAULT 'active'::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    pipeline text,
    CONSTRAINT models_classes_check CHECK ((jsonb_typeof(classes) = 'array'::text)),
    CONSTRAINT models_digest_check CHECK ((octet_length(digest) = 32)),
    CONSTRAINT models_input_height_check CHECK ((input_height > 0)),
    CONSTRAINT models_input_width_check CHECK ((input_width > 0)),
    CONSTRAINT models_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'::text)),
    CONSTRAINT models_state_check CHECK ((state = ANY (ARRAY['active'::text, 'retired'::text]))),
    CONSTRAINT models_version_check CHECK ((version > 0))
);

ALTER TABLE wharf.models OWNER TO wharf_owner;

CREATE FUNCTION wharf.retire_model(wanted_name text, wanted_version integer) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT wharf.require_operator() AS require_operator;
 WITH retired AS (
          UPDATE wharf.models SET state = 'retired'::text
           WHERE ((models.name = retire_model.wanted_name) AND (models.state = 'active'::text) AND ((retire_model.wanted_version IS NULL) OR (models.version = retire_model.wanted_version)))
           RETURNING models.version
         )
  SELECT (count(*))::integer AS count
    FROM retired;
END;

ALTER FUNCTION wharf.retire_model(wanted_name text, wanted_version integer) OWNER TO wharf_owner;

CREATE TABLE wharf.pools (
    name text NOT NULL,
    state text NOT NULL,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT pools_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'::text)),
    CONSTRAINT pools_state_check CHECK ((state = ANY (ARRAY['active'::text, 'paused'::text, 'draining'::text])))
);

ALTER TABLE wharf.pools OWNER TO wharf_owner;

CREATE FUNCTION wharf.set_pool_state(wanted_pool text, wanted_state text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT wharf.require_operator() AS require_operator;
 INSERT INTO wharf.pools (name, state)
   VALUES (set_pool_state.wanted_pool, set_pool_state.wanted_state) ON CONFLICT(name) DO UPDATE SET state = excluded.state, changed_at = now();
END;

ALTER FUNCTION wharf.set_pool_state(wanted_pool text, wanted_state text) OWNER TO wharf_owner;

CREATE TABLE wharf.suspects (
    sha256 bytea NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL,
    look_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY wharf.suspects FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.suspects OWNER TO wharf_owner;

CREATE FUNCTION wharf.suspect(gone_sha256 bytea, gone_at timestamp with time zone) RETURNS void
    LANGUAGE sql
    SET search_path TO ''
    BEGIN ATOMIC
 INSERT INTO wharf.suspects AS s (sha256, since)
   VALUES (suspect.gone_sha256, suspect.gone_at) ON CONFLICT(sha256) DO UPDATE SET since =
         CASE
             WHEN (s.since = '-infinity'::timestamp with time zone) THEN s.since
             ELSE GREATEST(s.since, excluded.since)
         END;
END;

ALTER FUNCTION wharf.suspect(gone_sha256 bytea, gone_at timestamp with time zone) OWNER TO wharf_owner;

CREATE FUNCTION wharf.suspect_deleted() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
BEGIN
    PERFORM wharf.suspect(NEW.sha256, NEW.deleted_at);
    RETURN NULL;
END
$$;

ALTER FUNCTION wharf.suspect_deleted() OWNER TO wharf_owner;

CREATE FUNCTION wharf.suspect_removed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
BEGIN
    PERFORM wharf.suspect(gone.sha256, gone.at) FROM (
        SELECT r.sha256, max(coalesce(r.deleted_at, now())) AS at FROM removed r GROUP BY r.sha256 ORDER BY r.sha256
    ) gone;
    RETURN NULL;
END
$$;

ALTER FUNCTION wharf.suspect_removed() OWNER TO wharf_owner;

CREATE FUNCTION wharf.take_blob(wanted_sha256 bytea, wanted_size bigint) RETURNS text
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO ''
    BEGIN ATOMIC
 INSERT INTO wharf.blobs AS b (sha256, size)
   VALUES (take_blob.wanted_sha256, take_blob.wanted_size) ON CONFLICT(sha256) DO UPDATE SET size =
         CASE
             WHEN (b.state = 'present'::text) THEN b.size
             ELSE excluded.size
         END
   RETURNING b.state;
END;

ALTER FUNCTION wharf.take_blob(wanted_sha256 bytea, wanted_size bigint) OWNER TO wharf_owner;

CREATE FUNCTION wharf.tasks_of_picture(of_tenant uuid, wanted_sha256 bytea) RETURNS uuid[]
    LANGUAGE sql
    SET search_path TO ''
    BEGIN ATOMIC
 SELECT COALESCE(array_agg(found.id), '{}'::uuid[]) AS "coalesce"
    FROM ( SELECT t.id
            FROM wharf.tasks t
           WHERE ((t.sha256 = tasks_of_picture.wanted_sha256) AND (t.tenant_id = tasks_of_picture.of_tenant) AND (t.state = ANY (ARRAY['queued'::text, 'running'::text])))
         UNION ALL
          SELECT t.id
            FROM wharf.tasks t
           WHERE ((t.sha256 = tasks_of_picture.wanted_sha256) AND (t.tenant_id = tasks_of_picture.of_tenant) AND (t.state <> ALL (ARRAY['queued'::text, 'running'::text])) AND (t.purged_at IS NULL))) found;
END;

ALTER FUNCTION wharf.tasks_of_picture(of_tenant uuid, wanted_sha256 bytea) OWNER TO wharf_owner;

CREATE TABLE wharf.cached_results (
    sha256 bytea NOT NULL,
    tenant_id uuid NOT NULL,
    recipe bytea NOT NULL,
    model text NOT NULL,
    model_version integer NOT NULL,
    model_digest bytea NOT NULL,
    engine text,
    engine_version text,
    verified boolean,
    detections jsonb NOT NULL,
    timings jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT cached_results_model_digest_check CHECK ((octet_length(model_digest) = 32)),
    CONSTRAINT cached_results_recipe_check CHECK ((octet_length(recipe) = 32)),
    CONSTRAINT cached_results_sha256_check CHECK ((octet_length(sha256) = 32))
);

ALTER TABLE ONLY wharf.cached_results FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.cached_results OWNER TO wharf_owner;

CREATE TABLE wharf.cleanup_runs (
    id uuid NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    stopped text,
    without_grace boolean NOT NULL,
    expired_files bigint DEFAULT 0 NOT NULL,
    expired_jobs bigint DEFAULT 0 NOT NULL,
    removed_blobs bigint DEFAULT 0 NOT NULL,
    freed_bytes bigint DEFAULT 0 NOT NULL,
    staging bigint DEFAULT 0 NOT NULL,
    orphans bigint DEFAULT 0 NOT NULL,
    missing bigint DEFAULT 0 NOT NULL,
    errors bigint DEFAULT 0 NOT NULL,
    first_errors jsonb DEFAULT '[]'::jsonb NOT NULL,
    swept_to integer,
    under_pressure boolean DEFAULT false NOT NULL,
    CONSTRAINT cleanup_runs_check CHECK (((stopped IS NULL) OR (stopped = 'killed'::text) OR (ended_at IS NOT NULL))),
    CONSTRAINT cleanup_runs_first_errors_check CHECK ((jsonb_typeof(first_errors) = 'array'::text)),
    CONSTRAINT cleanup_runs_stopped_check CHECK ((stopped = ANY (ARRAY['done'::text, 'time'::text, 'asked'::text, 'error'::text, 'killed'::text]))),
    CONSTRAINT cleanup_runs_swept_to_check CHECK (((swept_to >= 0) AND (swept_to <= 4096)))
);

ALTER TABLE wharf.cleanup_runs OWNER TO wharf_owner;

CREATE TABLE wharf.files (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    sha256 bytea NOT NULL,
    size bigint NOT NULL,
    media_type text NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    orientation smallint DEFAULT 1 NOT NULL,
    filename text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    deleted_at timestamp with time zone,
    pinned boolean DEFAULT false NOT NULL,
    CONSTRAINT files_filename_check CHECK (((length(filename) >= 1) AND (length(filename) <= 255))),
    CONSTRAINT files_height_check CHECK ((height > 0)),
    CONSTRAINT files_orientation_check CHECK (((orientation >= 1) AND (orientation <= 8))),
    CONSTRAINT files_size_check CHECK ((size > 0)),
    CONSTRAINT files_width_check CHECK ((width > 0))
);

ALTER TABLE ONLY wharf.files FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.files OWNER TO wharf_owner;

CREATE TABLE wharf.idempotency_keys (
    tenant_id uuid NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    status smallint NOT NULL,
    resource uuid[] NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_keys_fingerprint_check CHECK ((octet_length(fingerprint) = 32)),
    CONSTRAINT idempotency_keys_key_check CHECK (((length(key) >= 1) AND (length(key) <= 255)))
);

ALTER TABLE ONLY wharf.idempotency_keys FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.idempotency_keys OWNER TO wharf_owner;

CREATE TABLE wharf.installation (
    only_row boolean DEFAULT true NOT NULL,
    volume_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    checkpoint uuid,
    checkpoint_next uuid,
    fingerprint text,
    sweep_off_since timestamp with time zone,
    sweep_off_reason text,
    CONSTRAINT installation_only_row_check CHECK (only_row),
    CONSTRAINT sweep_off_told CHECK (((sweep_off_since IS NULL) = (sweep_off_reason IS NULL)))
);

ALTER TABLE wharf.installation OWNER TO wharf_owner;

CREATE TABLE wharf.migrations (
    version integer NOT NULL,
    name text NOT NULL,
    checksum bytea NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE wharf.migrations OWNER TO wharf_owner;

CREATE TABLE wharf.purged_files (
    file_id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    purge_id uuid NOT NULL
);

ALTER TABLE ONLY wharf.purged_files FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.purged_files OWNER TO wharf_owner;

CREATE TABLE wharf.purges (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    sha256 bytea NOT NULL,
    file_ids uuid[] NOT NULL,
    results integer NOT NULL,
    tasks_cancelled integer NOT NULL,
    purged_at timestamp with time zone DEFAULT now() NOT NULL,
    bytes_gone_by timestamp with time zone NOT NULL,
    CONSTRAINT purges_sha256_check CHECK ((octet_length(sha256) = 32))
);

ALTER TABLE ONLY wharf.purges FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.purges OWNER TO wharf_owner;

CREATE TABLE wharf.relays (
    name text NOT NULL,
    fault text,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    release text
);

ALTER TABLE wharf.relays OWNER TO wharf_owner;

CREATE UNLOGGED TABLE wharf.released (
    pool text NOT NULL,
    class text NOT NULL,
    tenant_id uuid NOT NULL,
    task_id uuid NOT NULL,
    released_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY wharf.released FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.released OWNER TO wharf_owner;

CREATE TABLE wharf.results (
    task_id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    attempt integer NOT NULL,
    model text NOT NULL,
    model_version integer NOT NULL,
    model_digest bytea NOT NULL,
    detections jsonb NOT NULL,
    timings jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    engine text,
    engine_version text,
    verified boolean,
    cached boolean DEFAULT false NOT NULL,
    CONSTRAINT results_model_digest_check CHECK ((octet_length(model_digest) = 32))
);

ALTER TABLE ONLY wharf.results FORCE ROW LEVEL SECURITY;

ALTER TABLE wharf.results OWNER TO wharf_owner;

CREATE TABLE wharf.verify_runs (
    id uuid NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    stopped text,
    quick boolean NOT NULL,
    checked bigint DEFAULT 0 NOT NULL,
    bytes bigint DEFAULT 0 NOT NULL,
    corrupt bigint DEFAULT 0 NOT NULL,
    missing bigint DEFAULT 0 NOT NULL,
    unreadable bigint DEFAULT 0 NOT NULL,
    restored bigint DEFAULT 0 NOT NULL,
    strangers bigint,
    quarantined bigint,
    CONSTRAINT verify_runs_check CHECK (((stopped IS NULL) OR (stopped = 'killed'::text) OR (ended_at IS NOT NULL))),
    CONSTRAINT verify_runs_stopped_check CHECK ((stopped = ANY (ARRAY['done'::text, 'time'::text, 'asked'::text, 'error'::text, 'killed'::text])))
);

ALTER TABLE wharf.verify_runs OWNER TO wharf_owner;

CREATE TABLE wharf.workers (
    name text NOT NULL,
    pool text NOT NULL,
    model_version integer NOT NULL,
    engine text NOT NULL,
    slots integer NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    release text,
    CONSTRAINT workers_slots_check CHECK ((slots > 0))
);

ALTER TABLE wharf.workers OWNER TO wharf_owner;

ALTER TABLE ONLY wharf.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.api_keys
    ADD CONSTRAINT api_keys_secret_sha256_key UNIQUE (secret_sha256);

ALTER TABLE ONLY wharf.audit_objects
    ADD CONSTRAINT audit_objects_pkey PRIMARY KEY (tenant_id, object_id, receipt_id);

ALTER TABLE ONLY wharf.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY wharf.blobs
    ADD CONSTRAINT blobs_pkey PRIMARY KEY (sha256);

ALTER TABLE ONLY wharf.cached_results
    ADD CONSTRAINT cached_results_pkey PRIMARY KEY (sha256, tenant_id, recipe);

ALTER TABLE ONLY wharf.cleanup_runs
    ADD CONSTRAINT cleanup_runs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.files
    ADD CONSTRAINT files_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant_id, key);

ALTER TABLE ONLY wharf.installation
    ADD CONSTRAINT installation_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY wharf.jobs
    ADD CONSTRAINT jobs_id_tenant_id_key UNIQUE (id, tenant_id);

ALTER TABLE ONLY wharf.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY wharf.models
    ADD CONSTRAINT models_name_digest_key UNIQUE (name, digest);

ALTER TABLE ONLY wharf.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (name, version);

ALTER TABLE ONLY wharf.pools
    ADD CONSTRAINT pools_pkey PRIMARY KEY (name);

ALTER TABLE ONLY wharf.purged_files
    ADD CONSTRAINT purged_files_pkey PRIMARY KEY (file_id);

ALTER TABLE ONLY wharf.purges
    ADD CONSTRAINT purges_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.relays
    ADD CONSTRAINT relays_pkey PRIMARY KEY (name);

ALTER TABLE ONLY wharf.released
    ADD CONSTRAINT released_pkey PRIMARY KEY (pool, class, tenant_id, task_id);

ALTER TABLE ONLY wharf.results
    ADD CONSTRAINT results_pkey PRIMARY KEY (task_id);

ALTER TABLE ONLY wharf.suspects
    ADD CONSTRAINT suspects_pkey PRIMARY KEY (sha256);

ALTER TABLE ONLY wharf.tasks
    ADD CONSTRAINT tasks_id_tenant_id_key UNIQUE (id, tenant_id);

ALTER TABLE ONLY wharf.tasks
    ADD CONSTRAINT tasks_job_id_input_key UNIQUE (job_id, input);

ALTER TABLE ONLY wharf.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.tenants
    ADD CONSTRAINT tenants_name_key UNIQUE (name);

ALTER TABLE ONLY wharf.tenants
    ADD CONSTRAINT tenants_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.verify_runs
    ADD CONSTRAINT verify_runs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY wharf.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (name);

CREATE INDEX api_keys_by_tenant ON wharf.api_keys USING btree (tenant_id, id);

CREATE INDEX audit_by_action ON wharf.audit USING btree (tenant_id, action, id);

CREATE INDEX audit_by_key ON wharf.audit USING btree (tenant_id, key_id, id);

CREATE INDEX audit_by_request ON wharf.audit USING btree (tenant_id, request_id, id);

CREATE INDEX blobs_by_verification ON wharf.blobs USING btree (COALESCE(verified_at, '-infinity'::timestamp with time zone), sha256) WHERE (state = 'present'::text);

CREATE INDEX blobs_deleting ON wharf.blobs USING btree (sha256) WHERE (state = 'deleting'::text);

CREATE INDEX blobs_quarantined ON wharf.blobs USING btree (sha256) WHERE (state = 'quarantined'::text);

CREATE INDEX cleanup_runs_by_age ON wharf.cleanup_runs USING btree (started_at);

CREATE INDEX cleanup_runs_sweeping ON wharf.cleanup_runs USING btree (id) WHERE (swept_to IS NOT NULL);

CREATE INDEX cleanup_runs_unfinished ON wharf.cleanup_runs USING btree (id) WHERE (stopped IS NULL);

CREATE INDEX files_by_content ON wharf.files USING btree (sha256, tenant_id) WHERE (deleted_at IS NULL);

CREATE INDEX files_by_tenant ON wharf.files USING btree (tenant_id, id) WHERE (deleted_at IS NULL);

CREATE INDEX files_deleted ON wharf.files USING btree (id) WHERE (deleted_at IS NOT NULL);

CREATE INDEX files_expiring ON wharf.files USING btree (expires_at, id) WHERE ((deleted_at IS NULL) AND (NOT pinned));

CREATE INDEX files_of_blob ON wharf.files USING btree (sha256, tenant_id);

CREATE INDEX files_undated ON wharf.files USING btree (id) WHERE ((expires_at IS NULL) AND (deleted_at IS NULL) AND (NOT pinned));

CREATE INDEX idempotency_keys_by_age ON wharf.idempotency_keys USING btree (created_at);

CREATE INDEX jobs_by_tenant ON wharf.jobs USING btree (tenant_id, id);

CREATE INDEX jobs_deadlines ON wharf.jobs USING btree (expires_at) WHERE ((state = 'open'::text) AND (expires_at IS NOT NULL));

CREATE INDEX jobs_ended ON wharf.jobs USING btree (tenant_id, finished_at, id) WHERE (state <> 'open'::text);

CREATE INDEX jobs_not_frozen ON wharf.jobs USING btree (id) WHERE ((state <> 'open'::text) AND (done IS NULL));

CREATE INDEX jobs_of_tenant_with_failures ON wharf.jobs USING btree (tenant_id, id) WHERE (failed > 0);

CREATE INDEX jobs_open ON wharf.jobs USING btree (id) WHERE (state = 'open'::text);

CREATE INDEX jobs_reruns ON wharf.jobs USING btree (rerun_of) WHERE (rerun_of IS NOT NULL);

CREATE INDEX jobs_with_failures ON wharf.jobs USING btree (id) WHERE (failed > 0);

CREATE INDEX purges_by_content ON wharf.purges USING btree (tenant_id, sha256, id);

CREATE INDEX suspects_by_time ON wharf.suspects USING btree (since, sha256);

CREATE UNIQUE INDEX tasks_at_work ON wharf.tasks USING btree (sha256, tenant_id, recipe) WHERE ((state = 'running'::text) AND (recipe_attempt = attempt));

CREATE INDEX tasks_by_worker ON wharf.tasks USING btree (worker) WHERE (state = 'running'::text);

CREATE INDEX tasks_holding_by_tenant ON wharf.tasks USING btree (sha256, tenant_id) WHERE (state = ANY (ARRAY['queued'::text, 'running'::text]));

CREATE INDEX tasks_leases ON wharf.tasks USING btree (lease_until) WHERE (state = 'running'::text);

CREATE INDEX tasks_of_picture ON wharf.tasks USING btree (tenant_id, sha256) WHERE ((state <> ALL (ARRAY['queued'::text, 'running'::text])) AND (purged_at IS NULL));

CREATE INDEX tasks_open ON wharf.tasks USING btree (job_id, id) WHERE (state = ANY (ARRAY['queued'::text, 'running'::text]));

CREATE INDEX tasks_ready ON wharf.tasks USING btree (pool, class, tenant_id, id) WHERE (state = 'queued'::text);

CREATE INDEX tasks_waiting ON wharf.tasks USING btree (sha256, tenant_id, recipe) WHERE ((state = 'queued'::text) AND (recipe IS NOT NULL) AND (recipe_attempt IS NULL));

CREATE INDEX verify_runs_unfinished ON wharf.verify_runs USING btree (id) WHERE (stopped IS NULL);

CREATE TRIGGER copy_answer BEFORE INSERT ON wharf.results FOR EACH ROW WHEN (new.cached) EXECUTE FUNCTION wharf.copy_answer();

CREATE TRIGGER dispatch_twins AFTER UPDATE OF state ON wharf.tasks FOR EACH ROW WHEN (((old.state = 'running'::text) AND (new.state <> ALL (ARRAY['running'::text, 'succeeded'::text])) AND (old.recipe_attempt = old.attempt))) EXECUTE FUNCTION wharf.dispatch_twins();

CREATE TRIGGER forget_answers AFTER UPDATE OF state ON wharf.blobs FOR EACH ROW WHEN (((old.state <> new.state) AND (('quarantined'::text = old.state) OR ('quarantined'::text = new.state)))) EXECUTE FUNCTION wharf.forget_answers();

CREATE TRIGGER never_changes BEFORE UPDATE OR TRUNCATE ON wharf.audit FOR EACH STATEMENT EXECUTE FUNCTION wharf.refuse_change();

CREATE TRIGGER never_changes BEFORE UPDATE OR TRUNCATE ON wharf.audit_objects FOR EACH STATEMENT EXECUTE FUNCTION wharf.refuse_change();

CREATE TRIGGER stays_while_young BEFORE DELETE ON wharf.audit FOR EACH ROW WHEN ((old.id >= wharf.first_id_at((now() - '30 days'::interval)))) EXECUTE FUNCTION wharf.refuse_change();

CREATE TRIGGER stays_while_young BEFORE DELETE ON wharf.audit_objects FOR EACH ROW WHEN ((old.receipt_id >= wharf.first_id_at((now() - '30 days'::interval)))) EXECUTE FUNCTION wharf.refuse_change();

CREATE TRIGGER suspect_deleted AFTER UPDATE OF deleted_at ON wharf.files FOR EACH ROW WHEN (((old.deleted_at IS NULL) AND (new.deleted_at IS NOT NULL))) EXECUTE FUNCTION wharf.suspect_deleted();

CREATE TRIGGER suspect_removed AFTER DELETE ON wharf.files REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION wharf.suspect_removed();

ALTER TABLE ONLY wharf.api_keys
    ADD CONSTRAINT api_keys_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES wharf.tenants(id);

ALTER TABLE ONLY wharf.cached_results
    ADD CONSTRAINT cached_results_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES wharf.tenants(id);

ALTER TABLE ONLY wharf.files
    ADD CONSTRAINT files_sha256_fkey FOREIGN KEY (sha256) REFERENCES wharf.blobs(sha256);

ALTER TABLE ONLY wharf.files
    ADD CONSTRAINT files_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES wharf.tenants(id);

ALTER TABLE ONLY wharf.idempotency_keys
    ADD CONSTRAINT idempotency_keys_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES wharf.tenants(id);

ALTER TABLE ONLY wharf.jobs
    ADD CONSTRAINT jobs_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES wharf.tenants(id);

ALTER TABLE ONLY wharf.purged_files
    ADD CONSTRAINT purged_files_purge_id_fkey FOREIGN KEY (purge_id) REFERENCES wharf.purges(id);

ALTER TABLE ONLY wharf.purges
    ADD CONSTRAINT purges_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES wharf.tenants(id);

ALTER TABLE ONLY wharf.results
    ADD CONSTRAINT results_task_id_tenant_id_fkey FOREIGN KEY (task_id, tenant_id) REFERENCES wharf.tasks(id, tenant_id);

ALTER TABLE ONLY wharf.tasks
    ADD CONSTRAINT tasks_job_id_tenant_id_fkey FOREIGN KEY (job_id, tenant_id) REFERENCES wharf.jobs(id, tenant_id);

ALTER TABLE ONLY wharf.workers
    ADD CONSTRAINT workers_pool_model_version_fkey FOREIGN KEY (pool, model_version) REFERENCES wharf.models(name, version);

CREATE POLICY api_adds ON wharf.audit FOR INSERT TO wharf_api WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_adds ON wharf.audit_objects FOR INSERT TO wharf_api WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_answers ON wharf.results FOR INSERT TO wharf_api WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

ALTER TABLE wharf.api_keys ENABLE ROW LEVEL SECURITY;

CREATE POLICY api_own ON wharf.api_keys TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant))) WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.cached_results FOR SELECT TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.files TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant))) WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.idempotency_keys TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant))) WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.jobs TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant))) WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.purged_files FOR SELECT TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.purges FOR SELECT TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.results FOR SELECT TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.tasks TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant))) WITH CHECK ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_own ON wharf.tenants FOR SELECT TO wharf_api USING ((id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_reads ON wharf.audit FOR SELECT TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_reads ON wharf.audit_objects FOR SELECT TO wharf_api USING ((tenant_id = ( SELECT wharf.current_tenant() AS current_tenant)));

CREATE POLICY api_retention ON wharf.tenants FOR UPDATE TO wharf_api USING ((id = ( SELECT wharf.current_tenant() AS current_tenant))) WITH CHECK ((id = ( SELECT wharf.current_tenant() AS current_tenant)));

ALTER TABLE wharf.audit ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.audit_objects ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.cached_results ENABLE ROW LEVEL SECURITY;

CREATE POLICY cleanup_all ON wharf.cached_results TO wharf_cleanup USING (true) WITH CHECK (true);

CREATE POLICY cleanup_all ON wharf.files TO wharf_cleanup USING (true) WITH CHECK (true);

CREATE POLICY cleanup_all ON wharf.idempotency_keys TO wharf_cleanup USING (true) WITH CHECK (true);

CREATE POLICY cleanup_all ON wharf.jobs TO wharf_cleanup USING (true) WITH CHECK (true);

CREATE POLICY cleanup_all ON wharf.results TO wharf_cleanup USING (true) WITH CHECK (true);

CREATE POLICY cleanup_all ON wharf.suspects TO wharf_cleanup USING (true) WITH CHECK (true);

CREATE POLICY cleanup_all ON wharf.tasks TO wharf_cleanup USING (true) WITH CHECK (true);

CREATE POLICY cleanup_sees ON wharf.tenants FOR SELECT TO wharf_cleanup USING (true);

ALTER TABLE wharf.files ENABLE ROW LEVEL SECURITY;

CREATE POLICY fleet_all ON wharf.released TO wharf_worker, wharf_relay USING (true) WITH CHECK (true);

ALTER TABLE wharf.idempotency_keys ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.jobs ENABLE ROW LEVEL SECURITY;

CREATE POLICY owner_all ON wharf.api_keys TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.audit TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.audit_objects TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.cached_results TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.files TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.idempotency_keys TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.jobs TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.purged_files TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.purges TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.released TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.results TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.suspects TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.tasks TO wharf_owner USING (true) WITH CHECK (true);

CREATE POLICY owner_all ON wharf.tenants TO wharf_owner USING (true) WITH CHECK (true);

ALTER TABLE wharf.purged_files ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.purges ENABLE ROW LEVEL SECURITY;

CREATE POLICY relay_all ON wharf.jobs TO wharf_relay USING (true) WITH CHECK (true);

CREATE POLICY relay_all ON wharf.tasks TO wharf_relay USING (true) WITH CHECK (true);

ALTER TABLE wharf.released ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.results ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.suspects ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.tasks ENABLE ROW LEVEL SECURITY;

ALTER TABLE wharf.tenants ENABLE ROW LEVEL SECURITY;

CREATE POLICY worker_adds ON wharf.results FOR INSERT TO wharf_worker WITH CHECK (true);

CREATE POLICY worker_all ON wharf.cached_results TO wharf_worker USING (true) WITH CHECK (true);

CREATE POLICY worker_all ON wharf.jobs TO wharf_worker USING (true) WITH CHECK (true);

CREATE POLICY worker_all ON wharf.tasks TO wharf_worker USING (true) WITH CHECK (true);

GRANT USAGE ON SCHEMA wharf TO wharf_api;
GRANT USAGE ON SCHEMA wharf TO wharf_worker;
GRANT USAGE ON SCHEMA wharf TO wharf_relay;
GRANT USAGE ON SCHEMA wharf TO wharf_cleanup;

GRANT SELECT,INSERT ON TABLE wharf.jobs TO wharf_api;
GRANT SELECT ON TABLE wharf.jobs TO wharf_worker;
GRANT SELECT ON TABLE wharf.jobs TO wharf_relay;
GRANT DELETE ON TABLE wharf.jobs TO wharf_cleanup;

GRANT SELECT(id) ON TABLE wharf.jobs TO wharf_cleanup;

GRANT SELECT(tenant_id) ON TABLE wharf.jobs TO wharf_cleanup;

GRANT SELECT(total) ON TABLE wharf.jobs TO wharf_cleanup;

GRANT UPDATE(state) ON TABLE wharf.jobs TO wharf_api;
GRANT UPDATE(state) ON TABLE wharf.jobs TO wharf_worker;
GRANT UPDATE(state) ON TABLE wharf.jobs TO wharf_relay;
GRANT SELECT(state) ON TABLE wharf.jobs TO wharf_cleanup;

GRANT UPDATE(done) ON TABLE wharf.jobs TO wharf_api;
GRANT UPDATE(done) ON TABLE wharf.jobs TO wharf_worker;
GRANT UPDATE(done) ON TABLE wharf.jobs TO wharf_relay;

GRANT UPDATE(failed) ON TABLE wharf.jobs TO wharf_api;
GRANT UPDATE(failed) ON TABLE wharf.jobs TO wharf_worker;
GRANT UPDATE(failed) ON TABLE wharf.jobs TO wharf_relay;

GRANT UPDATE(finished_at) ON TABLE wharf.jobs TO wharf_api;
GRANT UPDATE(finished_at) ON TABLE wharf.jobs TO wharf_worker;
GRANT UPDATE(finished_at) ON TABLE wharf.jobs TO wharf_relay;
GRANT SELECT(finished_at) ON TABLE wharf.jobs TO wharf_cleanup;

GRANT UPDATE(traceparent) ON TABLE wharf.jobs TO wharf_cleanup;

GRANT SELECT,INSERT ON TABLE wharf.tasks TO wharf_api;
GRANT SELECT ON TABLE wharf.tasks TO wharf_worker;
GRANT SELECT ON TABLE wharf.tasks TO wharf_relay;
GRANT DELETE ON TABLE wharf.tasks TO wharf_cleanup;

GRANT SELECT(id) ON TABLE wharf.tasks TO wharf_cleanup;

GRANT SELECT(tenant_id) ON TABLE wharf.tasks TO wharf_cleanup;

GRANT SELECT(job_id) ON TABLE wharf.tasks TO wharf_cleanup;

GRANT SELECT(sha256) ON TABLE wharf.tasks TO wharf_cleanup;

GRANT UPDATE(state) ON TABLE wharf.tasks TO wharf_api;
GRANT UPDATE(state) ON TABLE wharf.tasks TO wharf_worker;
GRANT UPDATE(state) ON TABLE wharf.tasks TO wharf_relay;
GRANT SELECT(state) ON TABLE wharf.tasks TO wharf_cleanup;

GRANT UPDATE(not_before) ON TABLE wharf.tasks TO wharf_worker;
GRANT UPDATE(not_before) ON TABLE wharf.tasks TO wharf_relay;

GRANT UPDATE(released_at) ON TABLE wharf.tasks TO wharf_worker;

GRANT UPDATE(claimed_at) ON TABLE wharf.tasks TO wharf_worker;

GRANT UPDATE(lease_until) ON TABLE wharf.tasks TO wharf_api;
GRANT UPDATE(lease_until) ON TABLE wharf.tasks TO wharf_worker;
GRANT UPDATE(lease_until) ON TABLE wharf.tasks TO wharf_relay;

GRANT UPDATE(attempt) ON TABLE wharf.tasks TO wharf_worker;

GRANT UPDATE(spared) ON TABLE wharf.tasks TO wharf_worker;

GRANT UPDATE(worker) ON TABLE wharf.tasks TO wharf_worker;

GRANT UPDATE(error_code) ON TABLE wharf.tasks TO wharf_worker;
GRANT UPDATE(error_code) ON TABLE wharf.tasks TO wharf_relay;

GRANT UPDATE(error_detail) ON TABLE wharf.tasks TO wharf_worker;
GRANT UPDATE(error_detail) ON TABLE wharf.tasks TO wharf_relay;

GRANT UPDATE(ended_at) ON TABLE wharf.tasks TO wharf_api;
GRANT UPDATE(ended_at) ON TABLE wharf.tasks TO wharf_worker;
GRANT UPDATE(ended_at) ON TABLE wharf.tasks TO wharf_relay;
GRANT SELECT(ended_at) ON TABLE wharf.tasks TO wharf_cleanup;

GRANT UPDATE(purged_at) ON TABLE wharf.tasks TO wharf_cleanup;

GRANT UPDATE(recipe) ON TABLE wharf.tasks TO wharf_worker;

GRANT UPDATE(recipe_attempt) ON TABLE wharf.tasks TO wharf_worker;

GRANT SELECT ON TABLE wharf.tenants TO wharf_api;

GRANT SELECT(id) ON TABLE wharf.tenants TO wharf_cleanup;

GRANT SELECT(name) ON TABLE wharf.tenants TO wharf_cleanup;

GRANT UPDATE(file_retention) ON TABLE wharf.tenants TO wharf_api;
GRANT SELECT(file_retention) ON TABLE wharf.tenants TO wharf_cleanup;

GRANT UPDATE(job_retention) ON TABLE wharf.tenants TO wharf_api;
GRANT SELECT(job_retention) ON TABLE wharf.tenants TO wharf_cleanup;

REVOKE ALL ON FUNCTION wharf.jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.require_operator() FROM PUBLIC;

REVOKE ALL ON FUNCTION wharf.all_jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.all_jobs_to_retry(walk_began timestamp with time zone, after_job uuid, wanted_state text, wanted_model text, wanted_error text, wanted_metadata jsonb, created_after timestamp with time zone, created_before timestamp with time zone, most integer) TO wharf_api;

GRANT INSERT ON TABLE wharf.api_keys TO wharf_api;

GRANT SELECT(id) ON TABLE wharf.api_keys TO wharf_api;

GRANT SELECT(tenant_id) ON TABLE wharf.api_keys TO wharf_api;

GRANT SELECT(name) ON TABLE wharf.api_keys TO wharf_api;

GRANT SELECT(role) ON TABLE wharf.api_keys TO wharf_api;

GRANT SELECT(created_at) ON TABLE wharf.api_keys TO wharf_api;

GRANT SELECT(revoked_at),UPDATE(revoked_at) ON TABLE wharf.api_keys TO wharf_api;

REVOKE ALL ON FUNCTION wharf.authenticate(wanted_sha256 bytea) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.authenticate(wanted_sha256 bytea) TO wharf_api;

GRANT SELECT,INSERT,DELETE ON TABLE wharf.blobs TO wharf_cleanup;

GRANT UPDATE(state) ON TABLE wharf.blobs TO wharf_cleanup;

GRANT UPDATE(fault) ON TABLE wharf.blobs TO wharf_cleanup;

GRANT UPDATE(verified_at) ON TABLE wharf.blobs TO wharf_cleanup;

REVOKE ALL ON FUNCTION wharf.blob_faults(wanted bytea[]) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.blob_faults(wanted bytea[]) TO wharf_api;
GRANT ALL ON FUNCTION wharf.blob_faults(wanted bytea[]) TO wharf_worker;

REVOKE ALL ON FUNCTION wharf.blob_present(wanted_sha256 bytea) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.blob_present(wanted_sha256 bytea) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.blobs_quarantined(most integer) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.blobs_quarantined(most integer) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.copy_answer() FROM PUBLIC;

REVOKE ALL ON FUNCTION wharf.dispatch_twins() FROM PUBLIC;

REVOKE ALL ON FUNCTION wharf.forget_answers() FROM PUBLIC;

GRANT SELECT,INSERT ON TABLE wharf.audit TO wharf_api;

GRANT SELECT,INSERT ON TABLE wharf.audit_objects TO wharf_api;

REVOKE ALL ON FUNCTION wharf.forget_receipts(days integer, most integer) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.forget_receipts(days integer, most integer) TO wharf_cleanup;

REVOKE ALL ON FUNCTION wharf.hold_blobs(wanted bytea[]) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.hold_blobs(wanted bytea[]) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.open_tenant(wanted_name text, new_id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.open_tenant(wanted_name text, new_id uuid) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.pool_backlog(wanted_pool text, most integer) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.pool_backlog(wanted_pool text, most integer) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.pool_running(wanted_pool text) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.pool_running(wanted_pool text) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.purge(wanted_sha256 bytea, receipt_id uuid, gone_within interval) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.purge(wanted_sha256 bytea, receipt_id uuid, gone_within interval) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.recipe(model text, digest bytea, pipeline text, parameters jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.recipe(model text, digest bytea, pipeline text, parameters jsonb) TO wharf_api;
GRANT ALL ON FUNCTION wharf.recipe(model text, digest bytea, pipeline text, parameters jsonb) TO wharf_worker;

REVOKE ALL ON FUNCTION wharf.refuse_change() FROM PUBLIC;

REVOKE ALL ON FUNCTION wharf.report_corrupt(held_task uuid, held_attempt integer) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.report_corrupt(held_task uuid, held_attempt integer) TO wharf_worker;

GRANT SELECT ON TABLE wharf.models TO wharf_api;
GRANT SELECT,INSERT ON TABLE wharf.models TO wharf_worker;
GRANT SELECT ON TABLE wharf.models TO wharf_relay;

GRANT UPDATE(pipeline) ON TABLE wharf.models TO wharf_worker;

REVOKE ALL ON FUNCTION wharf.retire_model(wanted_name text, wanted_version integer) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.retire_model(wanted_name text, wanted_version integer) TO wharf_api;

GRANT SELECT ON TABLE wharf.pools TO wharf_api;
GRANT SELECT ON TABLE wharf.pools TO wharf_worker;
GRANT SELECT ON TABLE wharf.pools TO wharf_relay;

REVOKE ALL ON FUNCTION wharf.set_pool_state(wanted_pool text, wanted_state text) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.set_pool_state(wanted_pool text, wanted_state text) TO wharf_api;

GRANT SELECT,DELETE,UPDATE ON TABLE wharf.suspects TO wharf_cleanup;

REVOKE ALL ON FUNCTION wharf.suspect(gone_sha256 bytea, gone_at timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION wharf.suspect_deleted() FROM PUBLIC;

REVOKE ALL ON FUNCTION wharf.suspect_removed() FROM PUBLIC;

REVOKE ALL ON FUNCTION wharf.take_blob(wanted_sha256 bytea, wanted_size bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION wharf.take_blob(wanted_sha256 bytea, wanted_size bigint) TO wharf_api;

REVOKE ALL ON FUNCTION wharf.tasks_of_picture(of_tenant uuid, wanted_sha256 bytea) FROM PUBLIC;

GRANT SELECT ON TABLE wharf.cached_results TO wharf_api;
GRANT INSERT ON TABLE wharf.cached_results TO wharf_worker;
GRANT DELETE ON TABLE wharf.cached_results TO wharf_cleanup;

GRANT SELECT(sha256) ON TABLE wharf.cached_results TO wharf_worker;
GRANT SELECT(sha256) ON TABLE wharf.cached_results TO wharf_cleanup;

GRANT SELECT(tenant_id) ON TABLE wharf.cached_results TO wharf_worker;
GRANT SELECT(tenant_id) ON TABLE wharf.cached_results TO wharf_cleanup;

GRANT SELECT(recipe) ON TABLE wharf.cached_results TO wharf_worker;

GRANT SELECT(model) ON TABLE wharf.cached_results TO wharf_worker;

GRANT SELECT(created_at) ON TABLE wharf.cached_results TO wharf_cleanup;

GRANT SELECT ON TABLE wharf.cleanup_runs TO wharf_api;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE wharf.cleanup_runs TO wharf_cleanup;

GRANT SELECT,INSERT ON TABLE wharf.files TO wharf_api;
GRANT DELETE ON TABLE wharf.files TO wharf_cleanup;

GRANT SELECT(id) ON TABLE wharf.files TO wharf_cleanup;

GRANT SELECT(tenant_id) ON TABLE wharf.files TO wharf_cleanup;

GRANT SELECT(sha256) ON TABLE wharf.files TO wharf_cleanup;

GRANT SELECT(size) ON TABLE wharf.files TO wharf_cleanup;

GRANT UPDATE(expires_at) ON TABLE wharf.files TO wharf_api;
GRANT SELECT(expires_at),UPDATE(expires_at) ON TABLE wharf.files TO wharf_cleanup;

GRANT UPDATE(deleted_at) ON TABLE wharf.files TO wharf_api;
GRANT SELECT(deleted_at) ON TABLE wharf.files TO wharf_cleanup;

GRANT UPDATE(pinned) ON TABLE wharf.files TO wharf_api;
GRANT SELECT(pinned) ON TABLE wharf.files TO wharf_cleanup;

GRANT SELECT,INSERT ON TABLE wharf.idempotency_keys TO wharf_api;
GRANT DELETE ON TABLE wharf.idempotency_keys TO wharf_cleanup;

GRANT SELECT(tenant_id) ON TABLE wharf.idempotency_keys TO wharf_cleanup;

GRANT SELECT(key) ON TABLE wharf.idempotency_keys TO wharf_cleanup;

GRANT UPDATE(status) ON TABLE wharf.idempotency_keys TO wharf_api;

GRANT UPDATE(resource) ON TABLE wharf.idempotency_keys TO wharf_api;

GRANT SELECT(created_at) ON TABLE wharf.idempotency_keys TO wharf_cleanup;

GRANT SELECT ON TABLE wharf.installation TO wharf_api;
GRANT SELECT ON TABLE wharf.installation TO wharf_worker;
GRANT SELECT ON TABLE wharf.installation TO wharf_relay;
GRANT SELECT ON TABLE wharf.installation TO wharf_cleanup;

GRANT UPDATE(checkpoint) ON TABLE wharf.installation TO wharf_cleanup;

GRANT UPDATE(checkpoint_next) ON TABLE wharf.installation TO wharf_cleanup;

GRANT UPDATE(fingerprint) ON TABLE wharf.installation TO wharf_cleanup;

GRANT UPDATE(sweep_off_since) ON TABLE wharf.installation TO wharf_cleanup;

GRANT UPDATE(sweep_off_reason) ON TABLE wharf.installation TO wharf_cleanup;

GRANT SELECT(version) ON TABLE wharf.migrations TO wharf_api;
GRANT SELECT(version) ON TABLE wharf.migrations TO wharf_worker;
GRANT SELECT(version) ON TABLE wharf.migrations TO wharf_relay;
GRANT SELECT(version) ON TABLE wharf.migrations TO wharf_cleanup;

GRANT SELECT ON TABLE wharf.purged_files TO wharf_api;

GRANT SELECT ON TABLE wharf.purges TO wharf_api;

GRANT SELECT ON TABLE wharf.relays TO wharf_api;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE wharf.relays TO wharf_relay;

GRANT SELECT,INSERT,DELETE ON TABLE wharf.released TO wharf_relay;
GRANT SELECT,INSERT,DELETE ON TABLE wharf.released TO wharf_worker;

GRANT SELECT ON TABLE wharf.results TO wharf_api;
GRANT INSERT ON TABLE wharf.results TO wharf_worker;
GRANT DELETE ON TABLE wharf.results TO wharf_cleanup;

GRANT SELECT(task_id) ON TABLE wharf.results TO wharf_cleanup;
GRANT INSERT(task_id) ON TABLE wharf.results TO wharf_api;

GRANT INSERT(tenant_id) ON TABLE wharf.results TO wharf_api;

GRANT INSERT(attempt) ON TABLE wharf.results TO wharf_api;

GRANT INSERT(cached) ON TABLE wharf.results TO wharf_api;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE wharf.verify_runs TO wharf_cleanup;

GRANT SELECT ON TABLE wharf.workers TO wharf_api;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE wharf.workers TO wharf_worker;
GRANT SELECT ON TABLE wharf.workers TO wharf_relay;
