-- Custody: how long things are kept, how bytes that nobody refers to go, and what is known of damaged ones.

-- NULL: as the settings say (WHARF_FILE_RETENTION_DAYS, WHARF_JOB_RETENTION_DAYS).
ALTER TABLE wharf.tenants
    ADD COLUMN file_retention interval,
    ADD COLUMN job_retention interval,
    ADD CONSTRAINT tenants_retention CHECK (file_retention > interval '0' AND job_retention > interval '0') NOT VALID;
CREATE POLICY api_retention ON wharf.tenants FOR UPDATE TO wharf_api
    USING (id = (SELECT wharf.current_tenant())) WITH CHECK (id = (SELECT wharf.current_tenant()));
GRANT UPDATE (file_retention, job_retention) ON wharf.tenants TO wharf_api;

-- `pinned`: kept whatever `expires_at` says. Files of the release before have no `expires_at`: the cleanup dates them.
ALTER TABLE wharf.files ADD COLUMN pinned boolean NOT NULL DEFAULT false;
GRANT UPDATE (expires_at, pinned) ON wharf.files TO wharf_api;


-- `quarantined`: its bytes are damaged or gone (`fault`), and no new reference to it is made until an upload of the
-- same bytes has put them in place again. `verified_at`: when they were last read and found right.
ALTER TABLE wharf.blobs
    ADD COLUMN fault text,
    ADD COLUMN verified_at timestamptz,
    DROP CONSTRAINT blobs_state_check,
    ADD CONSTRAINT blobs_state_check CHECK (state IN ('present', 'deleting', 'quarantined')) NOT VALID,
    ADD CONSTRAINT blobs_fault CHECK (fault IN ('corrupt', 'missing')) NOT VALID,
    ADD CONSTRAINT blobs_fault_told CHECK (state <> 'quarantined' OR fault IS NOT NULL) NOT VALID;

-- The size is the caller's, who has read the bytes, unless the row promises some already.
CREATE OR REPLACE FUNCTION wharf.take_blob(wanted_sha256 bytea, wanted_size bigint) RETURNS text
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        INSERT INTO wharf.blobs AS b (sha256, size) VALUES (wanted_sha256, wanted_size)
        ON CONFLICT (sha256) DO UPDATE SET size = CASE WHEN b.state = 'present' THEN b.size ELSE excluded.size END
        RETURNING b.state;
    END;

CREATE OR REPLACE FUNCTION wharf.blob_present(wanted_sha256 bytea) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        UPDATE wharf.blobs SET state = 'present', fault = NULL WHERE sha256 = wanted_sha256;
    END;

-- Bytes that may have lost their last reference, at `since`: '-infinity' where they shall go without grace. `look_at`:
-- not to be looked at before. Whoever lets go of bytes is seen by the triggers below, whatever its release.
CREATE TABLE wharf.suspects (
    sha256  bytea PRIMARY KEY,
    since   timestamptz NOT NULL DEFAULT now(),
    look_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX suspects_by_time ON wharf.suspects (since, sha256);
ALTER TABLE wharf.suspects ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.suspects FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.suspects TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY cleanup_all ON wharf.suspects TO wharf_cleanup USING (true) WITH CHECK (true);

-- No DO NOTHING: that would count a row which a cleanup is about to take away. DO UPDATE waits for the cleanup's end.
CREATE FUNCTION wharf.suspect(gone_sha256 bytea, gone_at timestamptz) RETURNS void
    LANGUAGE sql SET search_path = ''
    BEGIN ATOMIC
        INSERT INTO wharf.suspects AS s (sha256, since) VALUES (gone_sha256, gone_at)
        ON CONFLICT (sha256) DO UPDATE SET since =
            CASE WHEN s.since = '-infinity' THEN s.since ELSE greatest(s.since, excluded.since) END;
    END;

CREATE FUNCTION wharf.suspect_deleted() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    PERFORM wharf.suspect(NEW.sha256, NEW.deleted_at);
    RETURN NULL;
END
$$;
CREATE TRIGGER suspect_deleted AFTER UPDATE OF deleted_at ON wharf.files
    FOR EACH ROW WHEN (OLD.deleted_at IS NULL AND NEW.deleted_at IS NOT NULL)
    EXECUTE FUNCTION wharf.suspect_deleted();

-- In sha256 order, so that two of them never wait in a circle.
CREATE FUNCTION wharf.suspect_removed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
BEGIN
    PERFORM wharf.suspect(gone.sha256, gone.at) FROM (
        SELECT r.sha256, max(coalesce(r.deleted_at, now())) AS at FROM removed r GROUP BY r.sha256 ORDER BY r.sha256
    ) gone;
    RETURN NULL;
END
$$;
CREATE TRIGGER suspect_removed AFTER DELETE ON wharf.files REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION wharf.suspect_removed();
REVOKE ALL ON FUNCTION wharf.suspect, wharf.suspect_deleted, wharf.suspect_removed FROM PUBLIC;

-- The history of cleanups. `stopped` is NULL while one runs; `killed` is written by the one that finds it so.
-- `swept_to`: how many of the volume's 4,096 folders the orphan sweep has seen, NULL where none was begun.
CREATE TABLE wharf.cleanup_runs (
    id            uuid PRIMARY KEY,
    started_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    stopped       text CHECK (stopped IN ('done', 'time', 'asked', 'error', 'killed')),
    without_grace boolean NOT NULL,
    expired_files bigint NOT NULL DEFAULT 0,
    expired_jobs  bigint NOT NULL DEFAULT 0,
    removed_blobs bigint NOT NULL DEFAULT 0,
    freed_bytes   bigint NOT NULL DEFAULT 0,
    staging       bigint NOT NULL DEFAULT 0,
    orphans       bigint NOT NULL DEFAULT 0,
    missing       bigint NOT NULL DEFAULT 0,
    errors        bigint NOT NULL DEFAULT 0,
    first_errors  jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(first_errors) = 'array'),
    swept_to      integer CHECK (swept_to BETWEEN 0 AND 4096),
    CHECK (stopped IS NULL OR stopped = 'killed' OR ended_at IS NOT NULL)
);
CREATE INDEX cleanup_runs_by_age ON wharf.cleanup_runs (started_at);
CREATE INDEX cleanup_runs_unfinished ON wharf.cleanup_runs (id) WHERE stopped IS NULL;
CREATE INDEX cleanup_runs_sweeping ON wharf.cleanup_runs (id) WHERE swept_to IS NOT NULL;
GRANT SELECT ON wharf.cleanup_runs TO wharf_api;

-- Volume and database carry the same mark, changed by every cleanup: `checkpoint_next` is written first, then the
-- volume's, then `checkpoint`. Where the volume has neither, or `fingerprint` is another database's, one of the two
-- was put back to an older state, and no byte is taken for an orphan until an operator has accepted that.
ALTER TABLE wharf.installation
    ADD COLUMN checkpoint uuid,
    ADD COLUMN checkpoint_next uuid,
    ADD COLUMN fingerprint text,
    ADD COLUMN sweep_off_since timestamptz,
    ADD COLUMN sweep_off_reason text,
    ADD CONSTRAINT sweep_off_told CHECK ((sweep_off_since IS NULL) = (sweep_off_reason IS NULL)) NOT VALID;
GRANT UPDATE (checkpoint, checkpoint_next, fingerprint, sweep_off_since, sweep_off_reason)
    ON wharf.installation TO wharf_cleanup;

-- The cleanup sees every tenant's rows, and of them only what it needs to know.
CREATE POLICY cleanup_sees ON wharf.tenants FOR SELECT TO wharf_cleanup USING (true);
CREATE POLICY cleanup_all ON wharf.files TO wharf_cleanup USING (true) WITH CHECK (true);
CREATE POLICY cleanup_all ON wharf.jobs TO wharf_cleanup USING (true) WITH CHECK (true);
CREATE POLICY cleanup_all ON wharf.tasks TO wharf_cleanup USING (true) WITH CHECK (true);
CREATE POLICY cleanup_all ON wharf.results TO wharf_cleanup USING (true) WITH CHECK (true);
CREATE POLICY cleanup_all ON wharf.idempotency_keys TO wharf_cleanup USING (true) WITH CHECK (true);
GRANT SELECT (id, file_retention, job_retention) ON wharf.tenants TO wharf_cleanup;
GRANT SELECT (id, tenant_id, sha256, size, expires_at, deleted_at, pinned), UPDATE (expires_at), DELETE
    ON wharf.files TO wharf_cleanup;
GRANT SELECT (id, tenant_id, state, total, finished_at), DELETE ON wharf.jobs TO wharf_cleanup;
GRANT SELECT (id, tenant_id, job_id, sha256, state), DELETE ON wharf.tasks TO wharf_cleanup;
GRANT SELECT (task_id), DELETE ON wharf.results TO wharf_cleanup;
GRANT SELECT (tenant_id, key, created_at), DELETE ON wharf.idempotency_keys TO wharf_cleanup;
GRANT SELECT, INSERT, UPDATE (state, fault, verified_at), DELETE ON wharf.blobs TO wharf_cleanup;
GRANT SELECT, UPDATE, DELETE ON wharf.suspects TO wharf_cleanup;
GRANT SELECT, INSERT, UPDATE, DELETE ON wharf.cleanup_runs TO wharf_cleanup;
