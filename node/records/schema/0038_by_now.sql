-- What a blob must have is compared with what it has once its row is locked, and not with what it had when the statement began that
-- waited for it: a copy that was let go meanwhile, or a task that was struck, is owed anew. Expands 0001 to 0037; nodes of the release
-- before compare as they did, but for tags that have locations.

-- Whether a location has a good copy of a blob by now: see 0029.
CREATE FUNCTION is_present_by_now(wanted_blob bigint, wanted_location integer) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM placement WHERE blob_id = wanted_blob AND location_id = wanted_location AND state = 'present');
END $$;

-- As 0037, but for that. Tasks that exist are left as they are; whether one does is seen when it is made: one that another transaction
-- makes or takes away, and is not over, is waited for.
CREATE OR REPLACE FUNCTION owe_closures(homes bigint[], roots bigint[], locations integer[]) RETURNS void LANGUAGE sql AS $$
    WITH asked AS MATERIALIZED (
        SELECT u.home, u.root, array_agg(DISTINCT u.location_id) AS locations
        FROM unnest(homes, roots, locations) AS u (home, root, location_id) GROUP BY 1, 2),
    part AS MATERIALIZED (
        SELECT DISTINCT mb.blob_id, a.locations FROM asked a CROSS JOIN LATERAL closure_in(a.home, a.root, true) m
        JOIN manifest_blob mb ON mb.manifest_id = m),
    -- The blobs first: whoever settles one may hold it and come to a task of another that is being made here.
    held AS MATERIALIZED (
        SELECT b.id, b.size FROM blob b WHERE b.id IN (SELECT blob_id FROM part) ORDER BY b.id FOR KEY SHARE)
    INSERT INTO task (blob_id, location_id, size)
    SELECT DISTINCT b.id, l.id, b.size
    FROM held b JOIN part ON part.blob_id = b.id JOIN location l ON l.id = ANY(part.locations) AND l.state IN ('active', 'paused')
    WHERE NOT (
            EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = l.id AND p.state = 'present')
            AND is_present_by_now(b.id, l.id))
        AND NOT blob_forbidden(b.id, l.id)
    ORDER BY 1, 2
    ON CONFLICT (blob_id, location_id) DO NOTHING
$$;
