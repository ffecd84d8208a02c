-- The timeline as it is now. What the control file says of it is as old as the latest checkpoint, which a server that takes over
-- makes minutes later: until then nothing would pause. The same words as before for the same timeline, so that nothing pauses now.
CREATE OR REPLACE FUNCTION database_identity() RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    timeline bigint;
BEGIN
    SELECT c.timeline_id INTO timeline FROM pg_control_checkpoint() c;
    IF NOT pg_is_in_recovery() THEN
        BEGIN
            timeline := ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint;
        EXCEPTION WHEN feature_not_supported OR insufficient_privilege THEN
            NULL;  -- a hosted database may not tell: then the latest checkpoint has to do
        END;
    END IF;
    RETURN (SELECT s.system_identifier || '/' || d.oid || '/' || timeline
        FROM pg_control_system() s, pg_database d WHERE d.datname = current_database());
END $$;

-- However many manifests share one base layer, and whatever a sample says: look a blob's manifests up by key.
ALTER TABLE manifest_blob ALTER COLUMN blob_id SET (n_distinct = -0.2);
