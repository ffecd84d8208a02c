-- Nobody waits for anybody in a circle: who comes to several rows comes to them in one order, and sums are added to whichever row is
-- free. In this order: a namespace, its repositories, their uploads, their manifests, tags; the globals, each by id; blobs before what
-- is said of them; garbage of a repository only under its lock, or a single row. Expands 0001 to 0030; nodes of the release before
-- take some of these locks in other orders.

-- Sums that no push queues up behind, as 0030 has them for risk: what counts is the sum of a namespace's rows.
CREATE SEQUENCE namespace_usage_shard MINVALUE 16;  -- below are those that were there before

CREATE FUNCTION add_to_namespace_usage(wanted_namespace bigint, more_blobs bigint, more_bytes bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE namespace_usage u SET blobs = u.blobs + more_blobs, bytes = u.bytes + more_bytes
    WHERE u.namespace_id = wanted_namespace AND u.shard = (
        SELECT f.shard FROM namespace_usage f WHERE f.namespace_id = wanted_namespace LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED);
    IF NOT FOUND THEN
        INSERT INTO namespace_usage (namespace_id, shard, blobs, bytes)
        VALUES (wanted_namespace, nextval('namespace_usage_shard'), more_blobs, more_bytes);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION namespace_blob_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_namespace_usage(c.namespace_id, count(*), sum(c.size)::bigint) FROM changed c GROUP BY c.namespace_id;
    RETURN NULL;
END $$;

-- A namespace that is going takes its sums along.
CREATE OR REPLACE FUNCTION namespace_blob_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_to_namespace_usage(c.namespace_id, -count(*), -sum(c.size)::bigint)
        FROM changed c JOIN namespace n ON n.id = c.namespace_id GROUP BY c.namespace_id;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION blob_linked_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO namespace_blob AS nb (blob_id, namespace_id, size, links)
    SELECT c.blob_id, r.namespace_id, b.size, count(*)
    FROM changed c JOIN repository r ON r.id = c.repository_id JOIN blob b ON b.id = c.blob_id GROUP BY 1, 2, 3 ORDER BY 1, 2
    ON CONFLICT (namespace_id, blob_id) DO UPDATE SET links = nb.links + excluded.links;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION blob_unlinked_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM namespace_blob nb WHERE (nb.namespace_id, nb.blob_id) IN (
        SELECT r.namespace_id, c.blob_id FROM changed c JOIN repository r ON r.id = c.repository_id)
        ORDER BY nb.blob_id, nb.namespace_id FOR UPDATE;
    UPDATE namespace_blob nb SET links = nb.links - less.links
    FROM (SELECT r.namespace_id, c.blob_id, count(*) AS links FROM changed c JOIN repository r ON r.id = c.repository_id
          GROUP BY 1, 2) less
    WHERE nb.namespace_id = less.namespace_id AND nb.blob_id = less.blob_id;
    DELETE FROM namespace_blob nb USING changed c, repository r
    WHERE r.id = c.repository_id AND nb.namespace_id = r.namespace_id AND nb.blob_id = c.blob_id AND nb.links <= 0;
    RETURN NULL;
END $$;

-- A manifest that was linked with a tag is no candidate: it becomes one when the tag goes. So a push that moves tags comes to the
-- candidates that they leave behind and to no other.
CREATE FUNCTION manifest_linked_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_garbage('manifest link', array_agg(c.repository_id), array_agg(c.manifest_id)) FROM changed c
        WHERE NOT EXISTS (SELECT FROM tag t WHERE t.repository_id = c.repository_id AND t.manifest_id = c.manifest_id)
        HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER manifest_linked AFTER INSERT ON repository_manifest
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_linked_garbage();
CREATE OR REPLACE TRIGGER manifest_relinked AFTER UPDATE ON repository_manifest
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_linked_garbage();

CREATE OR REPLACE FUNCTION unlink_blob(repository_name text, blob_digest text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    link repository_blob;
BEGIN
    -- Before the link, as whoever deletes its namespace or repository has them.
    PERFORM FROM namespace WHERE id = (SELECT namespace_id FROM repository WHERE name = repository_name COLLATE "C") FOR KEY SHARE;
    PERFORM FROM repository WHERE name = repository_name COLLATE "C" FOR KEY SHARE;
    SELECT rb.* INTO link FROM repository r JOIN repository_blob rb ON rb.repository_id = r.id JOIN blob b ON b.id = rb.blob_id
        WHERE r.name = repository_name AND b.digest = blob_digest FOR UPDATE OF rb;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    IF EXISTS (SELECT FROM manifest_blob mb JOIN repository_manifest rm ON rm.manifest_id = mb.manifest_id
               WHERE mb.blob_id = link.blob_id AND rm.repository_id = link.repository_id) THEN
        RETURN 'in use';
    END IF;
    DELETE FROM repository_blob WHERE repository_id = link.repository_id AND blob_id = link.blob_id;
    RETURN 'done';
END $$;

CREATE OR REPLACE FUNCTION delete_repositories(repositories bigint[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    deleted integer;
BEGIN
    PERFORM FROM repository WHERE id = ANY(repositories) ORDER BY id FOR UPDATE;
    PERFORM FROM upload WHERE repository_id = ANY(repositories) ORDER BY id FOR UPDATE;
    WITH gone AS (DELETE FROM upload WHERE repository_id = ANY(repositories) RETURNING *)
    INSERT INTO dead_object (location_id, key, not_before)
    SELECT DISTINCT gone.location_id, k, max(greatest(gone.expires_at, now()))
    FROM gone, unnest(ARRAY[gone.key, gone.reserved_key, gone.tail_key]) k WHERE k IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (location_id, key) DO UPDATE SET not_before = greatest(dead_object.not_before, excluded.not_before);
    -- Where others come, too, in one order for all repositories; the triggers of each find it done.
    PERFORM FROM repository_manifest WHERE repository_id = ANY(repositories) ORDER BY repository_id, manifest_id FOR UPDATE;
    PERFORM FROM manifest_object WHERE repository_id = ANY(repositories) ORDER BY manifest_id, repository_id, location_id FOR UPDATE;
    PERFORM note_garbage('manifest', array_agg(0::bigint), array_agg(rm.manifest_id)) FROM (
        SELECT manifest_id FROM repository_manifest WHERE repository_id = ANY(repositories)
        UNION SELECT manifest_id FROM tag_history WHERE repository_id = ANY(repositories)) rm HAVING count(*) > 0;
    DELETE FROM repository_blob WHERE repository_id = ANY(repositories);
    DELETE FROM repository WHERE id = ANY(repositories);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    DELETE FROM garbage WHERE kind IN ('manifest link', 'blob link') AND repository_id = ANY(repositories);
    RETURN deleted;
END $$;

-- As 0004, but what others hold is locked first, in their order.
CREATE OR REPLACE FUNCTION collect_garbage(wanted_kind text, grace float8, rest float8, retention float8, most integer)
RETURNS TABLE (outcome text, in_repository text, what text, bytes bigint) LANGUAGE plpgsql AS $$
DECLARE
    links boolean := wanted_kind IN ('manifest link', 'blob link');
    mine bigint[];
    objects bigint[];
    candidates garbage[];
    candidate garbage;
BEGIN
    IF collection_paused() THEN
        outcome := 'paused';
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM set_config('antipode.grace_gone_by', greatest(0, grace - rest)::text, true);
    -- What leaves a repository makes candidates of much else there: one at a time does that, and the next look is soon enough.
    IF links THEN
        mine := ARRAY(SELECT r.id FROM repository r JOIN namespace n ON n.id = r.namespace_id WHERE r.id IN (
            SELECT g.repository_id FROM garbage g WHERE g.kind = wanted_kind AND g.since <= now() - grace * interval '1 second'
            ORDER BY g.since LIMIT most) ORDER BY r.id FOR KEY SHARE OF n SKIP LOCKED FOR NO KEY UPDATE OF r SKIP LOCKED);
    END IF;
    candidates := ARRAY(SELECT g FROM garbage g
        WHERE g.kind = wanted_kind AND g.since <= now() - grace * interval '1 second' AND (NOT links
            OR g.repository_id = ANY(mine) OR NOT EXISTS (SELECT FROM repository r WHERE r.id = g.repository_id))
        ORDER BY g.since LIMIT most FOR UPDATE SKIP LOCKED);
    IF wanted_kind = 'manifest' THEN
        objects := ARRAY(SELECT c.object_id FROM unnest(candidates) c);
        PERFORM FROM manifest_child mc WHERE mc.manifest_id = ANY(objects) OR mc.child_id = ANY(objects)
            ORDER BY mc.manifest_id, mc.child_id FOR UPDATE;
        PERFORM note_garbage('blob', array_agg(0::bigint), array_agg(mb.blob_id)) FROM manifest_blob mb
            WHERE mb.manifest_id = ANY(objects) AND NOT manifest_used(mb.manifest_id)
            AND NOT EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = mb.blob_id) HAVING count(*) > 0;
    ELSIF wanted_kind = 'blob' THEN
        -- Blobs first: one that is in use is left alone with its tasks.
        objects := ARRAY(SELECT b.id FROM blob b WHERE b.id IN (SELECT c.object_id FROM unnest(candidates) c)
            ORDER BY b.id FOR UPDATE SKIP LOCKED);
        PERFORM FROM task t WHERE t.blob_id = ANY(objects) ORDER BY t.blob_id, t.location_id FOR UPDATE;
    END IF;
    FOR candidate IN SELECT c.* FROM unnest(candidates) c ORDER BY c.object_id, c.repository_id LOOP
        IF wanted_kind = 'blob' AND candidate.object_id <> ALL(objects)
            AND EXISTS (SELECT FROM blob b WHERE b.id = candidate.object_id) THEN
            outcome := 'busy';
            RETURN NEXT;
            CONTINUE;
        END IF;
        SELECT * INTO outcome, in_repository, what, bytes FROM collect_one(candidate, retention);
        RETURN NEXT;
    END LOOP;
    PERFORM set_config('antipode.grace_gone_by', '0', true);
END $$;

-- The blobs first: whoever settles one may hold it and come to a task of another that is being made here.
CREATE OR REPLACE FUNCTION owe_closure(home bigint, root bigint, locations integer[], wanted_priority integer) RETURNS void
LANGUAGE sql AS $$
    WITH held AS MATERIALIZED (
        SELECT b.id, b.size FROM blob b WHERE b.id IN (
            SELECT mb.blob_id FROM closure_in(home, root, true) m JOIN manifest_blob mb ON mb.manifest_id = m)
        ORDER BY b.id FOR KEY SHARE)
    INSERT INTO task (blob_id, location_id, size, priority)
    SELECT b.id, l.id, b.size, wanted_priority
    FROM held b JOIN location l ON l.id = ANY(locations) AND l.state IN ('active', 'paused')
    WHERE NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = l.id AND p.state = 'present')
        AND NOT blob_forbidden(b.id, l.id)
    ORDER BY 1, 2
    ON CONFLICT (blob_id, location_id) DO UPDATE SET priority = excluded.priority WHERE task.priority < excluded.priority
$$;

-- As 0002, but its tasks are made in one order.
CREATE OR REPLACE FUNCTION settle_blob(
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
        ORDER BY 1, 2 ON CONFLICT (blob_id, location_id) DO NOTHING;
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

-- As 0022, but what it takes away is locked in one order.
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
    PERFORM FROM upload u WHERE u.location_id = here.id ORDER BY u.id FOR UPDATE;
    PERFORM FROM task t WHERE t.location_id = here.id ORDER BY t.blob_id FOR UPDATE;
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
