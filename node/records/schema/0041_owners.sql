-- Robots end with their owner: whoever is disabled has no good token of a robot any more. Expands 0001 to 0040; nodes of the release
-- before still let such robots log in anew.
CREATE OR REPLACE FUNCTION account_less() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access(ARRAY[OLD.name] || CASE WHEN OLD.enabled > NEW.enabled THEN
        ARRAY(SELECT r.name FROM account r WHERE r.owner_id = NEW.id) ELSE '{}' END, NULL);
    RETURN NULL;
END $$;
