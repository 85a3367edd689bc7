-- Receipts: who uploaded, read, inferred and deleted what. Rows are added and never changed; they go when they are old.

-- The least UUIDv7 of this moment: receipts are found, ordered and forgotten by the time in their ids.
CREATE FUNCTION wharf.first_id_at(moment timestamptz) RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (lpad(to_hex(greatest(floor(extract(epoch FROM moment) * 1000)::bigint, 0)), 12, '0') || repeat('0', 20))::uuid;

-- One row for each request that did or read something. No foreign keys: a receipt outlives what it speaks of.
-- `files` and `sha256` in the same order; `names` of models, pools and tenants. `details` holds no names of files.
CREATE TABLE wharf.audit (
    tenant_id  uuid NOT NULL,
    id         uuid NOT NULL,
    at         timestamptz NOT NULL,
    key_id     uuid NOT NULL,
    request_id text NOT NULL CHECK (length(request_id) BETWEEN 1 AND 128),
    action     text NOT NULL CHECK (action ~ '^[a-z]+\.[a-z_]+$' AND length(action) <= 40),
    outcome    text NOT NULL CHECK (outcome IN ('done', 'replayed')),
    files      uuid[],
    sha256     bytea[],
    jobs       uuid[],
    keys       uuid[],
    names      text[],
    details    jsonb CHECK (jsonb_typeof(details) = 'object' AND pg_column_size(details) <= 4096),
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX audit_by_key ON wharf.audit (tenant_id, key_id, id);
CREATE INDEX audit_by_action ON wharf.audit (tenant_id, action, id);
CREATE INDEX audit_by_request ON wharf.audit (tenant_id, request_id, id);

-- Which receipts name a file, job or key. A table, since row-level security lets no index on an array be used, and
-- such an index has no order.
CREATE TABLE wharf.audit_objects (
    tenant_id  uuid NOT NULL,
    object_id  uuid NOT NULL,
    receipt_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, object_id, receipt_id)
);

ALTER TABLE wharf.audit ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.audit FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.audit TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_reads ON wharf.audit FOR SELECT TO wharf_api USING (tenant_id = (SELECT wharf.current_tenant()));
CREATE POLICY api_adds ON wharf.audit FOR INSERT TO wharf_api
    WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
GRANT SELECT, INSERT ON wharf.audit TO wharf_api;

ALTER TABLE wharf.audit_objects ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.audit_objects FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.audit_objects TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_reads ON wharf.audit_objects FOR SELECT TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant()));
CREATE POLICY api_adds ON wharf.audit_objects FOR INSERT TO wharf_api
    WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
GRANT SELECT, INSERT ON wharf.audit_objects TO wharf_api;

-- Nobody changes a receipt, and nobody removes one that is younger than 30 days: not the owner, not a superuser.
CREATE FUNCTION wharf.refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = ''
AS $$
BEGIN
    RAISE insufficient_privilege USING MESSAGE = 'receipts are added, and never changed';
END
$$;
REVOKE ALL ON FUNCTION wharf.refuse_change FROM PUBLIC;

CREATE TRIGGER never_changes BEFORE UPDATE OR TRUNCATE ON wharf.audit
    FOR EACH STATEMENT EXECUTE FUNCTION wharf.refuse_change();
CREATE TRIGGER never_changes BEFORE UPDATE OR TRUNCATE ON wharf.audit_objects
    FOR EACH STATEMENT EXECUTE FUNCTION wharf.refuse_change();
CREATE TRIGGER stays_while_young BEFORE DELETE ON wharf.audit
    FOR EACH ROW WHEN (OLD.id >= wharf.first_id_at(now() - interval '30 days'))
    EXECUTE FUNCTION wharf.refuse_change();
CREATE TRIGGER stays_while_young BEFORE DELETE ON wharf.audit_objects
    FOR EACH ROW WHEN (OLD.receipt_id >= wharf.first_id_at(now() - interval '30 days'))
    EXECUTE FUNCTION wharf.refuse_change();

-- Removes up to `most` receipts of all tenants that are older than so many days, 30 at least; gives how many.
CREATE FUNCTION wharf.forget_receipts(days integer, most integer) RETURNS integer
    LANGUAGE sql SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        WITH old AS (
            SELECT a.tenant_id, a.id
            FROM wharf.tenants t CROSS JOIN LATERAL (
                SELECT a.tenant_id, a.id FROM wharf.audit a
                WHERE a.tenant_id = t.id
                  AND a.id < wharf.first_id_at(now() - make_interval(days => greatest(forget_receipts.days, 30)))
                ORDER BY a.id LIMIT forget_receipts.most
            ) a
            LIMIT forget_receipts.most
        ), gone AS (
            DELETE FROM wharf.audit a USING old WHERE a.tenant_id = old.tenant_id AND a.id = old.id
            RETURNING a.tenant_id, a.id, a.files || a.jobs || a.keys AS objects
        ), named AS (
            DELETE FROM wharf.audit_objects o
            USING (SELECT gone.tenant_id, gone.id, unnest(gone.objects) AS object_id FROM gone) g
            WHERE o.tenant_id = g.tenant_id AND o.object_id = g.object_id AND o.receipt_id = g.id
        )
        SELECT count(*)::integer FROM gone;
    END;
REVOKE ALL ON FUNCTION wharf.forget_receipts FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.forget_receipts TO wharf_cleanup;
