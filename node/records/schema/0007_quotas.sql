-- Quotas: how many bytes of blobs a namespace links, each blob once, in counters that pushes do not queue up behind.
-- Expands 0001; a node of the release before works on it, and is counted.

ALTER TABLE namespace ADD COLUMN quota_reject bigint CHECK (quota_reject >= 0);  -- bytes; NULL: DEFAULT_SYSTEM_REJECT_QUOTA_BYTES
ALTER TABLE namespace ADD COLUMN quota_warn bigint CHECK (quota_warn >= 0);      -- bytes; NULL: no warning

CREATE TABLE namespace_blob (
    namespace_id bigint NOT NULL REFERENCES namespace ON DELETE CASCADE,
    blob_id      bigint NOT NULL,  -- no foreign key: a link keeps the blob, and the row goes with the last link
    size         bigint NOT NULL,
    links        bigint NOT NULL,
    PRIMARY KEY (namespace_id, blob_id)
);
COMMENT ON TABLE namespace_blob IS 'the blobs that a namespace links, and by how many of its repositories';

CREATE TABLE namespace_usage (
    namespace_id bigint NOT NULL REFERENCES namespace ON DELETE CASCADE,
    shard        integer NOT NULL,
    blobs        bigint NOT NULL DEFAULT 0,
    bytes        bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace_id, shard)
);

CREATE FUNCTION namespace_used(wanted bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(u.bytes), 0)::bigint FROM namespace_usage u WHERE u.namespace_id = wanted
$$;

CREATE FUNCTION namespace_blob_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO namespace_usage AS u (namespace_id, shard, blobs, bytes)
    SELECT c.namespace_id, c.blob_id % 16, count(*), sum(c.size) FROM changed c GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (namespace_id, shard) DO UPDATE SET blobs = u.blobs + excluded.blobs, bytes = u.bytes + excluded.bytes;
    RETURN NULL;
END $$;
CREATE TRIGGER namespace_blob_added AFTER INSERT ON namespace_blob
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION namespace_blob_added();

CREATE FUNCTION namespace_blob_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE namespace_usage u SET blobs = u.blobs - gone.blobs, bytes = u.bytes - gone.bytes
    FROM (SELECT c.namespace_id, c.blob_id % 16 AS shard, count(*) AS blobs, sum(c.size) AS bytes FROM changed c GROUP BY 1, 2) gone
    WHERE u.namespace_id = gone.namespace_id AND u.shard = gone.shard;
    RETURN NULL;
END $$;
CREATE TRIGGER namespace_blob_gone AFTER DELETE ON namespace_blob
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION namespace_blob_gone();

CREATE FUNCTION blob_linked_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO namespace_blob AS nb (namespace_id, blob_id, size, links)
    SELECT r.namespace_id, c.blob_id, b.size, count(*)
    FROM changed c JOIN repository r ON r.id = c.repository_id JOIN blob b ON b.id = c.blob_id GROUP BY 1, 2, 3 ORDER BY 1, 2
    ON CONFLICT (namespace_id, blob_id) DO UPDATE SET links = nb.links + excluded.links;
    RETURN NULL;
END $$;
CREATE TRIGGER blob_linked_usage AFTER INSERT ON repository_blob
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION blob_linked_usage();

CREATE FUNCTION blob_unlinked_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE namespace_blob nb SET links = nb.links - less.links
    FROM (SELECT r.namespace_id, c.blob_id, count(*) AS links FROM changed c JOIN repository r ON r.id = c.repository_id
          GROUP BY 1, 2) less
    WHERE nb.namespace_id = less.namespace_id AND nb.blob_id = less.blob_id;
    DELETE FROM namespace_blob nb USING changed c, repository r
    WHERE r.id = c.repository_id AND nb.namespace_id = r.namespace_id AND nb.blob_id = c.blob_id AND nb.links <= 0;
    RETURN NULL;
END $$;
CREATE TRIGGER blob_unlinked_usage AFTER DELETE ON repository_blob
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION blob_unlinked_usage();

-- A repository's links go before it does: after that nobody could tell whose they were.
CREATE FUNCTION repository_unlink() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM repository_blob WHERE repository_id = OLD.id;
    RETURN OLD;
END $$;
CREATE TRIGGER repository_unlink BEFORE DELETE ON repository FOR EACH ROW EXECUTE FUNCTION repository_unlink();

INSERT INTO namespace_blob (namespace_id, blob_id, size, links)
    SELECT r.namespace_id, b.id, b.size, count(*)
    FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id JOIN blob b ON b.id = rb.blob_id GROUP BY 1, 2, 3;
