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

-- What is attached by a tag (sha256-<hex>.sig and the like) to a closure that a tag pattern requires somewhere is owed there with the
-- tag, also where its manifest was there before.
CREATE FUNCTION tag_attached_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE name LIKE 'sha256-%') AND EXISTS (SELECT FROM tag_location) THEN
        INSERT INTO task (blob_id, location_id, size)
        SELECT DISTINCT b.id, l.id, b.size
        FROM new_rows n CROSS JOIN LATERAL manifest_closure(n.manifest_id, true) m
        JOIN manifest_blob mb ON mb.manifest_id = m JOIN blob b ON b.id = mb.blob_id
        CROSS JOIN LATERAL blob_tags(b.id) t
        JOIN tag_location tl ON tl.repository_id = t.repository_id AND tl.name = t.name COLLATE "C"
        JOIN location l ON l.id = tl.location_id AND l.state IN ('active', 'paused')
        WHERE n.name ~ '^sha256-[0-9a-f]{64}\.(sig|att|sbom)$' AND NOT EXISTS (
            SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = l.id AND p.state = 'present')
            AND NOT blob_forbidden(b.id, l.id)
        ORDER BY 1, 2 ON CONFLICT (blob_id, location_id) DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tag_attached_owe AFTER INSERT ON tag
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tag_attached_owe();
CREATE TRIGGER tag_attached_moved_owe AFTER UPDATE ON tag
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tag_attached_owe();
