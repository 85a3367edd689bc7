-- Which release a worker or relay is: while a fleet is being upgraded it is a mixed one. NULL: one before 0.2.0.
ALTER TABLE wharf.workers ADD COLUMN release text;
ALTER TABLE wharf.relays ADD COLUMN release text;
