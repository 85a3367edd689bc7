-- not in a transaction
-- The indexes that custody needs on tables which may be large, and the constraints that were added unproven.

CREATE INDEX CONCURRENTLY IF NOT EXISTS files_undated ON wharf.files (id)
    WHERE expires_at IS NULL AND deleted_at IS NULL AND NOT pinned;
CREATE INDEX CONCURRENTLY IF NOT EXISTS files_expiring ON wharf.files (expires_at, id)
    WHERE deleted_at IS NULL AND NOT pinned;
CREATE INDEX CONCURRENTLY IF NOT EXISTS files_deleted ON wharf.files (id) WHERE deleted_at IS NOT NULL;
-- Every row: the foreign key looks here when a blob goes, and a purge for its own tenant's.
CREATE INDEX CONCURRENTLY IF NOT EXISTS files_of_blob ON wharf.files (sha256, tenant_id);

CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_ended ON wharf.jobs (tenant_id, finished_at, id) WHERE state <> 'open';
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_reruns ON wharf.jobs (rerun_of) WHERE rerun_of IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_with_failures ON wharf.jobs (id) WHERE failed > 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_of_tenant_with_failures ON wharf.jobs (tenant_id, id) WHERE failed > 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS idempotency_keys_by_age ON wharf.idempotency_keys (created_at);

CREATE INDEX CONCURRENTLY IF NOT EXISTS tasks_of_picture ON wharf.tasks (tenant_id, sha256)
    WHERE state NOT IN ('queued', 'running') AND purged_at IS NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS blobs_deleting ON wharf.blobs (sha256) WHERE state = 'deleting';
-- What a verification does next, the least recently read first; and what was found damaged.
CREATE INDEX CONCURRENTLY IF NOT EXISTS blobs_by_verification
    ON wharf.blobs ((coalesce(verified_at, '-infinity'::timestamptz)), sha256) WHERE state = 'present';
CREATE INDEX CONCURRENTLY IF NOT EXISTS blobs_quarantined ON wharf.blobs (sha256) WHERE state = 'quarantined';

ALTER TABLE wharf.tenants VALIDATE CONSTRAINT tenants_retention;
ALTER TABLE wharf.blobs VALIDATE CONSTRAINT blobs_state_check;
ALTER TABLE wharf.blobs VALIDATE CONSTRAINT blobs_fault;
ALTER TABLE wharf.blobs VALIDATE CONSTRAINT blobs_fault_told;
ALTER TABLE wharf.installation VALIDATE CONSTRAINT sweep_off_told;
ALTER TABLE wharf.jobs VALIDATE CONSTRAINT jobs_check5;
ALTER TABLE wharf.tasks VALIDATE CONSTRAINT tasks_purged;
