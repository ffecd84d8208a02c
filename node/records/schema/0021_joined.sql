-- What joins a tag's closure is owed with all that comes along: a manifest that was awaited, or refers to something, brings children
-- and referrers that were there before it. Expands 0001 to 0019.

-- The tags of a repository whose closure, referrers included, holds a manifest of it: the walk of blob_tags from there upwards.
CREATE FUNCTION manifest_tags(home bigint, wanted bigint) RETURNS SETOF text LANGUAGE sql STABLE AS $$
    WITH RECURSIVE up(id) AS (
        SELECT wanted
        UNION
        SELECT next.id FROM up CROSS JOIN LATERAL (
            SELECT mc.manifest_id AS id FROM manifest_child mc WHERE mc.child_id = up.id
            UNION ALL
            SELECT a.manifest_id FROM manifest m JOIN awaited_child a ON a.digest = m.digest WHERE m.id = up.id
            UNION ALL
            SELECT s.id FROM manifest m JOIN manifest s ON s.digest = m.subject WHERE m.id = up.id
            UNION ALL
            SELECT s.id FROM tag t JOIN manifest s ON s.digest = 'sha256:' || substr(t.name, 8, 64)
            WHERE t.manifest_id = up.id AND t.repository_id = home
                AND t.name ~ '^sha256-[0-9a-f]{64}\.(sig|att|sbom)$') next
        WHERE EXISTS (SELECT FROM repository_manifest rm WHERE rm.repository_id = home AND rm.manifest_id = next.id OFFSET 0))
    SELECT t.name FROM up CROSS JOIN LATERAL (
        SELECT g.name FROM tag g WHERE g.manifest_id = up.id AND g.repository_id = home OFFSET 0) t
$$;

-- A task that is urgent enough is left as it is.
CREATE OR REPLACE FUNCTION owe_closure(home bigint, root bigint, locations integer[], wanted_priority integer) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO task (blob_id, location_id, size, priority)
    SELECT DISTINCT b.id, l.id, b.size, wanted_priority
    FROM closure_in(home, root, true) m JOIN manifest_blob mb ON mb.manifest_id = m JOIN blob b ON b.id = mb.blob_id
    JOIN location l ON l.id = ANY(locations) AND l.state IN ('active', 'paused')
    WHERE NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = l.id AND p.state = 'present')
        AND NOT blob_forbidden(b.id, l.id)
    ORDER BY 1, 2
    ON CONFLICT (blob_id, location_id) DO UPDATE SET priority = excluded.priority WHERE task.priority < excluded.priority
$$;

CREATE OR REPLACE FUNCTION manifest_linked_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM tag_location) THEN
        PERFORM owe_closure(n.repository_id, n.manifest_id, array_agg(DISTINCT tl.location_id), 0)
            FROM new_rows n CROSS JOIN LATERAL manifest_tags(n.repository_id, n.manifest_id) t (name)
            JOIN tag_location tl ON tl.repository_id = n.repository_id AND tl.name = t.name COLLATE "C"
            GROUP BY n.repository_id, n.manifest_id;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tag_attached_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE name LIKE 'sha256-%') AND EXISTS (SELECT FROM tag_location) THEN
        PERFORM owe_closure(n.repository_id, n.manifest_id, array_agg(DISTINCT tl.location_id), 0)
            FROM new_rows n CROSS JOIN LATERAL manifest_tags(n.repository_id, n.manifest_id) t (name)
            JOIN tag_location tl ON tl.repository_id = n.repository_id AND tl.name = t.name COLLATE "C"
            WHERE n.name ~ '^sha256-[0-9a-f]{64}\.(sig|att|sbom)$'
            GROUP BY n.repository_id, n.manifest_id;
    END IF;
    RETURN NULL;
END $$;
