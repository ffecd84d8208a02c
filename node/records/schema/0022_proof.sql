-- A location that is being emptied is drained only when each of its blobs has a copy elsewhere that was made, or read to its end and
-- was right, since that began. Expands 0001 to 0021; nodes of the release before, which read nothing, still call it drained, but
-- cannot remove it.
ALTER TABLE location ADD COLUMN emptying_since timestamptz;
UPDATE location SET emptying_since = now() WHERE state IN ('draining', 'drained');

CREATE FUNCTION location_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.emptying_since := now();
    RETURN NEW;
END $$;
CREATE TRIGGER location_emptied BEFORE UPDATE OF state ON location FOR EACH ROW
    WHEN (NEW.state IN ('draining', 'drained') AND OLD.state NOT IN ('draining', 'drained')) EXECUTE FUNCTION location_emptied();

-- Copies that were read while some location was being emptied. Nothing depends on these rows; they count for the very object.
CREATE TABLE proven_copy (
    blob_id     bigint NOT NULL,
    location_id integer NOT NULL,
    key         text NOT NULL,
    proven_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (blob_id, location_id)
);

-- Whether a blob would outlive a location: it has a good copy elsewhere that was made or read since then.
CREATE FUNCTION outlives(wanted_blob bigint, wanted_location integer, since timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM placement q JOIN location l ON l.id = q.location_id AND l.state <> 'removed'
        WHERE q.blob_id = wanted_blob AND q.location_id <> wanted_location AND q.state = 'present' AND (
            q.created_at >= since OR EXISTS (
                SELECT FROM proven_copy c WHERE c.blob_id = q.blob_id AND c.location_id = q.location_id AND c.key = q.key
                AND c.proven_at >= since)))
$$;

-- How many blobs of a location that is being emptied would not outlive it as far as anybody knows. By sets: a look for each of a million
-- would take half a minute.
CREATE FUNCTION unproven_at(wanted_location integer) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    since timestamptz;
BEGIN
    SELECT l.emptying_since INTO since FROM location l WHERE l.id = wanted_location;
    RETURN (
        WITH others AS (SELECT l.id FROM location l WHERE l.id <> wanted_location AND l.state <> 'removed')
        SELECT count(*) FROM (
            SELECT p.blob_id FROM placement p WHERE p.location_id = wanted_location
            EXCEPT (
                SELECT q.blob_id FROM placement q
                WHERE q.state = 'present' AND q.created_at >= since AND q.location_id IN (SELECT id FROM others)
                UNION ALL
                SELECT q.blob_id FROM proven_copy c JOIN placement q USING (blob_id, location_id, key)
                WHERE q.state = 'present' AND c.proven_at >= since AND c.location_id IN (SELECT id FROM others))) q);
END $$;

CREATE OR REPLACE FUNCTION remove_location(wanted text, OUT outcome text, OUT blobs bigint) LANGUAGE plpgsql AS $$
DECLARE
    here location;
BEGIN
    blobs := 0;
    -- One removal at a time, and no other change of states meanwhile: two that rely on each other's copies would lose both.
    PERFORM FROM location l ORDER BY l.id FOR NO KEY UPDATE;
    SELECT l.* INTO here FROM location l WHERE l.name = wanted;
    IF NOT FOUND THEN
        outcome := 'unknown';
        RETURN;
    END IF;
    IF here.state = 'removed' THEN
        outcome := 'removed';
        RETURN;
    END IF;
    IF here.state NOT IN ('draining', 'drained') THEN
        outcome := 'not drained';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM location l JOIN placement p ON p.location_id = l.id WHERE l.state = 'removed') THEN
        outcome := 'another removal';
        RETURN;
    END IF;
    -- An upload that would still end there is ended, and a copy struck: from here on nothing can be placed there.
    UPDATE location l SET state = 'removed' WHERE l.id = here.id;
    DELETE FROM upload u WHERE u.location_id = here.id;
    DELETE FROM task t WHERE t.location_id = here.id;
    blobs := unproven_at(here.id);
    IF blobs > 0 THEN
        RAISE EXCEPTION 'only there: %', blobs USING ERRCODE = 'AN001';
    END IF;
    outcome := 'removed';
EXCEPTION WHEN SQLSTATE 'AN001' THEN
    outcome := 'only copies';
END $$;
