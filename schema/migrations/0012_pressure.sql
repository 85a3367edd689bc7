-- Why a cleanup ran: because the volume was nearly full, or in its turn.
ALTER TABLE wharf.cleanup_runs ADD COLUMN under_pressure boolean NOT NULL DEFAULT false;
