-- A copy that a rescue took from the journals was not made since then, whatever its row says: until somebody has read it, it is no
-- reason to let another copy go. Expands 0001 to 0034.

-- As 0022, but for such copies.
CREATE OR REPLACE FUNCTION outlives(wanted_blob bigint, wanted_location integer, since timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM placement q JOIN location l ON l.id = q.location_id AND l.state <> 'removed'
        WHERE q.blob_id = wanted_blob AND q.location_id <> wanted_location AND q.state = 'present' AND (
            q.created_at >= since AND NOT EXISTS (
                SELECT FROM unverified_copy u
                WHERE u.blob_id = q.blob_id AND u.location_id = q.location_id AND u.key = q.key)
            OR EXISTS (
                SELECT FROM proven_copy c WHERE c.blob_id = q.blob_id AND c.location_id = q.location_id AND c.key = q.key
                AND c.proven_at >= since)))
$$;

CREATE OR REPLACE FUNCTION unproven_at(wanted_location integer) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    since timestamptz;
BEGIN
    SELECT l.emptying_since INTO since FROM location l WHERE l.id = wanted_location;
    RETURN (
        WITH others AS (SELECT l.id FROM location l WHERE l.id <> wanted_location AND l.state <> 'removed')
        SELECT count(*) FROM (
            SELECT p.blob_id FROM placement p WHERE p.location_id = wanted_location
            EXCEPT (
                SELECT q.blob_id FROM placement q LEFT JOIN unverified_copy u USING (blob_id, location_id, key)
                WHERE q.state = 'present' AND q.created_at >= since AND u.blob_id IS NULL
                AND q.location_id IN (SELECT id FROM others)
                UNION ALL
                SELECT q.blob_id FROM proven_copy c JOIN placement q USING (blob_id, location_id, key)
                WHERE q.state = 'present' AND c.proven_at >= since AND c.location_id IN (SELECT id FROM others))) q);
END $$;
