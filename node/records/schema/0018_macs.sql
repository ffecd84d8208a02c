-- A keyed MAC of every piece of a blob beside its digest, which takes a twelfth of the time to verify by. A blob without is verified by
-- its digests, as nodes of the release before verify all. Expands 0001 to 0017.
CREATE TABLE mac_key (
    id      bytea PRIMARY KEY CHECK (octet_length(id) = 8),
    secret  bytea NOT NULL,  -- encrypted with DATABASE_SECRET_KEY where there is one
    made_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE blob ADD COLUMN macs bytea;
COMMENT ON COLUMN blob.macs IS 'the id of the key, then of each MiB the second half of its SHA-256, and its MAC';
ALTER TABLE blob ALTER COLUMN macs SET STORAGE EXTERNAL;
-- Not looked for in the rows that are there, which have none: a large table would be locked meanwhile.
ALTER TABLE blob ADD CONSTRAINT blob_macs CHECK (octet_length(macs) = 8 + 32 * ((size + 1048575) / 1048576)) NOT VALID;
