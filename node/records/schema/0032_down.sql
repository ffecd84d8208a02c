-- What each node sees down, with the POSIX seconds since when, so that whoever is asked knows whether anything moves: what it reaches
-- itself says nothing of the nodes that copy. NULL: a node of 0.6.0 or before, which does not say. Expands 0001 to 0029.
ALTER TABLE node ADD COLUMN down jsonb;

-- The locations but for which the last try might not have failed: a blob whose copies could not be read may yet be moved. NULL: every
-- copy was read, or a node of 0.6.0 tried.
ALTER TABLE task ADD COLUMN unreached text[];

-- The tail's key and the SHA-256 of its bytes in hexadecimal, so that nobody builds upon other bytes than were stored. It counts for this
-- very key: a node of 0.6.0 leaves it as it is.
ALTER TABLE upload ADD COLUMN tail_proof text;
