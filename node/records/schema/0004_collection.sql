-- Collection: what still uses what, taken away in small batches; repositories and namespaces deleted; the pause after a restore.

ALTER TABLE namespace ADD COLUMN tag_expiration float8 CHECK (tag_expiration >= 0);  -- seconds; NULL: DEFAULT_TAG_EXPIRATION
CREATE INDEX tag_history_until ON tag_history (until);

CREATE TABLE awaited_child (
    manifest_id bigint NOT NULL REFERENCES manifest ON DELETE CASCADE,
    digest      text COLLATE "C" NOT NULL,
    PRIMARY KEY (manifest_id, digest)
);
CREATE INDEX awaited_child_digest ON awaited_child (digest);
COMMENT ON TABLE awaited_child IS 'children of indexes that were not there when they were named, or are gone: they are used all the same';

CREATE FUNCTION manifest_awaited() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO manifest_child (manifest_id, child_id)
        SELECT a.manifest_id, n.id FROM new_rows n JOIN awaited_child a ON a.digest = n.digest ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_awaited AFTER INSERT ON manifest
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION manifest_awaited();

-- Which cluster, database and timeline this is: another one after a restore or a fail-over that may have lost transactions.
CREATE FUNCTION database_identity() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT s.system_identifier || '/' || d.oid || '/' || c.timeline_id
    FROM pg_control_system() s, pg_control_checkpoint() c, pg_database d WHERE d.datname = current_database()
$$;
CREATE FUNCTION collection_paused() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM bookmark WHERE name = 'collection' AND value ->> 'identity' <> database_identity())
$$;
INSERT INTO bookmark (name, value) VALUES ('collection', jsonb_build_object('identity', database_identity()))
    ON CONFLICT (name) DO NOTHING;

-- A candidate's grace never becomes shorter. What the collector itself sets free was without a use before: it says how much of the
-- grace has gone by (seconds), for this transaction.
CREATE OR REPLACE FUNCTION note_garbage(new_kind text, repositories bigint[], objects bigint[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO garbage (kind, repository_id, object_id, since)
    SELECT DISTINCT new_kind, r, o,
        now() - coalesce(nullif(current_setting('antipode.grace_gone_by', true), ''), '0')::float8 * interval '1 second'
    FROM unnest(repositories, objects) AS u (r, o) ORDER BY 1, 2, 3
    ON CONFLICT (kind, repository_id, object_id) DO UPDATE SET since = greatest(garbage.since, excluded.since)
$$;

-- A push or a mount of what is linked already begins its grace anew.
CREATE TRIGGER manifest_relinked AFTER UPDATE ON repository_manifest
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_link_garbage();
CREATE TRIGGER blob_relinked AFTER UPDATE ON repository_blob
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION blob_linked_garbage();

-- What manifests that left their repositories used there, and they themselves.
CREATE FUNCTION note_manifests_gone(repositories bigint[], manifests bigint[]) RETURNS void LANGUAGE sql AS $$
    SELECT note_garbage('blob link', array_agg(rb.repository_id), array_agg(rb.blob_id))
        FROM unnest(repositories, manifests) AS u (r, m) JOIN manifest_blob mb ON mb.manifest_id = u.m
        JOIN repository_blob rb ON rb.repository_id = u.r AND rb.blob_id = mb.blob_id HAVING count(*) > 0;
    SELECT note_garbage('manifest link', array_agg(rm.repository_id), array_agg(rm.manifest_id))
        FROM unnest(repositories, manifests) AS u (r, m) JOIN manifest gone ON gone.id = u.m
        CROSS JOIN LATERAL (
            SELECT mc.child_id AS id FROM manifest_child mc WHERE mc.manifest_id = gone.id
            UNION ALL SELECT s.id FROM manifest s WHERE s.subject = gone.digest
            UNION ALL SELECT c.id FROM awaited_child a JOIN manifest c ON c.digest = a.digest WHERE a.manifest_id = gone.id) near
        JOIN repository_manifest rm ON rm.repository_id = u.r AND rm.manifest_id = near.id HAVING count(*) > 0;
    SELECT note_garbage('manifest', array_agg(0::bigint), manifests) FROM unnest(manifests) HAVING count(*) > 0;
$$;

CREATE OR REPLACE FUNCTION manifest_unlinked_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_manifests_gone(array_agg(c.repository_id), array_agg(c.manifest_id)) FROM changed c HAVING count(*) > 0;
    RETURN NULL;
END $$;

-- History keeps a manifest that was deleted by its digest, with all that it uses: a tag can be restored to it.
CREATE FUNCTION tag_history_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_garbage('manifest link', array_agg(rm.repository_id), array_agg(rm.manifest_id))
        FROM changed c JOIN repository_manifest rm ON rm.repository_id = c.repository_id AND rm.manifest_id = c.manifest_id
        HAVING count(*) > 0;
    PERFORM note_manifests_gone(array_agg(c.repository_id), array_agg(c.manifest_id)) FROM changed c
        WHERE NOT EXISTS (
            SELECT FROM repository_manifest rm WHERE rm.repository_id = c.repository_id AND rm.manifest_id = c.manifest_id)
        HAVING count(*) > 0;
    RETURN NULL;
END $$;
DROP TRIGGER tag_history_deleted ON tag_history;
CREATE TRIGGER tag_history_deleted AFTER DELETE ON tag_history
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION tag_history_garbage();

-- A manifest that is gone everywhere sets free what only it still named.
CREATE FUNCTION manifest_blob_garbage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_garbage('blob', array_agg(0::bigint), array_agg(c.blob_id)) FROM changed c
        WHERE NOT EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = c.blob_id) HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_blob_deleted AFTER DELETE ON manifest_blob
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_blob_garbage();

-- Whether a repository has a manifest, or could have it again by restoring a tag.
CREATE FUNCTION manifest_held(in_repository bigint, wanted bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM repository_manifest rm WHERE rm.repository_id = in_repository AND rm.manifest_id = wanted)
        OR EXISTS (SELECT FROM tag_history h WHERE h.repository_id = in_repository AND h.manifest_id = wanted)
$$;

-- The four questions of the collector. References form no circle (each holds the digest of what it names), so that one step is
-- enough: what only garbage uses comes up again when that garbage goes.
CREATE FUNCTION manifest_link_used(in_repository bigint, wanted bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM tag t WHERE t.repository_id = in_repository AND t.manifest_id = wanted)
        OR EXISTS (SELECT FROM tag_history h WHERE h.repository_id = in_repository AND h.manifest_id = wanted)
        OR EXISTS (SELECT FROM manifest_child mc WHERE mc.child_id = wanted AND manifest_held(in_repository, mc.manifest_id))
        OR EXISTS (
            SELECT FROM manifest m JOIN manifest s ON s.digest = m.subject
            WHERE m.id = wanted AND manifest_held(in_repository, s.id))
        OR EXISTS (
            SELECT FROM manifest m JOIN awaited_child a ON a.digest = m.digest
            WHERE m.id = wanted AND manifest_held(in_repository, a.manifest_id))
$$;
CREATE FUNCTION blob_link_used(in_repository bigint, wanted bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM manifest_blob mb WHERE mb.blob_id = wanted AND manifest_held(in_repository, mb.manifest_id))
$$;
CREATE FUNCTION manifest_used(wanted bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM repository_manifest rm WHERE rm.manifest_id = wanted)
        OR EXISTS (SELECT FROM tag_history h WHERE h.manifest_id = wanted)
$$;
CREATE FUNCTION blob_used(wanted bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM repository_blob rb WHERE rb.blob_id = wanted)
        OR EXISTS (SELECT FROM manifest_blob mb WHERE mb.blob_id = wanted)
$$;

-- Takes one object away unless it is used. A function, because the look for uses must see what was committed before the row was
-- locked; nothing can begin to use it after that: every reference locks the row that it refers to, and comes too late then.
CREATE FUNCTION collect_one(candidate garbage, retention float8, OUT outcome text, OUT in_repository text, OUT what text, OUT bytes bigint)
LANGUAGE plpgsql AS $$
DECLARE
    r bigint := candidate.repository_id;
    o bigint := candidate.object_id;
    used boolean;
    there boolean;
BEGIN
    CASE candidate.kind
    WHEN 'manifest link' THEN
        SELECT rp.name, m.digest, 0 INTO in_repository, what, bytes FROM repository_manifest rm
            JOIN repository rp ON rp.id = rm.repository_id JOIN manifest m ON m.id = rm.manifest_id
            WHERE rm.repository_id = r AND rm.manifest_id = o FOR UPDATE OF rm SKIP LOCKED;
        used := NOT FOUND OR manifest_link_used(r, o);
        there := what IS NOT NULL OR EXISTS (SELECT FROM repository_manifest WHERE repository_id = r AND manifest_id = o);
    WHEN 'blob link' THEN
        SELECT rp.name, b.digest, 0 INTO in_repository, what, bytes FROM repository_blob rb
            JOIN repository rp ON rp.id = rb.repository_id JOIN blob b ON b.id = rb.blob_id
            WHERE rb.repository_id = r AND rb.blob_id = o FOR UPDATE OF rb SKIP LOCKED;
        used := NOT FOUND OR blob_link_used(r, o);
        there := what IS NOT NULL OR EXISTS (SELECT FROM repository_blob WHERE repository_id = r AND blob_id = o);
    WHEN 'manifest' THEN
        SELECT m.digest, octet_length(m.bytes) INTO what, bytes FROM manifest m WHERE m.id = o FOR UPDATE SKIP LOCKED;
        used := NOT FOUND OR manifest_used(o);
        there := what IS NOT NULL OR EXISTS (SELECT FROM manifest WHERE id = o);
    WHEN 'blob' THEN
        SELECT b.digest, b.size INTO what, bytes FROM blob b WHERE b.id = o FOR UPDATE SKIP LOCKED;
        used := NOT FOUND OR blob_used(o);
        there := what IS NOT NULL OR EXISTS (SELECT FROM blob WHERE id = o);
    END CASE;
    IF what IS NULL AND there THEN
        outcome := 'busy';  -- somebody is using it at this moment: it stays a candidate
        RETURN;
    END IF;
    IF used THEN
        outcome := 'kept';
    ELSE
        outcome := 'removed';
        CASE candidate.kind
        WHEN 'manifest link' THEN
            DELETE FROM repository_manifest WHERE repository_id = r AND manifest_id = o;
        WHEN 'blob link' THEN
            DELETE FROM repository_blob WHERE repository_id = r AND blob_id = o;
        WHEN 'manifest' THEN
            -- An index may outlive a child that was deleted by its digest: it awaits it again.
            WITH parents AS (DELETE FROM manifest_child WHERE child_id = o RETURNING manifest_id)
            INSERT INTO awaited_child (manifest_id, digest) SELECT manifest_id, what FROM parents ON CONFLICT DO NOTHING;
            DELETE FROM manifest WHERE id = o;
        WHEN 'blob' THEN
            -- One statement, so that the placements' triggers find the blob gone and count nothing twice.
            WITH copies AS (DELETE FROM placement p WHERE p.blob_id = o RETURNING p.location_id, p.key),
            debts AS (DELETE FROM task t WHERE t.blob_id = o RETURNING t.location_id, t.key),
            gone AS (DELETE FROM blob b WHERE b.id = o)
            INSERT INTO dead_object (location_id, key, not_before)
            SELECT location_id, key, now() + retention * interval '1 second'
            FROM (SELECT * FROM copies UNION SELECT * FROM debts WHERE key IS NOT NULL) objects
            ON CONFLICT (location_id, key) DO UPDATE SET not_before = greatest(dead_object.not_before, excluded.not_before);
        END CASE;
    END IF;
    DELETE FROM garbage g WHERE g.kind = candidate.kind AND g.repository_id = r AND g.object_id = o;
END $$;

-- Looks at up to `most` candidates of one kind that have waited for `grace` seconds. What goes leaves `rest` seconds of the grace
-- to what it used: a client may have been told a moment ago that it is there.
CREATE FUNCTION collect_garbage(wanted_kind text, grace float8, rest float8, retention float8, most integer)
RETURNS TABLE (outcome text, in_repository text, what text, bytes bigint) LANGUAGE plpgsql AS $$
DECLARE
    candidate garbage;
BEGIN
    IF collection_paused() THEN
        outcome := 'paused';
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM set_config('antipode.grace_gone_by', greatest(0, grace - rest)::text, true);
    FOR candidate IN
        SELECT g.* FROM garbage g WHERE g.kind = wanted_kind AND g.since <= now() - grace * interval '1 second'
        ORDER BY g.since LIMIT most FOR UPDATE SKIP LOCKED
    LOOP
        SELECT * INTO outcome, in_repository, what, bytes FROM collect_one(candidate, retention);
        RETURN NEXT;
    END LOOP;
    PERFORM set_config('antipode.grace_gone_by', '0', true);
END $$;

-- Deletes repositories whole. What they held becomes garbage by the triggers; what open uploads wrote is buried for when their
-- writers must have stopped.
CREATE FUNCTION delete_repositories(repositories bigint[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    deleted integer;
BEGIN
    PERFORM FROM repository WHERE id = ANY(repositories) ORDER BY id FOR UPDATE;
    WITH gone AS (DELETE FROM upload WHERE repository_id = ANY(repositories) RETURNING *)
    INSERT INTO dead_object (location_id, key, not_before)
    SELECT DISTINCT gone.location_id, k, max(greatest(gone.expires_at, now()))
    FROM gone, unnest(ARRAY[gone.key, gone.reserved_key, gone.tail_key]) k WHERE k IS NOT NULL GROUP BY 1, 2
    ON CONFLICT (location_id, key) DO UPDATE SET not_before = greatest(dead_object.not_before, excluded.not_before);
    DELETE FROM repository WHERE id = ANY(repositories);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    DELETE FROM garbage WHERE kind IN ('manifest link', 'blob link') AND repository_id = ANY(repositories);
    RETURN deleted;
END $$;

CREATE FUNCTION delete_repository(repository_name text) RETURNS integer LANGUAGE sql AS $$
    SELECT delete_repositories(coalesce((SELECT array_agg(id) FROM repository WHERE name = repository_name), '{}'))
$$;

-- NULL: there is no such namespace. A repository that is being made in it waits for the lock and then finds none.
CREATE FUNCTION delete_namespace(namespace_name text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    wanted bigint;
    deleted integer;
BEGIN
    SELECT id INTO wanted FROM namespace WHERE name = namespace_name FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    deleted := delete_repositories(coalesce((SELECT array_agg(id) FROM repository WHERE namespace_id = wanted), '{}'));
    DELETE FROM namespace WHERE id = wanted;
    RETURN deleted;
END $$;
