-- What was let go of before there was a list of it. Apart from the migrations that lock tables: it reads all of `blobs`.
INSERT INTO wharf.suspects (sha256)
    SELECT b.sha256 FROM wharf.blobs b
    WHERE NOT EXISTS (SELECT FROM wharf.files f WHERE f.sha256 = b.sha256 AND f.deleted_at IS NULL)
ON CONFLICT (sha256) DO NOTHING;
