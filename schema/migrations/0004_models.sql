-- Registered model versions, and the workers that serve them. Neither belongs to a tenant.

CREATE TABLE wharf.models (
    name         text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    version      integer NOT NULL CHECK (version > 0),
    digest       bytea NOT NULL CHECK (octet_length(digest) = 32),
    path         text NOT NULL,
    task         text NOT NULL,
    classes      jsonb NOT NULL CHECK (jsonb_typeof(classes) = 'array'),
    input_width  integer NOT NULL CHECK (input_width > 0),
    input_height integer NOT NULL CHECK (input_height > 0),
    state        text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'retired')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, version),
    UNIQUE (name, digest)
);
GRANT SELECT ON wharf.models TO wharf_api;
GRANT SELECT, INSERT ON wharf.models TO wharf_worker;

CREATE TABLE wharf.workers (
    name          text PRIMARY KEY,
    pool          text NOT NULL,
    model_version integer NOT NULL,
    engine        text NOT NULL,
    slots         integer NOT NULL CHECK (slots > 0),
    started_at    timestamptz NOT NULL DEFAULT now(),
    seen_at       timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (pool, model_version) REFERENCES wharf.models (name, version)
);
GRANT SELECT ON wharf.workers TO wharf_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON wharf.workers TO wharf_worker;
