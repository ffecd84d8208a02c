-- The open uploads of a namespace, counted before one more is opened. A column of their own: a namespace may have very many
-- repositories. What nodes of the release before open is not counted. Expands 0001 to 0016.
ALTER TABLE upload ADD COLUMN opened_in bigint;
COMMENT ON COLUMN upload.opened_in IS 'the namespace, which needs no lock for that';
UPDATE upload u SET opened_in = r.namespace_id FROM repository r WHERE r.id = u.repository_id;
CREATE INDEX upload_opened_in ON upload (opened_in, expires_at);
-- However few namespaces a sample saw: count by the index, never through the uploads of all.
ALTER TABLE upload ALTER COLUMN opened_in SET (n_distinct = -0.2);
