-- Closures of one repository: only what it has itself counts, whether a child, what is attached by its subject, or what a tag names.
-- The same manifest may be in somebody else's repository with children that are not for everybody to have copied, and an index may
-- name what only others have (FEATURE_SPARSE_INDEX). Expands 0001 to 0013; a node of the release before works on it.
--
-- manifest_closure stays for those who sort out themselves what the repository holds; owe_closure and image_arrived without a
-- repository are not called any more.

-- The tags of a manifest in one repository, however many repositories have it.
DROP INDEX tag_by_manifest;
CREATE INDEX tag_by_manifest ON tag (manifest_id, repository_id);

-- The closure of a manifest that a repository has, downwards: children of indexes, and with referrers everything that has one of them
-- as its subject, by the subject field or by a tag named after it (sha256-<hex>.sig and the like).
CREATE FUNCTION closure_in(home bigint, root bigint, with_referrers boolean) RETURNS SETOF bigint LANGUAGE sql STABLE AS $$
    WITH RECURSIVE down(id) AS (
        SELECT root
        UNION
        SELECT next.id FROM down CROSS JOIN LATERAL (
            SELECT mc.child_id AS id FROM manifest_child mc WHERE mc.manifest_id = down.id
            UNION ALL
            SELECT c.id FROM awaited_child a JOIN manifest c ON c.digest = a.digest WHERE a.manifest_id = down.id
            UNION ALL
            SELECT r.id FROM manifest m JOIN manifest r ON r.subject = m.digest WHERE with_referrers AND m.id = down.id
            UNION ALL
            SELECT t.manifest_id FROM manifest m CROSS JOIN unnest(ARRAY['sig', 'att', 'sbom']) suffix
                JOIN tag t ON t.repository_id = home AND t.name = 'sha256-' || substr(m.digest, 8) || '.' || suffix
            WHERE with_referrers AND m.id = down.id AND m.digest LIKE 'sha256:%') next
        -- OFFSET 0 keeps the look-up by key: no plan may read all links of a large repository for the few manifests of one closure.
        WHERE EXISTS (SELECT FROM repository_manifest rm WHERE rm.repository_id = home AND rm.manifest_id = next.id OFFSET 0))
    SELECT id FROM down
$$;

-- The tags whose closure, referrers included, holds a blob: the same walk upwards, in each repository that has it in a manifest.
CREATE OR REPLACE FUNCTION blob_tags(wanted_blob bigint) RETURNS TABLE (repository_id bigint, name text) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE up(home, id) AS (
        SELECT l.home, mb.manifest_id FROM manifest_blob mb CROSS JOIN LATERAL (
            SELECT rm.repository_id AS home FROM repository_manifest rm WHERE rm.manifest_id = mb.manifest_id OFFSET 0) l
        WHERE mb.blob_id = wanted_blob
        UNION
        SELECT up.home, next.id FROM up CROSS JOIN LATERAL (
            SELECT mc.manifest_id AS id FROM manifest_child mc WHERE mc.child_id = up.id
            UNION ALL
            SELECT a.manifest_id FROM manifest m JOIN awaited_child a ON a.digest = m.digest WHERE m.id = up.id
            UNION ALL
            SELECT s.id FROM manifest m JOIN manifest s ON s.digest = m.subject WHERE m.id = up.id
            UNION ALL
            SELECT s.id FROM tag t JOIN manifest s ON s.digest = 'sha256:' || substr(t.name, 8, 64)
            WHERE t.manifest_id = up.id AND t.repository_id = up.home
                AND t.name ~ '^sha256-[0-9a-f]{64}\.(sig|att|sbom)$') next
        WHERE EXISTS (
            SELECT FROM repository_manifest rm WHERE rm.repository_id = up.home AND rm.manifest_id = next.id OFFSET 0))
    SELECT t.repository_id, t.name FROM up CROSS JOIN LATERAL (
        SELECT g.repository_id, g.name FROM tag g WHERE g.manifest_id = up.id AND g.repository_id = up.home OFFSET 0) t
$$;

-- Owes the closure of a repository's manifest, referrers included, to locations; tasks that exist get at least this priority.
CREATE FUNCTION owe_closure(home bigint, root bigint, locations integer[], wanted_priority integer) RETURNS void LANGUAGE sql AS $$
    INSERT INTO task (blob_id, location_id, size, priority)
    SELECT DISTINCT b.id, l.id, b.size, wanted_priority
    FROM closure_in(home, root, true) m JOIN manifest_blob mb ON mb.manifest_id = m JOIN blob b ON b.id = mb.blob_id
    JOIN location l ON l.id = ANY(locations) AND l.state IN ('active', 'paused')
    WHERE NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = l.id AND p.state = 'present')
        AND NOT blob_forbidden(b.id, l.id)
    ORDER BY 1, 2
    ON CONFLICT (blob_id, location_id) DO UPDATE SET priority = greatest(task.priority, excluded.priority)
$$;

CREATE OR REPLACE FUNCTION tag_location_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM owe_closure(t.repository_id, t.manifest_id, array_agg(n.location_id), 0)
        FROM new_rows n JOIN tag t ON t.repository_id = n.repository_id AND t.name = n.name
        GROUP BY t.repository_id, t.manifest_id;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tag_moved_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM owe_closure(n.repository_id, n.manifest_id, array_agg(tl.location_id), 0)
        FROM new_rows n JOIN tag_location tl ON tl.repository_id = n.repository_id AND tl.name = n.name
        GROUP BY n.repository_id, n.manifest_id;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tag_attached_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE name LIKE 'sha256-%') AND EXISTS (SELECT FROM tag_location) THEN
        INSERT INTO task (blob_id, location_id, size)
        SELECT DISTINCT b.id, l.id, b.size
        FROM new_rows n CROSS JOIN LATERAL closure_in(n.repository_id, n.manifest_id, true) m
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

-- Whether a location has all blobs of a repository's image.
CREATE FUNCTION image_arrived(home bigint, image bigint, wanted_location integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM closure_in(home, image, false) c (id) JOIN manifest_blob mb ON mb.manifest_id = c.id
        WHERE NOT EXISTS (
            SELECT FROM placement p
            WHERE p.blob_id = mb.blob_id AND p.location_id = wanted_location AND p.state = 'present'))
$$;

CREATE OR REPLACE FUNCTION tell_tags(repositories bigint[], tags text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell('pushed', r.namespace_id, r.name || ':' || t.name, jsonb_build_object(
            'repository', r.name, 'tag', t.name, 'digest', m.digest, 'media_type', rm.media_type))
        FROM unnest(repositories, tags) AS u (r, t)
        JOIN tag t ON t.repository_id = u.r AND t.name = u.t COLLATE "C" JOIN repository r ON r.id = t.repository_id
        JOIN manifest m ON m.id = t.manifest_id
        JOIN repository_manifest rm ON rm.repository_id = t.repository_id AND rm.manifest_id = t.manifest_id;
    IF listened('replicated') THEN
        INSERT INTO awaited_arrival (repository_id, manifest_id, location_id, tag)
        SELECT t.repository_id, t.manifest_id, l.id, t.name
        FROM unnest(repositories, tags) AS u (r, t)
        JOIN tag t ON t.repository_id = u.r AND t.name = u.t COLLATE "C" JOIN repository r ON r.id = t.repository_id
        CROSS JOIN LATERAL (
            SELECT q.location_id AS id FROM required_location q WHERE q.namespace_id = r.namespace_id
            UNION SELECT tl.location_id FROM tag_location tl WHERE tl.repository_id = t.repository_id AND tl.name = t.name) l
        WHERE NOT image_arrived(t.repository_id, t.manifest_id, l.id) ON CONFLICT DO NOTHING;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION settle_arrivals(most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    awaited record;
    told integer := 0;
BEGIN
    FOR awaited IN
        SELECT a.*, r.name AS repository, r.namespace_id, m.digest, l.name AS location,
            l.state <> 'removed' AND (
                EXISTS (SELECT FROM required_location q WHERE q.namespace_id = r.namespace_id AND q.location_id = a.location_id)
                OR EXISTS (SELECT FROM tag_location tl
                    WHERE tl.repository_id = a.repository_id AND tl.name = a.tag AND tl.location_id = a.location_id)) AS required
        FROM awaited_arrival a JOIN repository r ON r.id = a.repository_id JOIN manifest m ON m.id = a.manifest_id
        JOIN location l ON l.id = a.location_id
        ORDER BY a.looked_at LIMIT most FOR UPDATE OF a SKIP LOCKED
    LOOP
        IF image_arrived(awaited.repository_id, awaited.manifest_id, awaited.location_id) THEN
            PERFORM tell('replicated', awaited.namespace_id, awaited.repository || ':' || awaited.tag, jsonb_build_object(
                'repository', awaited.repository, 'tag', awaited.tag, 'digest', awaited.digest, 'location', awaited.location));
            told := told + 1;
        ELSIF awaited.required THEN
            UPDATE awaited_arrival a SET looked_at = clock_timestamp() WHERE a.repository_id = awaited.repository_id
                AND a.manifest_id = awaited.manifest_id AND a.location_id = awaited.location_id AND a.tag = awaited.tag;
            CONTINUE;
        END IF;
        DELETE FROM awaited_arrival a WHERE a.repository_id = awaited.repository_id
            AND a.manifest_id = awaited.manifest_id AND a.location_id = awaited.location_id AND a.tag = awaited.tag;
    END LOOP;
    RETURN told;
END $$;
