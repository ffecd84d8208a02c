-- Risk is counted for all placements of a statement together, and whoever counts waits for nobody. Before, each blob had its row among
-- a location's counters, and two nodes that told of many copies at once waited for each other's rows in a circle, a second each time.
-- Expands 0001 to 0029.
LOCK TABLE placement, sole_copy IN SHARE ROW EXCLUSIVE MODE;  -- in the order in which everybody comes to them

CREATE SEQUENCE sole_total_shard MINVALUE 16;  -- below are those that were there before

CREATE FUNCTION add_to_sole_total(wanted_location integer, more_blobs bigint, more_bytes bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- Whichever of the location's rows is free; what counts is their sum.
    UPDATE sole_total t SET blobs = t.blobs + more_blobs, bytes = t.bytes + more_bytes
    WHERE t.location_id = wanted_location AND t.shard = (
        SELECT f.shard FROM sole_total f WHERE f.location_id = wanted_location LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED);
    IF NOT FOUND THEN
        INSERT INTO sole_total (location_id, shard, blobs, bytes)
        VALUES (wanted_location, nextval('sole_total_shard'), more_blobs, more_bytes);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION sole_copy_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM add_to_sole_total(o.location_id, -count(*), -sum(o.size)::bigint) FROM old_rows o GROUP BY o.location_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM add_to_sole_total(n.location_id, count(*), sum(n.size)::bigint) FROM new_rows n GROUP BY n.location_id;
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER sole_copy_count AFTER INSERT ON sole_copy
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION sole_copy_count();
CREATE TRIGGER sole_copy_moved AFTER UPDATE ON sole_copy
    REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION sole_copy_count();
CREATE TRIGGER sole_copy_ended AFTER DELETE ON sole_copy
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION sole_copy_count();

CREATE OR REPLACE FUNCTION placement_risk() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed bigint[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        changed := ARRAY(SELECT n.blob_id FROM new_rows n);
    ELSIF TG_OP = 'DELETE' THEN
        changed := ARRAY(SELECT o.blob_id FROM old_rows o);
    ELSE
        changed := ARRAY(
            SELECT n.blob_id FROM new_rows n
            JOIN old_rows o ON o.blob_id = n.blob_id AND o.location_id = n.location_id AND o.state <> n.state);
    END IF;
    IF cardinality(changed) = 0 THEN
        RETURN NULL;
    END IF;
    -- The blobs' rows order what happens to their placements at the same time. They are gone when the blobs are being collected.
    changed := ARRAY(SELECT b.id FROM blob b WHERE b.id = ANY(changed) ORDER BY b.id FOR NO KEY UPDATE);
    INSERT INTO sole_copy AS s (blob_id, location_id, size)
    SELECT b.id, min(p.location_id), b.size FROM blob b JOIN placement p ON p.blob_id = b.id AND p.state = 'present'
    WHERE b.id = ANY(changed) GROUP BY b.id HAVING count(*) = 1
    ON CONFLICT (blob_id) DO UPDATE SET location_id = excluded.location_id WHERE s.location_id <> excluded.location_id;
    DELETE FROM sole_copy s WHERE s.blob_id = ANY(changed)
        AND (SELECT count(*) FROM placement p WHERE p.blob_id = s.blob_id AND p.state = 'present') <> 1;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER placement_risk AFTER INSERT ON placement
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION placement_risk();
CREATE TRIGGER placement_risk_changed AFTER UPDATE ON placement
    REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION placement_risk();
CREATE TRIGGER placement_risk_gone AFTER DELETE ON placement
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION placement_risk();
