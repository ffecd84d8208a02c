-- Why each node sees a store down, so that whoever waits for copies into it, or out of it, can be told. Expands 0001 to 0043: nodes of
-- the release before say nothing (NULL).
ALTER TABLE node ADD COLUMN down_reasons jsonb;
COMMENT ON COLUMN node.down_reasons IS 'location to what it says of it, for those of down; NULL where it does not say';
