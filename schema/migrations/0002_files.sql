-- Bytes (blobs: one row for each content, no tenant) and what tenants hold of them (files).

-- `present` promises bytes on the volume. A row is born `deleting`, which promises nothing, and turns `present`
-- in the transaction that has put its bytes in place.
CREATE TABLE wharf.blobs (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    size       bigint NOT NULL CHECK (size > 0),
    state      text NOT NULL DEFAULT 'deleting' CHECK (state IN ('present', 'deleting')),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Locks the row of these bytes until the transaction ends, made where it is missing. `deleting`: the caller must
-- put its bytes in place and call blob_present. ON CONFLICT DO NOTHING could come back with no row and no lock.
CREATE FUNCTION wharf.take_blob(wanted_sha256 bytea, wanted_size bigint) RETURNS text
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        INSERT INTO wharf.blobs AS b (sha256, size) VALUES (wanted_sha256, wanted_size)
        ON CONFLICT (sha256) DO UPDATE SET size = b.size
        RETURNING b.state;
    END;

CREATE FUNCTION wharf.blob_present(wanted_sha256 bytea) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        UPDATE wharf.blobs SET state = 'present' WHERE sha256 = wanted_sha256;
    END;

-- Every transaction that adds a live reference to bytes it did not bring calls this first: it keeps a cleanup from
-- marking them, and gives back those that are `present`. In sha256 order, so that two callers never wait in a circle.
CREATE FUNCTION wharf.hold_blobs(wanted bytea[]) RETURNS SETOF bytea
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT held.sha256 FROM (
            SELECT b.sha256, b.state FROM wharf.blobs b
            WHERE b.sha256 = ANY (wanted) ORDER BY b.sha256 FOR SHARE
        ) held
        WHERE held.state = 'present';
    END;

REVOKE ALL ON FUNCTION wharf.take_blob, wharf.blob_present, wharf.hold_blobs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.take_blob, wharf.blob_present, wharf.hold_blobs TO wharf_api;

CREATE TABLE wharf.files (
    id          uuid PRIMARY KEY,
    tenant_id   uuid NOT NULL REFERENCES wharf.tenants (id),
    sha256      bytea NOT NULL REFERENCES wharf.blobs (sha256),
    size        bigint NOT NULL CHECK (size > 0),
    media_type  text NOT NULL,
    width       integer NOT NULL CHECK (width > 0),
    height      integer NOT NULL CHECK (height > 0),
    orientation smallint NOT NULL DEFAULT 1 CHECK (orientation BETWEEN 1 AND 8),
    filename    text CHECK (length(filename) BETWEEN 1 AND 255),
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    deleted_at  timestamptz
);
CREATE INDEX files_by_tenant ON wharf.files (tenant_id, id) WHERE deleted_at IS NULL;
CREATE INDEX files_by_content ON wharf.files (sha256, tenant_id) WHERE deleted_at IS NULL;
ALTER TABLE wharf.files ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.files FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.files TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.files TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant())) WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
GRANT SELECT, INSERT, UPDATE (deleted_at) ON wharf.files TO wharf_api;

-- What a key has already brought about; written in the same transaction as the effect.
CREATE TABLE wharf.idempotency_keys (
    tenant_id   uuid NOT NULL REFERENCES wharf.tenants (id),
    key         text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    status      smallint NOT NULL,
    resource    uuid[] NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, key)
);
ALTER TABLE wharf.idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.idempotency_keys TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.idempotency_keys TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant())) WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
GRANT SELECT, INSERT, UPDATE (status, resource) ON wharf.idempotency_keys TO wharf_api;
