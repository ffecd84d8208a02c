-- What is concluded of things that somebody may change at that moment is concluded once they are locked, and not from what was there
-- when the statement began that waited for them. Expands 0001 to 0041; nodes of the release before conclude as they did.

-- Makes sure that locations have rows; who comes first with a list of default locations makes it the database's.
CREATE FUNCTION enrol_locations(wanted text[], defaults text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- One node at a time: each has an order of its own, and perhaps a list.
    PERFORM pg_advisory_xact_lock(x'616e746b'::integer);
    INSERT INTO location (name) SELECT n.name FROM unnest(wanted) WITH ORDINALITY n (name, place)
        WHERE NOT EXISTS (SELECT FROM location l WHERE l.name = n.name) ORDER BY n.place ON CONFLICT (name) DO NOTHING;
    IF cardinality(defaults) > 0 AND NOT EXISTS (SELECT FROM default_location) THEN
        INSERT INTO agreed_default (names) VALUES (defaults) ON CONFLICT DO NOTHING;
        INSERT INTO default_location (location_id) SELECT l.id FROM location l WHERE l.name = ANY(defaults);
    END IF;
END $$;

-- Forgets copies, which belong together as blob, location and key, and the links of their blobs that have no copy then and that no
-- repository's manifest names. Returns how many copies there were.
CREATE FUNCTION forget_copies(blobs bigint[], locations integer[], keys text[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    gone integer;
BEGIN
    -- In the order of 0031. Whoever pushes or mounts such a blob is done, or begins when this is.
    PERFORM FROM namespace n WHERE n.id IN (
        SELECT r.namespace_id FROM repository r JOIN repository_blob rb ON rb.repository_id = r.id WHERE rb.blob_id = ANY(blobs))
        ORDER BY n.id FOR KEY SHARE;
    PERFORM FROM repository r WHERE r.id IN (SELECT rb.repository_id FROM repository_blob rb WHERE rb.blob_id = ANY(blobs))
        ORDER BY r.id FOR KEY SHARE;
    PERFORM FROM blob b WHERE b.id = ANY(blobs) ORDER BY b.id FOR NO KEY UPDATE;
    PERFORM FROM placement p WHERE p.blob_id = ANY(blobs) ORDER BY p.blob_id, p.location_id FOR UPDATE;
    DELETE FROM placement p USING unnest(blobs, locations, keys) AS u (blob_id, location_id, key)
        WHERE p.blob_id = u.blob_id AND p.location_id = u.location_id AND p.key = u.key;
    GET DIAGNOSTICS gone = ROW_COUNT;
    -- A manifest that is being pushed shares the links that it names.
    PERFORM FROM repository_blob rb WHERE rb.blob_id = ANY(blobs) ORDER BY rb.repository_id, rb.blob_id FOR UPDATE;
    DELETE FROM repository_blob rb WHERE rb.blob_id = ANY(blobs)
        AND NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = rb.blob_id)
        AND NOT EXISTS (
            SELECT FROM manifest_blob mb JOIN repository_manifest rm ON rm.manifest_id = mb.manifest_id
            WHERE mb.blob_id = rb.blob_id);
    RETURN gone;
END $$;

-- Deletes the repositories that the journals know to be deleted after all that they have here; returns how many.
CREATE FUNCTION delete_gone_repositories() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    wanted bigint[];
BEGIN
    wanted := ARRAY(SELECT r.id FROM journal_fact f JOIN repository r ON r.name = f.name WHERE f.kind = 'repository');
    -- Whoever pushes there is done, or begins when this is.
    PERFORM FROM repository r WHERE r.id = ANY(wanted) ORDER BY r.id FOR UPDATE;
    RETURN delete_repositories(ARRAY(
        SELECT r.id FROM repository r JOIN journal_fact f ON f.kind = 'repository' AND f.name = r.name
        CROSS JOIN LATERAL (SELECT to_timestamp(f.at / 1000000.0) AS at) gone
        WHERE r.id = ANY(wanted) AND r.created_at < gone.at
        AND NOT EXISTS (SELECT FROM repository_manifest rm WHERE rm.repository_id = r.id AND rm.linked_at > gone.at)
        AND NOT EXISTS (SELECT FROM repository_blob rb WHERE rb.repository_id = r.id AND rb.linked_at > gone.at)));
END $$;
