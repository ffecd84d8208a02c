-- What an upload's multi-part write may have been ended as, with parts that a dead writer left there, so that whoever goes on after
-- the one that ended it finds its bytes. Expands 0001 to 0042: nodes of the release before neither write nor read it.
ALTER TABLE upload ADD COLUMN mixed jsonb;
COMMENT ON COLUMN upload.mixed IS 'upload: the parts_upload that it is about; size of the object; spans: [start, length] of ours';
