-- The first schema: repositories see global blobs and manifests through links; placements say where bytes are; tasks schedule debt.
-- Names, tags and digests are COLLATE "C": paging of tags depends on byte order. Times are the database's clock.

CREATE TABLE location (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE,
    marker      uuid NOT NULL DEFAULT gen_random_uuid(),  -- repeated by an object in the store: another bucket is refused
    state       text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'draining', 'drained', 'removed')),
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE default_location (
    location_id integer PRIMARY KEY REFERENCES location
);
COMMENT ON TABLE default_location IS 'where the blobs of every namespace without a policy of its own must be';

CREATE TABLE namespace (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE,
    policy      jsonb,  -- the rules as given; NULL: the default locations
    version     bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE namespace_location (
    namespace_id bigint NOT NULL REFERENCES namespace ON DELETE CASCADE,
    location_id  integer NOT NULL REFERENCES location,
    PRIMARY KEY (namespace_id, location_id)
);
COMMENT ON TABLE namespace_location IS 'a policy, compiled: SQL does set algebra on it and never interprets a rule';

CREATE VIEW required_location (namespace_id, location_id) AS
    SELECT n.id, nl.location_id FROM namespace n JOIN namespace_location nl ON nl.namespace_id = n.id WHERE n.policy IS NOT NULL
    UNION ALL
    SELECT n.id, d.location_id FROM namespace n CROSS JOIN default_location d WHERE n.policy IS NULL;

CREATE TABLE repository (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace_id bigint NOT NULL REFERENCES namespace,
    name         text COLLATE "C" NOT NULL UNIQUE,
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE blob (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest      text COLLATE "C" NOT NULL UNIQUE CHECK (digest ~ '^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$'),
    size        bigint NOT NULL CHECK (size >= 0),
    pieces      bytea CHECK (octet_length(pieces) = 16 * ((size + 1048575) / 1048576)),  -- first 16 bytes of each MiB's SHA-256
    created_at  timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE blob ALTER COLUMN pieces SET STORAGE EXTERNAL;  -- digests do not compress

CREATE TABLE placement (
    blob_id     bigint NOT NULL REFERENCES blob,
    location_id integer NOT NULL REFERENCES location,
    key         text NOT NULL,
    state       text NOT NULL DEFAULT 'present' CHECK (state IN ('present', 'suspect')),
    reason      text,  -- why it is suspect
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (blob_id, location_id),
    UNIQUE (location_id, key)
);

CREATE TABLE dead_object (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    location_id integer NOT NULL REFERENCES location,
    key         text NOT NULL,
    not_before  timestamptz NOT NULL DEFAULT now(),
    attempts    integer NOT NULL DEFAULT 0,
    last_error  text,
    UNIQUE (location_id, key)
);
CREATE INDEX dead_object_due ON dead_object (location_id, not_before);

CREATE TABLE repository_blob (
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    blob_id       bigint NOT NULL REFERENCES blob,
    linked_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, blob_id)
);
CREATE INDEX repository_blob_blob ON repository_blob (blob_id);

CREATE TABLE manifest (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest        text COLLATE "C" NOT NULL UNIQUE,
    bytes         bytea NOT NULL,
    subject       text COLLATE "C",
    artifact_type text,
    annotations   json,  -- echoed, never searched; jsonb would refuse some strings
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX manifest_subject ON manifest (subject) WHERE subject IS NOT NULL;

CREATE TABLE repository_manifest (
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    manifest_id   bigint NOT NULL REFERENCES manifest,
    media_type    text NOT NULL,  -- as pushed here: the same bytes may be named differently elsewhere
    linked_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, manifest_id)
);
CREATE INDEX repository_manifest_manifest ON repository_manifest (manifest_id);

CREATE TABLE manifest_blob (
    manifest_id bigint NOT NULL REFERENCES manifest ON DELETE CASCADE,
    blob_id     bigint NOT NULL REFERENCES blob,
    PRIMARY KEY (manifest_id, blob_id)
);
CREATE INDEX manifest_blob_blob ON manifest_blob (blob_id);

CREATE TABLE manifest_child (
    manifest_id bigint NOT NULL REFERENCES manifest ON DELETE CASCADE,
    child_id    bigint NOT NULL REFERENCES manifest,
    PRIMARY KEY (manifest_id, child_id)
);
CREATE INDEX manifest_child_child ON manifest_child (child_id);

CREATE TABLE tag (
    repository_id bigint NOT NULL,
    name          text COLLATE "C" NOT NULL,
    manifest_id   bigint NOT NULL,
    since         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (repository_id, name),
    -- A tag points to a manifest of its own repository, and goes with it.
    FOREIGN KEY (repository_id, manifest_id) REFERENCES repository_manifest ON DELETE CASCADE
);
CREATE INDEX tag_manifest ON tag (repository_id, manifest_id);

CREATE TABLE tag_history (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    name          text COLLATE "C" NOT NULL,
    manifest_id   bigint NOT NULL REFERENCES manifest,
    since         timestamptz NOT NULL,
    until         timestamptz NOT NULL
);
CREATE INDEX tag_history_name ON tag_history (repository_id, name, until DESC);
CREATE INDEX tag_history_manifest ON tag_history (manifest_id);
COMMENT ON TABLE tag_history IS 'closed intervals: what a tag pointed to before it was moved or deleted';

-- A trigger, because it runs under the row's lock: two moves at once are recorded in the order in which they happened.
CREATE FUNCTION tag_remember() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moved timestamptz := greatest(clock_timestamp(), OLD.since);  -- one instant: the line has no gap
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.manifest_id = OLD.manifest_id THEN
        NEW.since := OLD.since;
        RETURN NEW;
    END IF;
    -- A repository that is being deleted takes its history along.
    IF EXISTS (SELECT FROM repository WHERE id = OLD.repository_id) THEN
        INSERT INTO tag_history (repository_id, name, manifest_id, since, until)
        VALUES (OLD.repository_id, OLD.name, OLD.manifest_id, OLD.since, moved);
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    NEW.since := moved;
    RETURN NEW;
END $$;
CREATE TRIGGER tag_remember BEFORE UPDATE OR DELETE ON tag FOR EACH ROW EXECUTE FUNCTION tag_remember();

CREATE TABLE upload (
    id            uuid PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    location_id   integer NOT NULL REFERENCES location,
    key           text NOT NULL,           -- of the finished object; committed before its first byte
    reserved_key  text NOT NULL,           -- of the next tail object; likewise
    epoch         integer NOT NULL DEFAULT 1,
    algorithm     text NOT NULL,
    byte_offset   bigint NOT NULL DEFAULT 0 CHECK (byte_offset >= 0),
    parts_upload  text,                    -- the store's id of the open multi-part write
    parts         jsonb NOT NULL DEFAULT '[]',
    next_part     integer NOT NULL DEFAULT 1,
    tail_key      text,
    tail_size     bigint NOT NULL DEFAULT 0,
    hash_state    bytea,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL,
    CHECK ((tail_key IS NULL) = (tail_size = 0))
);
CREATE INDEX upload_expiry ON upload (expires_at);

CREATE TABLE task (
    blob_id     bigint NOT NULL REFERENCES blob ON DELETE CASCADE,
    location_id integer NOT NULL REFERENCES location,
    size        bigint NOT NULL,
    priority    smallint NOT NULL DEFAULT 0,   -- higher goes first
    key         text,                          -- committed before its first byte
    parts_upload text,
    lease       text,
    lease_until timestamptz,
    due_at      timestamptz NOT NULL DEFAULT now(),
    attempts    integer NOT NULL DEFAULT 0,
    last_error  text,
    failing_since timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (blob_id, location_id),
    CHECK ((lease IS NULL) = (lease_until IS NULL))
);
CREATE INDEX task_due ON task (location_id, priority DESC, size, due_at);
CREATE INDEX task_when ON task (location_id, (greatest(due_at, coalesce(lease_until, due_at))));
CREATE UNIQUE INDEX task_lease ON task (lease) WHERE lease IS NOT NULL;
COMMENT ON TABLE task IS 'the schedule for paying debt; debt itself is required minus present and can be derived at any time';

CREATE TABLE node (
    id          uuid PRIMARY KEY,
    preference  text[] NOT NULL,
    defaults    text[] NOT NULL,
    version     text NOT NULL,
    draining    boolean NOT NULL DEFAULT false,
    started_at  timestamptz NOT NULL DEFAULT now(),
    seen_at     timestamptz NOT NULL DEFAULT now()
);

-- Deletes a blob's link to a repository unless a manifest there uses it. A function, because the second look must see what was
-- committed while the first one waited for the lock; a manifest that is being pushed holds it.
CREATE FUNCTION unlink_blob(repository_name text, blob_digest text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    link repository_blob;
BEGIN
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
