-- Tenants, their keys, and the wall between them.

GRANT USAGE ON SCHEMA wharf TO wharf_api, wharf_worker, wharf_relay, wharf_cleanup;

-- The tenant of this transaction: set with set_config('wharf.tenant', ..., true), NULL where nobody set it.
CREATE FUNCTION wharf.current_tenant() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('wharf.tenant', true), '')::uuid;

-- The database and the volume carry the same random id: a process that finds two different ones refuses to start.
CREATE TABLE wharf.installation (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    volume_id  uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT ON wharf.installation TO wharf_api, wharf_worker, wharf_relay, wharf_cleanup;

CREATE TABLE wharf.tenants (
    id         uuid PRIMARY KEY,
    name       text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    operator   boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE wharf.tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.tenants TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.tenants FOR SELECT TO wharf_api USING (id = (SELECT wharf.current_tenant()));
GRANT SELECT ON wharf.tenants TO wharf_api;

CREATE TABLE wharf.api_keys (
    id            uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL REFERENCES wharf.tenants (id),
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    role          text NOT NULL CHECK (role IN ('reader', 'writer', 'admin')),
    secret_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(secret_sha256) = 32),
    created_at    timestamptz NOT NULL DEFAULT now(),
    revoked_at    timestamptz
);
CREATE INDEX api_keys_by_tenant ON wharf.api_keys (tenant_id, id);
ALTER TABLE wharf.api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE wharf.api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON wharf.api_keys TO wharf_owner USING (true) WITH CHECK (true);
CREATE POLICY api_own ON wharf.api_keys TO wharf_api
    USING (tenant_id = (SELECT wharf.current_tenant())) WITH CHECK (tenant_id = (SELECT wharf.current_tenant()));
GRANT SELECT (id, tenant_id, name, role, created_at, revoked_at), INSERT, UPDATE (revoked_at)
    ON wharf.api_keys TO wharf_api;

-- Who is asking: the one question that comes before a tenant is known.
CREATE FUNCTION wharf.authenticate(wanted_sha256 bytea)
    RETURNS TABLE (key_id uuid, role text, tenant_id uuid, tenant text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
    BEGIN ATOMIC
        SELECT k.id, k.role, t.id, t.name
        FROM wharf.api_keys k JOIN wharf.tenants t ON t.id = k.tenant_id
        WHERE k.secret_sha256 = wanted_sha256 AND k.revoked_at IS NULL;
    END;
REVOKE ALL ON FUNCTION wharf.authenticate FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.authenticate TO wharf_api;

-- The id of a tenant by its name, made where it is missing. Only the operator's own transactions may ask.
CREATE FUNCTION wharf.open_tenant(wanted_name text, new_id uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
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
REVOKE ALL ON FUNCTION wharf.open_tenant FROM PUBLIC;
GRANT EXECUTE ON FUNCTION wharf.open_tenant TO wharf_api;
