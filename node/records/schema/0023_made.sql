-- Which uploads were begun while their repository was there only because of them: when the last of these ends without a blob, the
-- repository goes again, as one that a refused push made does (0019). Expands 0001 to 0022; nodes of the release before leave it.
ALTER TABLE upload ADD COLUMN made_repository boolean NOT NULL DEFAULT false;
CREATE INDEX upload_made ON upload (repository_id) WHERE made_repository;
