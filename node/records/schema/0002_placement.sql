-- Placement policy, derivable debt, risk and collection. Expands 0001; a node of the release before works on it.

-- Policy, compiled. `namespace.policy` keeps the rules as given; SQL does set algebra on what policy.py made of them.
CREATE TABLE namespace_never (
    namespace_id bigint NOT NULL REFERENCES namespace ON DELETE CASCADE,
    location_id  integer NOT NULL REFERENCES location,
    PRIMARY KEY (namespace_id, location_id)
);
COMMENT ON TABLE namespace_never IS 'where no blob may be that only such namespaces link';

CREATE TABLE tag_location (
    repository_id bigint NOT NULL,
    name          text COLLATE "C" NOT NULL,
    location_id   integer NOT NULL REFERENCES location,
    PRIMARY KEY (repository_id, name, location_id),
    FOREIGN KEY (repository_id, name) REFERENCES tag ON DELETE CASCADE
);
COMMENT ON TABLE tag_location IS 'where a tag''s closure must be besides what its namespace requires: the tag patterns, compiled per tag';

CREATE TABLE wanted (
    blob_id     bigint NOT NULL REFERENCES blob ON DELETE CASCADE,
    location_id integer NOT NULL REFERENCES location,
    until       timestamptz NOT NULL,
    PRIMARY KEY (blob_id, location_id)
);
COMMENT ON TABLE wanted IS 'copies that somebody asked for once, beyond policy; they count as required until then';

-- Whether a policy names the required locations itself; a policy of *never* or of tag patterns alone leaves the defaults.
ALTER TABLE namespace ADD COLUMN own_locations boolean NOT NULL DEFAULT false;
UPDATE namespace SET own_locations = true WHERE policy IS NOT NULL;

CREATE INDEX tag_by_manifest ON tag (manifest_id);
CREATE INDEX repository_namespace ON repository (namespace_id);

CREATE OR REPLACE VIEW required_location (namespace_id, location_id) AS
    SELECT q.namespace_id, q.location_id FROM (
        SELECT n.id AS namespace_id, nl.location_id
        FROM namespace n JOIN namespace_location nl ON nl.namespace_id = n.id WHERE n.own_locations
        UNION ALL
        SELECT n.id, d.location_id FROM namespace n CROSS JOIN default_location d WHERE NOT n.own_locations) q
    WHERE NOT EXISTS (
        SELECT FROM namespace_never v WHERE v.namespace_id = q.namespace_id AND v.location_id = q.location_id);

-- The closure of manifests downwards: children of indexes, and with referrers everything that has one of them as its subject,
-- by the subject field or by a tag named after it (sha256-<hex>.sig and the like).
CREATE FUNCTION manifest_closure(root bigint, with_referrers boolean) RETURNS SETOF bigint LANGUAGE sql STABLE AS $$
    WITH RECURSIVE down(id) AS (
        SELECT root
        UNION
        SELECT next.id FROM down CROSS JOIN LATERAL (
            SELECT mc.child_id AS id FROM manifest_child mc WHERE mc.manifest_id = down.id
            UNION ALL
            SELECT r.id FROM manifest m JOIN manifest r ON r.subject = m.digest WHERE with_referrers AND m.id = down.id
            UNION ALL
            SELECT t.manifest_id FROM manifest m CROSS JOIN unnest(ARRAY['sig', 'att', 'sbom']) suffix
                JOIN tag t ON t.name = 'sha256-' || substr(m.digest, 8) || '.' || suffix
                JOIN repository_manifest rm ON rm.repository_id = t.repository_id AND rm.manifest_id = m.id
            WHERE with_referrers AND m.id = down.id AND m.digest LIKE 'sha256:%') next)
    SELECT id FROM down
$$;
CREATE INDEX tag_attached ON tag (name) WHERE name LIKE 'sha256-%';

-- The tags whose closure, referrers included, holds a blob: the same walk upwards.
CREATE FUNCTION blob_tags(wanted_blob bigint) RETURNS TABLE (repository_id bigint, name text) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE up(id) AS (
        SELECT mb.manifest_id FROM manifest_blob mb WHERE mb.blob_id = wanted_blob
        UNION
        SELECT next.id FROM up CROSS JOIN LATERAL (
            SELECT mc.manifest_id AS id FROM manifest_child mc WHERE mc.child_id = up.id
            UNION ALL
            SELECT s.id FROM manifest m JOIN manifest s ON s.digest = m.subject WHERE m.id = up.id
            UNION ALL
            SELECT s.id FROM tag t JOIN manifest s ON s.digest = 'sha256:' || substr(t.name, 8, 64)
            WHERE t.manifest_id = up.id AND t.name ~ '^sha256-[0-9a-f]{64}\.(sig|att|sbom)$') next)
    -- OFFSET 0 keeps the look-up by index: no plan may read all tags for the few manifests of one blob.
    SELECT t.repository_id, t.name FROM up
        CROSS JOIN LATERAL (SELECT g.repository_id, g.name FROM tag g WHERE g.manifest_id = up.id OFFSET 0) t
$$;

-- Where a blob may be: one namespace that links it and does not forbid the location is enough.
CREATE FUNCTION blob_allowed(wanted_blob bigint, wanted_location integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
        WHERE rb.blob_id = wanted_blob AND NOT EXISTS (
            SELECT FROM namespace_never v WHERE v.namespace_id = r.namespace_id AND v.location_id = wanted_location))
$$;

-- Where a blob may not be: every namespace that links it forbids the location. What nothing links is nobody's to forbid.
CREATE FUNCTION blob_forbidden(wanted_blob bigint, wanted_location integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM namespace_never v WHERE v.location_id = wanted_location)
        AND EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = wanted_blob)
        AND NOT blob_allowed(wanted_blob, wanted_location)
$$;

-- Where a blob must be. Locations that are being emptied require nothing, and a *never* of all who link the blob outweighs tags
-- and wishes.
CREATE FUNCTION blob_required(wanted_blob bigint) RETURNS SETOF integer LANGUAGE sql STABLE AS $$
    SELECT q.location_id FROM (
        SELECT rl.location_id FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id
            JOIN required_location rl ON rl.namespace_id = r.namespace_id WHERE rb.blob_id = wanted_blob
        UNION
        SELECT tl.location_id FROM blob_tags(wanted_blob) t
            JOIN tag_location tl ON tl.repository_id = t.repository_id AND tl.name = t.name COLLATE "C"
            WHERE EXISTS (SELECT FROM tag_location)
        UNION
        SELECT w.location_id FROM wanted w WHERE w.blob_id = wanted_blob AND w.until > now()) q
    JOIN location l ON l.id = q.location_id AND l.state IN ('active', 'paused')
    WHERE NOT EXISTS (SELECT FROM namespace_never) OR NOT blob_forbidden(wanted_blob, q.location_id)
$$;

-- Owes the closure of a manifest, referrers included, to locations; tasks that exist get at least this priority.
CREATE FUNCTION owe_closure(root bigint, locations integer[], wanted_priority integer) RETURNS void LANGUAGE sql AS $$
    INSERT INTO task (blob_id, location_id, size, priority)
    SELECT DISTINCT b.id, l.id, b.size, wanted_priority
    FROM manifest_closure(root, true) m JOIN manifest_blob mb ON mb.manifest_id = m JOIN blob b ON b.id = mb.blob_id
    JOIN location l ON l.id = ANY(locations) AND l.state IN ('active', 'paused')
    WHERE NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = l.id AND p.state = 'present')
        AND NOT blob_forbidden(b.id, l.id)
    ORDER BY 1, 2
    ON CONFLICT (blob_id, location_id) DO UPDATE SET priority = greatest(task.priority, excluded.priority)
$$;

-- A tag that must be somewhere owes its closure there at once. After the statement, so that it sees all that the push committed.
CREATE FUNCTION tag_location_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM owe_closure(t.manifest_id, array_agg(n.location_id), 0)
        FROM new_rows n JOIN tag t ON t.repository_id = n.repository_id AND t.name = n.name GROUP BY t.manifest_id;
    RETURN NULL;
END $$;
CREATE TRIGGER tag_location_owe AFTER INSERT ON tag_location
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tag_location_owe();

CREATE FUNCTION tag_moved_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM owe_closure(n.manifest_id, array_agg(tl.location_id), 0)
        FROM new_rows n JOIN tag_location tl ON tl.repository_id = n.repository_id AND tl.name = n.name GROUP BY n.manifest_id;
    RETURN NULL;
END $$;
CREATE TRIGGER tag_moved_owe AFTER UPDATE ON tag
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tag_moved_owe();

-- What is attached to a tagged closure later (a signature, a bill of materials) must be where the closure must be.
CREATE FUNCTION manifest_linked_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM tag_location) THEN
        INSERT INTO task (blob_id, location_id, size)
        SELECT DISTINCT b.id, tl.location_id, b.size
        FROM new_rows n JOIN manifest_blob mb ON mb.manifest_id = n.manifest_id JOIN blob b ON b.id = mb.blob_id
        CROSS JOIN LATERAL blob_tags(b.id) t
        JOIN tag_location tl ON tl.repository_id = t.repository_id AND tl.name = t.name COLLATE "C"
        JOIN location l ON l.id = tl.location_id AND l.state IN ('active', 'paused')
        WHERE NOT EXISTS (
            SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = tl.location_id AND p.state = 'present')
            AND NOT blob_forbidden(b.id, tl.location_id)
        ORDER BY 1, 2 ON CONFLICT (blob_id, location_id) DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_linked_owe AFTER INSERT ON repository_manifest
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION manifest_linked_owe();

-- Risk: blobs whose only good copy is in one location, and how much that is, in counters that pushes do not queue up behind.
CREATE TABLE sole_copy (
    blob_id     bigint PRIMARY KEY REFERENCES blob ON DELETE CASCADE,
    location_id integer NOT NULL REFERENCES location,
    size        bigint NOT NULL,
    since       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sole_copy_age ON sole_copy (location_id, since, blob_id);

CREATE TABLE sole_total (
    location_id integer NOT NULL REFERENCES location,
    shard       integer NOT NULL,
    blobs       bigint NOT NULL DEFAULT 0,
    bytes       bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (location_id, shard)
);

CREATE FUNCTION placement_risk() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed bigint := coalesce(NEW.blob_id, OLD.blob_id);
    good integer[];
    size_of bigint;
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.state = OLD.state THEN
        RETURN NULL;
    END IF;
    -- The blob's row orders what happens to its placements at the same time. It is gone when the blob is being collected.
    SELECT b.size INTO size_of FROM blob b WHERE b.id = changed FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(array_agg(p.location_id), '{}') INTO good FROM placement p WHERE p.blob_id = changed AND p.state = 'present';
    IF cardinality(good) = 1 THEN
        INSERT INTO sole_copy (blob_id, location_id, size) VALUES (changed, good[1], size_of)
        ON CONFLICT (blob_id) DO UPDATE SET location_id = excluded.location_id WHERE sole_copy.location_id <> excluded.location_id;
    ELSE
        DELETE FROM sole_copy WHERE blob_id = changed;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER placement_risk AFTER INSERT OR UPDATE OR DELETE ON placement FOR EACH ROW EXECUTE FUNCTION placement_risk();

CREATE FUNCTION sole_copy_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO sole_total (location_id, shard, blobs, bytes) VALUES (OLD.location_id, OLD.blob_id % 16, -1, -OLD.size)
        ON CONFLICT (location_id, shard) DO UPDATE
            SET blobs = sole_total.blobs + excluded.blobs, bytes = sole_total.bytes + excluded.bytes;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO sole_total (location_id, shard, blobs, bytes) VALUES (NEW.location_id, NEW.blob_id % 16, 1, NEW.size)
        ON CONFLICT (location_id, shard) DO UPDATE
            SET blobs = sole_total.blobs + excluded.blobs, bytes = sole_total.bytes + excluded.bytes;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER sole_copy_count AFTER INSERT OR UPDATE OR DELETE ON sole_copy FOR EACH ROW EXECUTE FUNCTION sole_copy_count();

INSERT INTO sole_copy (blob_id, location_id, size, since)
    SELECT b.id, min(p.location_id), b.size, min(p.created_at) FROM blob b JOIN placement p ON p.blob_id = b.id AND p.state = 'present'
    GROUP BY b.id HAVING count(*) = 1;

-- Collection: what may have lost its last reference, and when. A candidate is only ever a place to look: the collector checks.
CREATE TABLE garbage (
    kind          text NOT NULL CHECK (kind IN ('manifest link', 'blob link', 'manifest', 'blob')),
    repository_id bigint NOT NULL DEFAULT 0,  -- 0 for the global kinds
    object_id     bigint NOT NULL,
    since         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, repository_id, object_id)
);
CREATE INDEX garbage_since ON garbage (kind, since);

CREATE FUNCTION note_garbage(new_kind text, repositories bigint[], objects bigint[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO garbage (kind, repository_id, object_id)
    SELECT DISTINCT new_kind, r, o FROM unnest(repositories, objects) AS u (r, o) ORDER BY 1, 2, 3
    ON CONFLICT (kind, repository_id, object_id) DO UPDATE SET since = now()
$$;

-- A manifest that was linked without a tag, or lost its tag or its tag's history, may be garbage.
CREATE FUNCTION manifest_link_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_garbage('manifest link', array_agg(c.repository_id), array_agg(c.manifest_id)) FROM changed c HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_linked AFTER INSERT ON repository_manifest
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_link_garbage();
CREATE TRIGGER tag_deleted AFTER DELETE ON tag
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_link_garbage();
CREATE TRIGGER tag_moved AFTER UPDATE ON tag
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_link_garbage();
CREATE TRIGGER tag_history_deleted AFTER DELETE ON tag_history
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_link_garbage();

-- A manifest that left a repository leaves its blobs, children and referrers there, perhaps without a use, and may be gone everywhere.
CREATE FUNCTION manifest_unlinked_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_garbage('blob link', array_agg(c.repository_id), array_agg(mb.blob_id))
        FROM changed c JOIN manifest_blob mb ON mb.manifest_id = c.manifest_id HAVING count(*) > 0;
    PERFORM note_garbage('manifest link', array_agg(c.repository_id), array_agg(rm.manifest_id))
        FROM changed c JOIN manifest m ON m.id = c.manifest_id
        JOIN LATERAL (
            SELECT mc.child_id AS id FROM manifest_child mc WHERE mc.manifest_id = m.id
            UNION ALL SELECT r.id FROM manifest r WHERE r.subject = m.digest) near ON true
        JOIN repository_manifest rm ON rm.repository_id = c.repository_id AND rm.manifest_id = near.id HAVING count(*) > 0;
    PERFORM note_garbage('manifest', array_agg(0::bigint), array_agg(c.manifest_id)) FROM changed c HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_unlinked AFTER DELETE ON repository_manifest
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_unlinked_garbage();

-- A blob that was linked may never be used; one that was unlinked may be gone everywhere.
CREATE FUNCTION blob_linked_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_garbage('blob link', array_agg(c.repository_id), array_agg(c.blob_id)) FROM changed c HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER blob_linked AFTER INSERT ON repository_blob
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION blob_linked_garbage();

CREATE FUNCTION blob_unlinked_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_garbage('blob', array_agg(0::bigint), array_agg(c.blob_id)) FROM changed c HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER blob_unlinked AFTER DELETE ON repository_blob
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION blob_unlinked_garbage();

-- What is there already is looked at once.
INSERT INTO garbage (kind, repository_id, object_id) SELECT 'manifest link', repository_id, manifest_id FROM repository_manifest;
INSERT INTO garbage (kind, repository_id, object_id) SELECT 'blob link', repository_id, blob_id FROM repository_blob;
INSERT INTO garbage (kind, object_id) SELECT 'manifest', m.id FROM manifest m
    WHERE NOT EXISTS (SELECT FROM repository_manifest rm WHERE rm.manifest_id = m.id);
INSERT INTO garbage (kind, object_id) SELECT 'blob', b.id FROM blob b
    WHERE NOT EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = b.id);

-- Where the reconciler is, what copying has brought lately, and what the database was when the nodes last saw it.
CREATE TABLE bookmark (
    name       text PRIMARY KEY,
    value      jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE node ADD COLUMN throughput jsonb NOT NULL DEFAULT '{}';  -- bytes per second this node copies into each location

-- Reconciliation. What a blob is, owes and holds, as one value: a decision that was made on it is applied only while it still holds.
CREATE FUNCTION blob_facts(wanted_blob bigint) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'linked', EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = wanted_blob),
        'required', (SELECT coalesce(jsonb_agg(l.name ORDER BY l.id), '[]') FROM location l
            WHERE l.id IN (SELECT r FROM blob_required(wanted_blob) r)),
        'forbidden', (SELECT coalesce(jsonb_agg(l.name ORDER BY l.id), '[]') FROM location l
            WHERE EXISTS (SELECT FROM namespace_never) AND blob_forbidden(wanted_blob, l.id)),
        'placed', (SELECT coalesce(jsonb_object_agg(l.name, p.state), '{}') FROM placement p JOIN location l ON l.id = p.location_id
            WHERE p.blob_id = wanted_blob),
        'tasks', (SELECT coalesce(jsonb_object_agg(l.name, coalesce(t.lease_until > now(), false)), '{}')
            FROM task t JOIN location l ON l.id = t.location_id WHERE t.blob_id = wanted_blob),
        'states', (SELECT jsonb_agg(jsonb_build_array(l.name, l.state)
            ORDER BY NOT EXISTS (SELECT FROM default_location d WHERE d.location_id = l.id), l.id) FROM location l))
$$;

-- Applies to one blob what was decided on its facts. Never waits for anybody: what is in use is left to the next look. A
-- function, because what it looks at under the lock must be newer than the lock.
CREATE FUNCTION settle_blob(
    wanted_blob bigint, facts jsonb, owe text[], strike text[], trim_at text[], keep_seconds double precision
) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(strike) + cardinality(trim_at) = 0 THEN
        PERFORM FROM blob b WHERE b.id = wanted_blob FOR KEY SHARE SKIP LOCKED;
    ELSE
        -- Excludes everything that links the blob, records a copy of it or collects it.
        PERFORM FROM blob b WHERE b.id = wanted_blob FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        RETURN 'busy';
    END IF;
    IF (SELECT count(*) FROM (SELECT FROM task t WHERE t.blob_id = wanted_blob FOR UPDATE SKIP LOCKED) q)
            <> (SELECT count(*) FROM task t WHERE t.blob_id = wanted_blob)
        OR (SELECT count(*) FROM (SELECT FROM placement p WHERE p.blob_id = wanted_blob FOR UPDATE SKIP LOCKED) q)
            <> (SELECT count(*) FROM placement p WHERE p.blob_id = wanted_blob) THEN
        RETURN 'busy';
    END IF;
    IF blob_facts(wanted_blob) IS DISTINCT FROM facts THEN
        RETURN 'changed';
    END IF;
    INSERT INTO task (blob_id, location_id, size)
        SELECT b.id, l.id, b.size FROM blob b JOIN location l ON l.name = ANY(owe) WHERE b.id = wanted_blob
        ON CONFLICT (blob_id, location_id) DO NOTHING;
    WITH gone AS (
        DELETE FROM task t USING location l WHERE t.blob_id = wanted_blob AND l.id = t.location_id AND l.name = ANY(strike)
        RETURNING t.location_id, t.key)
    INSERT INTO dead_object (location_id, key, not_before)
        SELECT g.location_id, g.key, now() + keep_seconds * interval '1 second' FROM gone g
        WHERE g.key IS NOT NULL AND NOT EXISTS (SELECT FROM placement p WHERE p.location_id = g.location_id AND p.key = g.key)
        ON CONFLICT DO NOTHING;
    -- After a restore a copy that the records have may be gone: the one that is not required may be the only one (0004).
    WITH gone AS (
        DELETE FROM placement p USING location l WHERE p.blob_id = wanted_blob AND l.id = p.location_id AND l.name = ANY(trim_at)
        AND NOT collection_paused()
        RETURNING p.location_id, p.key)
    INSERT INTO dead_object (location_id, key, not_before)
        SELECT g.location_id, g.key, now() + keep_seconds * interval '1 second' FROM gone g ON CONFLICT DO NOTHING;
    RETURN 'done';
END $$;

-- The pages of the round that the nodes are at together, while somebody works on them. The round itself is a bookmark.
CREATE TABLE reconcile_page (
    after_blob  bigint PRIMARY KEY,
    last_blob   bigint NOT NULL,
    lease_until timestamptz NOT NULL
);

-- Gives a caller the next piece of the round: the tags that have to be compiled, a page of blobs, or nothing for the moment.
CREATE FUNCTION claim_reconciliation(most integer, lease_seconds double precision, between_rounds double precision)
RETURNS TABLE (kind text, after_blob bigint, last_blob bigint, hurry boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    at jsonb;
    round bigint;
    upto bigint;
    until timestamptz := now() + lease_seconds * interval '1 second';
BEGIN
    INSERT INTO bookmark (name, value) VALUES ('reconcile', '{"round": 1, "phase": "tags", "after": 0, "hurry_before": 0}')
        ON CONFLICT DO NOTHING;
    SELECT b.value INTO at FROM bookmark b WHERE b.name = 'reconcile' FOR UPDATE;
    round := (at->>'round')::bigint;
    hurry := round < (at->>'hurry_before')::bigint;
    IF at->>'phase' = 'rest' THEN
        IF NOT hurry AND now() < (at->>'until')::timestamptz THEN
            RETURN QUERY SELECT 'rest', NULL::bigint, NULL::bigint, hurry;
            RETURN;
        END IF;
        round := round + 1;
        hurry := round < (at->>'hurry_before')::bigint;
        at := at || jsonb_build_object('round', round, 'phase', 'tags', 'after', 0, 'until', NULL);
    END IF;
    IF at->>'phase' = 'tags' THEN
        IF now() < (at->>'until')::timestamptz THEN
            RETURN QUERY SELECT 'rest', NULL::bigint, NULL::bigint, hurry;
            RETURN;
        END IF;
        UPDATE bookmark b SET value = at || jsonb_build_object('until', until), updated_at = now() WHERE b.name = 'reconcile';
        RETURN QUERY SELECT 'tags', NULL::bigint, NULL::bigint, hurry;
        RETURN;
    END IF;
    -- A page whose worker went away comes first.
    RETURN QUERY UPDATE reconcile_page p SET lease_until = until WHERE p.after_blob = (
        SELECT q.after_blob FROM reconcile_page q WHERE q.lease_until < now() ORDER BY 1 LIMIT 1)
        RETURNING 'blobs', p.after_blob, p.last_blob, hurry;
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT max(q.id) INTO upto FROM (
        SELECT b.id FROM blob b WHERE b.id > (at->>'after')::bigint ORDER BY b.id LIMIT most) q;
    IF upto IS NULL THEN
        IF NOT EXISTS (SELECT FROM reconcile_page) THEN
            UPDATE bookmark b SET updated_at = now(), value = at || jsonb_build_object('phase', 'rest', 'completed_at', now(),
                'until', now() + between_rounds * interval '1 second') WHERE b.name = 'reconcile';
        END IF;
        RETURN QUERY SELECT 'rest', NULL::bigint, NULL::bigint, hurry;
        RETURN;
    END IF;
    INSERT INTO reconcile_page (after_blob, last_blob, lease_until) VALUES ((at->>'after')::bigint, upto, until);
    UPDATE bookmark b SET value = at || jsonb_build_object('after', upto), updated_at = now() WHERE b.name = 'reconcile';
    RETURN QUERY SELECT 'blobs', (at->>'after')::bigint, upto, hurry;
END $$;

-- Takes a location out for good: refused while anything would be lost by it. Its rows go in batches afterwards (purge_location).
CREATE FUNCTION remove_location(wanted text, OUT outcome text, OUT blobs bigint) LANGUAGE plpgsql AS $$
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
    blobs := only_at(here.id);
    IF blobs > 0 THEN
        RAISE EXCEPTION 'only there: %', blobs USING ERRCODE = 'AN001';
    END IF;
    outcome := 'removed';
EXCEPTION WHEN SQLSTATE 'AN001' THEN
    outcome := 'only copies';
END $$;

-- How many blobs have no good copy outside a location.
CREATE FUNCTION only_at(wanted_location integer) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT (SELECT count(*) FROM sole_copy s WHERE s.location_id = wanted_location)
        + (SELECT count(*) FROM placement p WHERE p.location_id = wanted_location AND p.state = 'suspect' AND NOT EXISTS (
            SELECT FROM placement q WHERE q.blob_id = p.blob_id AND q.state = 'present'))
$$;
CREATE INDEX placement_suspect ON placement (location_id) WHERE state = 'suspect';
CREATE INDEX task_key ON task (location_id, key) WHERE key IS NOT NULL;
CREATE INDEX task_stalled ON task (location_id, failing_since) WHERE attempts >= 8;  -- replication.plan.STALLED_AFTER
