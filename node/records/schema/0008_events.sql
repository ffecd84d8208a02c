-- Webhooks with their outbox, which triggers fill in the transaction of the fact itself; and the audit log.
-- Expands 0001 to 0007; a node of the release before works on it, and what it does is told, too.

CREATE TABLE webhook (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace_id bigint REFERENCES namespace ON DELETE CASCADE,  -- NULL: of the whole registry
    name         text COLLATE "C" NOT NULL,
    url          text NOT NULL,
    secret       bytea NOT NULL,
    events       text[] NOT NULL,
    active       boolean NOT NULL DEFAULT true,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (namespace_id, name)
);

CREATE TABLE delivery (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    webhook_id  bigint NOT NULL REFERENCES webhook ON DELETE CASCADE,
    event_id    uuid NOT NULL,             -- the same for every webhook that is told
    kind        text NOT NULL,
    subject     text NOT NULL,
    data        jsonb NOT NULL,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    due_at      timestamptz NOT NULL DEFAULT now(),  -- a claim moves it on: whoever dies meanwhile is replaced then
    attempts    integer NOT NULL DEFAULT 0,
    last_error  text,
    dead_at     timestamptz                -- not tried any more by itself
);
CREATE INDEX delivery_due ON delivery (webhook_id, due_at) WHERE dead_at IS NULL;
CREATE INDEX delivery_page ON delivery (webhook_id, id);
COMMENT ON TABLE delivery IS 'what a webhook has not been told yet; what was taken is gone from here';

CREATE TABLE awaited_arrival (
    repository_id bigint NOT NULL,
    manifest_id   bigint NOT NULL,
    location_id   integer NOT NULL REFERENCES location,
    tag           text COLLATE "C" NOT NULL,
    looked_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, manifest_id, location_id, tag),
    FOREIGN KEY (repository_id, manifest_id) REFERENCES repository_manifest ON DELETE CASCADE
);
CREATE INDEX awaited_arrival_looked ON awaited_arrival (looked_at);
COMMENT ON TABLE awaited_arrival IS 'tagged images of which a webhook wants to know when a location has all of them';

CREATE FUNCTION listened(wanted text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM webhook w WHERE w.active AND wanted = ANY(w.events))
$$;

CREATE FUNCTION tell(told_kind text, told_namespace bigint, told_subject text, told_data jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO delivery (webhook_id, event_id, kind, subject, data)
    SELECT w.id, event.id, told_kind, told_subject, told_data
    FROM (SELECT gen_random_uuid() AS id) event CROSS JOIN webhook w
    WHERE w.active AND told_kind = ANY(w.events) AND (w.namespace_id IS NULL OR w.namespace_id = told_namespace)
    ORDER BY w.id
$$;

-- Whether a location has all blobs of an image.
CREATE FUNCTION image_arrived(image bigint, wanted_location integer) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM manifest_closure(image, false) c (id) JOIN manifest_blob mb ON mb.manifest_id = c.id
        WHERE NOT EXISTS (
            SELECT FROM placement p
            WHERE p.blob_id = mb.blob_id AND p.location_id = wanted_location AND p.state = 'present'))
$$;

CREATE FUNCTION tell_tags(repositories bigint[], tags text[]) RETURNS void LANGUAGE plpgsql AS $$
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
        WHERE NOT image_arrived(t.manifest_id, l.id) ON CONFLICT DO NOTHING;
    END IF;
END $$;

CREATE FUNCTION tag_made_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF listened('pushed') OR listened('replicated') THEN
        PERFORM tell_tags(array_agg(c.repository_id), array_agg(c.name::text)) FROM changed c HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tag_made_told AFTER INSERT ON tag
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION tag_made_told();

CREATE FUNCTION tag_moved_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF listened('pushed') OR listened('replicated') THEN
        PERFORM tell_tags(array_agg(c.repository_id), array_agg(c.name::text)) FROM changed c
            JOIN before b ON b.repository_id = c.repository_id AND b.name = c.name AND b.manifest_id <> c.manifest_id
            HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tag_moved_told AFTER UPDATE ON tag
    REFERENCING NEW TABLE AS changed OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION tag_moved_told();

-- A manifest that came without a tag.
CREATE FUNCTION manifest_linked_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF listened('pushed') THEN
        PERFORM tell('pushed', r.namespace_id, r.name || '@' || m.digest, jsonb_build_object(
                'repository', r.name, 'tag', NULL, 'digest', m.digest, 'media_type', c.media_type))
            FROM changed c JOIN repository r ON r.id = c.repository_id JOIN manifest m ON m.id = c.manifest_id
            WHERE NOT EXISTS (SELECT FROM tag t WHERE t.repository_id = c.repository_id AND t.manifest_id = c.manifest_id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_linked_told AFTER INSERT ON repository_manifest
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_linked_told();

-- Tags that go with their whole repository find it gone, and are told as one.
CREATE FUNCTION tag_deleted_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF listened('deleted') THEN
        PERFORM tell('deleted', r.namespace_id, r.name || ':' || c.name, jsonb_build_object(
                'repository', r.name, 'tag', c.name, 'digest', m.digest))
            FROM changed c JOIN repository r ON r.id = c.repository_id JOIN manifest m ON m.id = c.manifest_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tag_deleted_told AFTER DELETE ON tag
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION tag_deleted_told();

-- What the collector takes away (it says so with this setting) was deleted long before.
CREATE FUNCTION manifest_unlinked_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('antipode.grace_gone_by', true), '') = '' AND listened('deleted') THEN
        PERFORM tell('deleted', r.namespace_id, r.name || '@' || m.digest, jsonb_build_object(
                'repository', r.name, 'tag', NULL, 'digest', m.digest))
            FROM changed c JOIN repository r ON r.id = c.repository_id JOIN manifest m ON m.id = c.manifest_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_unlinked_told AFTER DELETE ON repository_manifest
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION manifest_unlinked_told();

CREATE FUNCTION repository_deleted_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tell('deleted', OLD.namespace_id, OLD.name, jsonb_build_object('repository', OLD.name, 'tag', NULL, 'digest', NULL));
    RETURN OLD;
END $$;
CREATE TRIGGER repository_deleted_told BEFORE DELETE ON repository FOR EACH ROW EXECUTE FUNCTION repository_deleted_told();

-- 8: replication.plan.STALLED_AFTER. Every namespace that has the blob is told, and the registry's own webhooks once.
CREATE FUNCTION task_stalled_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF listened('stalled') THEN
        INSERT INTO delivery (webhook_id, event_id, kind, subject, data)
        SELECT w.id, event.id, 'stalled', b.digest, jsonb_build_object(
            'digest', b.digest, 'size', b.size, 'location', l.name, 'attempts', NEW.attempts, 'error', NEW.last_error)
        FROM (SELECT gen_random_uuid() AS id) event
        CROSS JOIN webhook w JOIN blob b ON b.id = NEW.blob_id JOIN location l ON l.id = NEW.location_id
        WHERE w.active AND 'stalled' = ANY(w.events) AND (w.namespace_id IS NULL OR EXISTS (
            SELECT FROM namespace_blob nb WHERE nb.namespace_id = w.namespace_id AND nb.blob_id = b.id));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER task_stalled_told AFTER UPDATE ON task FOR EACH ROW
    WHEN (OLD.attempts < 8 AND NEW.attempts >= 8) EXECUTE FUNCTION task_stalled_told();

-- Looks at some awaited arrivals: tells those that have arrived, and gives up what nobody requires any more. Returns how many
-- were told.
CREATE FUNCTION settle_arrivals(most integer) RETURNS integer LANGUAGE plpgsql AS $$
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
        IF image_arrived(awaited.manifest_id, awaited.location_id) THEN
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

CREATE TABLE audit (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    actor      text COLLATE "C" NOT NULL,   -- the account; empty for nobody in particular
    action     text COLLATE "C" NOT NULL,
    namespace  text COLLATE "C",
    repository text COLLATE "C",
    detail     jsonb NOT NULL DEFAULT '{}',
    client     text NOT NULL DEFAULT '',    -- the address
    node       text NOT NULL DEFAULT '',
    request    text NOT NULL DEFAULT ''
);
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_namespace ON audit (namespace, id);
CREATE INDEX audit_repository ON audit (repository, id);
CREATE INDEX audit_actor ON audit (actor, id);
COMMENT ON TABLE audit IS 'who did what; by name, because lines outlive what they are about';
