-- The default locations that all live nodes' files named last. What an operator makes the default, beside the files, counts until these
-- change: to agree on what they said before is no wish. Expands 0001 to 0035: nodes of the release before go on as they did, and put
-- their files' list back.
CREATE TABLE agreed_default (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    names text[] NOT NULL
);
COMMENT ON TABLE agreed_default IS 'the default locations that all live nodes named last; one row, none before there is a default list';
INSERT INTO agreed_default (names)
SELECT array_agg(l.name) FROM default_location d JOIN location l ON l.id = d.location_id HAVING count(*) > 0;
