-- The roles of one PostgreSQL server. They hold rights and no password: a process logs in as one of them where the
-- server trusts it (the embedded socket), or as a login role of yours that is a member of one of them.
CREATE ROLE wharf_owner NOLOGIN;    -- owns every table; `wharf migrate` becomes it, no process runs as it
CREATE ROLE wharf_api LOGIN;        -- the broker: one tenant at a time, through row-level security
CREATE ROLE wharf_worker LOGIN;     -- the workers: claim and end tasks, store results
CREATE ROLE wharf_relay LOGIN;      -- the relay: releases tasks to RabbitMQ
CREATE ROLE wharf_cleanup LOGIN;    -- the cleanup and the verification: remove what has expired, look for damage
