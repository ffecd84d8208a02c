-- Which locations each node's configuration has, so that whoever waits for copies into one that no node knows can be told. Expands 0001
-- to 0039: nodes of the release before say nothing (NULL), and nothing is said about them.
ALTER TABLE node ADD COLUMN locations text[];
COMMENT ON COLUMN node.locations IS 'names in its DISTRIBUTED_STORAGE_CONFIG; NULL where it does not say';
