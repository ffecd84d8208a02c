-- The journal: every change that a rescue must know is noted in the transaction that makes it, and written into the stores
-- afterwards. A row here is debt: it goes when every active location has it. Expands 0004; a node of the release before works on it.

CREATE TABLE journal_entry (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at    timestamptz NOT NULL DEFAULT clock_timestamp(),  -- by triggers under the row's lock: in the order in which things happened
    batch bigint,  -- NULL until it is sealed; batches are written in order
    kind  text NOT NULL CHECK (kind IN ('tag', 'link', 'copy', 'repository', 'namespace', 'location', 'defaults')),
    name  text COLLATE "C" NOT NULL,  -- `repository:tag`, `repository@digest`, `location key`, or a plain name
    fact  jsonb  -- NULL: it is gone
);
CREATE INDEX journal_unsealed ON journal_entry (id) WHERE batch IS NULL;
CREATE INDEX journal_sealed ON journal_entry (batch) WHERE batch IS NOT NULL;

CREATE TABLE journal_location (
    location_id   integer PRIMARY KEY REFERENCES location,
    written       bigint NOT NULL,  -- the last batch that its store has
    lease         uuid,
    lease_until   timestamptz,
    started_at    timestamptz,      -- of the snapshot that is being written
    cursor        jsonb,            -- how far that one is
    snapshot_at   timestamptz,      -- when the last complete one was begun
    last_error    text,
    failing_since timestamptz
);

CREATE TABLE journal_object (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    location_id integer NOT NULL REFERENCES location,
    key         text NOT NULL,       -- committed before its first byte
    kind        text NOT NULL CHECK (kind IN ('batch', 'hour', 'page', 'complete')),
    hour        timestamptz NOT NULL,  -- of a page: when its snapshot was begun
    entries     integer NOT NULL DEFAULT 0,
    written     boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (location_id, key)
);
CREATE INDEX journal_object_hour ON journal_object (location_id, kind, hour);

CREATE TABLE manifest_object (
    location_id   integer NOT NULL REFERENCES location,
    repository_id bigint NOT NULL,
    manifest_id   bigint NOT NULL,
    key           text NOT NULL,     -- committed before its first byte
    written       boolean NOT NULL DEFAULT false,
    PRIMARY KEY (location_id, repository_id, manifest_id),
    UNIQUE (location_id, key),
    FOREIGN KEY (repository_id, manifest_id) REFERENCES repository_manifest ON DELETE CASCADE
);
CREATE INDEX manifest_object_link ON manifest_object (repository_id, manifest_id);
COMMENT ON TABLE manifest_object IS 'the manifests that stores hold, one object per repository that has it';

CREATE TABLE unverified_copy (
    blob_id     bigint NOT NULL,
    location_id integer NOT NULL,
    key         text NOT NULL,  -- counts only while the copy has this key
    PRIMARY KEY (blob_id, location_id),
    FOREIGN KEY (blob_id, location_id) REFERENCES placement ON DELETE CASCADE
);
COMMENT ON TABLE unverified_copy IS 'copies that a rescue took from the journals and nobody has read since';

-- What a replay has read from the journals, the last word about each thing. Empty but while one runs.
CREATE TABLE journal_fact (
    kind text NOT NULL,
    name text COLLATE "C" NOT NULL,
    at   bigint NOT NULL,  -- microseconds since the epoch
    seq  bigint NOT NULL,
    fact jsonb,
    PRIMARY KEY (kind, name)
);

-- An object that loses its row is deleted a day later: whoever writes it at this moment has ended by then.
CREATE FUNCTION manifest_object_buried() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.key <> OLD.key THEN
        INSERT INTO dead_object (location_id, key, not_before)
        SELECT OLD.location_id, OLD.key, now() + interval '1 day' FROM location l WHERE l.id = OLD.location_id AND l.state <> 'removed'
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER manifest_object_buried AFTER UPDATE OR DELETE ON manifest_object FOR EACH ROW EXECUTE FUNCTION manifest_object_buried();

CREATE FUNCTION journal_tags() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- What goes with its repository is not said one by one: the repository says it.
    IF TG_OP = 'DELETE' THEN
        INSERT INTO journal_entry (kind, name)
            SELECT 'tag', r.name || ':' || o.name FROM old_rows o JOIN repository r ON r.id = o.repository_id;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO journal_entry (kind, name, fact)
            SELECT 'tag', r.name || ':' || n.name, jsonb_build_object('digest', m.digest)
            FROM new_rows n JOIN old_rows o ON o.repository_id = n.repository_id AND o.name = n.name AND o.manifest_id <> n.manifest_id
            JOIN repository r ON r.id = n.repository_id JOIN manifest m ON m.id = n.manifest_id;
    ELSE
        INSERT INTO journal_entry (kind, name, fact)
            SELECT 'tag', r.name || ':' || n.name, jsonb_build_object('digest', m.digest)
            FROM new_rows n JOIN repository r ON r.id = n.repository_id JOIN manifest m ON m.id = n.manifest_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER journal_tag_made AFTER INSERT ON tag
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_tags();
CREATE TRIGGER journal_tag_moved AFTER UPDATE ON tag
    REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_tags();
CREATE TRIGGER journal_tag_gone AFTER DELETE ON tag
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_tags();

CREATE FUNCTION journal_links() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO journal_entry (kind, name)
            SELECT 'link', r.name || '@' || m.digest
            FROM old_rows o JOIN repository r ON r.id = o.repository_id JOIN manifest m ON m.id = o.manifest_id;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO journal_entry (kind, name, fact)
            SELECT 'link', r.name || '@' || m.digest, jsonb_build_object('media_type', n.media_type)
            FROM new_rows n JOIN old_rows o ON o.repository_id = n.repository_id AND o.manifest_id = n.manifest_id
                AND o.media_type <> n.media_type
            JOIN repository r ON r.id = n.repository_id JOIN manifest m ON m.id = n.manifest_id;
    ELSE
        INSERT INTO journal_entry (kind, name, fact)
            SELECT 'link', r.name || '@' || m.digest, jsonb_build_object('media_type', n.media_type)
            FROM new_rows n JOIN repository r ON r.id = n.repository_id JOIN manifest m ON m.id = n.manifest_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER journal_link_made AFTER INSERT ON repository_manifest
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_links();
CREATE TRIGGER journal_link_changed AFTER UPDATE ON repository_manifest
    REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_links();
CREATE TRIGGER journal_link_gone AFTER DELETE ON repository_manifest
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_links();

CREATE FUNCTION journal_copies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO journal_entry (kind, name)
            SELECT 'copy', l.name || ' ' || o.key FROM old_rows o JOIN location l ON l.id = o.location_id;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO journal_entry (kind, name, fact)
            SELECT 'copy', l.name || ' ' || c.key, c.fact
            FROM (
                SELECT o.location_id, o.key, NULL::jsonb AS fact FROM old_rows o
                    JOIN new_rows n ON n.blob_id = o.blob_id AND n.location_id = o.location_id AND n.key <> o.key
                UNION ALL
                SELECT n.location_id, n.key, jsonb_build_object('digest', b.digest, 'size', b.size) FROM old_rows o
                    JOIN new_rows n ON n.blob_id = o.blob_id AND n.location_id = o.location_id AND n.key <> o.key
                    JOIN blob b ON b.id = n.blob_id) c
            JOIN location l ON l.id = c.location_id;
    ELSE
        INSERT INTO journal_entry (kind, name, fact)
            SELECT 'copy', l.name || ' ' || n.key, jsonb_build_object('digest', b.digest, 'size', b.size)
            FROM new_rows n JOIN location l ON l.id = n.location_id JOIN blob b ON b.id = n.blob_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER journal_copy_made AFTER INSERT ON placement
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_copies();
CREATE TRIGGER journal_copy_replaced AFTER UPDATE ON placement
    REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_copies();
CREATE TRIGGER journal_copy_gone AFTER DELETE ON placement
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_copies();

CREATE FUNCTION journal_names() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal_entry (kind, name) SELECT TG_ARGV[0], o.name FROM old_rows o;
    RETURN NULL;
END $$;
CREATE TRIGGER journal_repository_gone AFTER DELETE ON repository
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_names('repository');
CREATE TRIGGER journal_namespace_gone AFTER DELETE ON namespace
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION journal_names('namespace');

CREATE FUNCTION journal_namespace() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (TG_OP = 'INSERT' AND (NEW.policy IS NOT NULL OR NEW.tag_expiration IS NOT NULL)) OR (TG_OP = 'UPDATE' AND (
            NEW.policy IS DISTINCT FROM OLD.policy OR NEW.tag_expiration IS DISTINCT FROM OLD.tag_expiration)) THEN
        INSERT INTO journal_entry (kind, name, fact)
        VALUES ('namespace', NEW.name, jsonb_build_object('policy', NEW.policy, 'tag_expiration', NEW.tag_expiration));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER journal_namespace AFTER INSERT OR UPDATE ON namespace FOR EACH ROW EXECUTE FUNCTION journal_namespace();

CREATE FUNCTION journal_location() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.state <> OLD.state OR NEW.marker <> OLD.marker THEN
        INSERT INTO journal_entry (kind, name, fact)
        VALUES ('location', NEW.name, jsonb_build_object('marker', NEW.marker, 'state', NEW.state));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER journal_location AFTER INSERT OR UPDATE ON location FOR EACH ROW EXECUTE FUNCTION journal_location();

CREATE FUNCTION journal_defaults() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal_entry (kind, name, fact)
        SELECT 'defaults', '', jsonb_build_object('locations', coalesce(jsonb_agg(l.name ORDER BY l.id), '[]'))
        FROM default_location d JOIN location l ON l.id = d.location_id;
    RETURN NULL;
END $$;
CREATE TRIGGER journal_defaults AFTER INSERT OR DELETE ON default_location FOR EACH STATEMENT EXECUTE FUNCTION journal_defaults();

-- Gives what was committed since its place in the order, forgets what every active location has, and returns how many entries were
-- sealed. A location that is new, or that has missed too much, begins again behind what is sealed, with a snapshot.
CREATE FUNCTION seal_journal(most integer, most_behind bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    latest bigint;
    sealed integer;
BEGIN
    -- One at a time: batches have an order.
    IF NOT pg_try_advisory_xact_lock(x'616e746a'::integer) THEN
        RETURN 0;
    END IF;
    SELECT greatest(coalesce((SELECT max(e.batch) FROM journal_entry e WHERE e.batch IS NOT NULL), 0),
        coalesce((SELECT max(jl.written) FROM journal_location jl), 0)) INTO latest;
    DELETE FROM journal_location jl USING location l WHERE l.id = jl.location_id AND l.state <> 'active';
    INSERT INTO journal_location (location_id, written) SELECT l.id, latest FROM location l WHERE l.state = 'active'
        ON CONFLICT DO NOTHING;
    UPDATE journal_location jl SET written = latest, snapshot_at = NULL, started_at = NULL, cursor = NULL
        WHERE jl.written < latest - most_behind;
    WITH few AS (SELECT e.id FROM journal_entry e WHERE e.batch IS NULL ORDER BY e.id LIMIT most FOR UPDATE SKIP LOCKED)
    UPDATE journal_entry e SET batch = latest + 1 FROM few WHERE e.id = few.id;
    GET DIAGNOSTICS sealed = ROW_COUNT;
    DELETE FROM journal_entry e WHERE e.batch <= (SELECT min(jl.written) FROM journal_location jl);
    RETURN sealed;
END $$;
