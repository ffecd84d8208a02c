-- Blobs of which a node reads a copy that stays, before a copy that has to go is trimmed: so that no other node reads the same. Nothing
-- depends on these rows, and a blob that is collected meanwhile leaves its row to be forgotten.
CREATE TABLE trim_lease (
    blob_id bigint PRIMARY KEY,
    until   timestamptz NOT NULL
);
