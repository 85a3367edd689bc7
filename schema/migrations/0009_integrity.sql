-- Integrity: damaged bytes are found, told, and healed; results say what they were computed from and with.

-- NULL in results of workers of the release before.
ALTER TABLE wharf.results
    ADD COLUMN engine text,
    ADD COLUMN engine_version text,
    ADD COLUMN verified boolean;

-- When bytes were last put in place. Who read before may have read what lay there earlier.
ALTER TABLE wharf.blobs ADD COLUMN placed_at timestamptz;

CREATE OR REPLACE FUNCTION wharf.blob_present(wanted_sha256 bytea) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        UPDATE wharf.blobs SET state = 'present', fault = NULL,
            placed_at = CASE WHEN state = 'present' THEN placed_at ELSE clock_timestamp() END,
            verified_at = CASE WHEN state = 'present' THEN verified_at ELSE clock_timestamp() END
        WHERE sha256 = wanted_sha256;
    END;

-- The worker that holds the task has read other bytes than were taken into custody. False: others were put in place
-- since it claimed the task, or it holds it no more.
CREATE FUNCTION wharf.report_corrupt(held_task uuid, held_attempt integer) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        WITH quarantined AS (
            UPDATE wharf.blobs b SET state = 'quarantined', fault = 'corrupt'
            FROM wharf.tasks t
            WHERE t.id = held_task AND t.attempt = held_attempt AND t.state = 'running' AND b.sha256 = t.sha256
              AND b.state IN ('present', 'quarantined') AND (b.placed_at IS NULL OR b.placed_at < t.claimed_at)
            RETURNING b.sha256
        )
        SELECT EXISTS (SELECT FROM quarantined);
    END;
REVOKE ALL ON FUNCTION wharf.report_corrupt FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.report_corrupt TO wharf_worker;

-- Which of these bytes are damaged or gone, and how.
CREATE FUNCTION wharf.blob_faults(wanted bytea[]) RETURNS TABLE (sha256 bytea, fault text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT b.sha256, b.fault FROM wharf.blobs b WHERE b.sha256 = ANY (wanted) AND b.state = 'quarantined';
    END;
REVOKE ALL ON FUNCTION wharf.blob_faults FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.blob_faults TO wharf_api;

-- The history of verifications. `stopped` is NULL while one runs; `killed` is written by the one that finds it so.
-- `restored`: quarantined before, and found right. `strangers`: files of the tree that no row names, NULL where it was
-- not counted. `quarantined`: in all, at its end.
CREATE TABLE wharf.verify_runs (
    id          uuid PRIMARY KEY,
    started_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    stopped     text CHECK (stopped IN ('done', 'time', 'asked', 'error', 'killed')),
    quick       boolean NOT NULL,
    checked     bigint NOT NULL DEFAULT 0,
    bytes       bigint NOT NULL DEFAULT 0,
    corrupt     bigint NOT NULL DEFAULT 0,
    missing     bigint NOT NULL DEFAULT 0,
    unreadable  bigint NOT NULL DEFAULT 0,
    restored    bigint NOT NULL DEFAULT 0,
    strangers   bigint,
    quarantined bigint,
    CHECK (stopped IS NULL OR stopped = 'killed' OR ended_at IS NOT NULL)
);
CREATE INDEX verify_runs_unfinished ON wharf.verify_runs (id) WHERE stopped IS NULL;
GRANT SELECT, INSERT, UPDATE, DELETE ON wharf.verify_runs TO wharf_cleanup;
GRANT SELECT (name) ON wharf.tenants TO wharf_cleanup;
