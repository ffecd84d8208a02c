-- With accounts, too, a repository that is there only because of an upload goes again when that comes to nothing. Expands 0001 to
-- 0027; nodes of the release before make none of these.
ALTER TABLE repository ADD COLUMN made_for_push timestamptz;
COMMENT ON COLUMN repository.made_for_push IS
    'when a push made it, or the latest upload into it came to nothing; NULL as soon as it has something, or somebody did something to it';
CREATE INDEX repository_made_for_push ON repository (made_for_push) WHERE made_for_push IS NOT NULL;

CREATE FUNCTION touch_repository(touched bigint) RETURNS void LANGUAGE sql AS $$
    -- What making it gave to its creator has its very time.
    UPDATE repository SET made_for_push = NULL WHERE id = touched AND made_for_push IS NOT NULL AND created_at <> now();
    UPDATE upload SET made_repository = false WHERE repository_id = touched AND made_repository;
$$;

CREATE FUNCTION repository_touched() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM touch_repository(CASE TG_OP WHEN 'DELETE' THEN OLD.repository_id ELSE NEW.repository_id END);
    RETURN NULL;
END $$;
CREATE TRIGGER permission_touches AFTER INSERT OR UPDATE OR DELETE ON permission FOR EACH ROW EXECUTE FUNCTION repository_touched();
CREATE TRIGGER immutable_pattern_touches AFTER INSERT OR UPDATE OR DELETE ON immutable_pattern
    FOR EACH ROW EXECUTE FUNCTION repository_touched();

CREATE FUNCTION repository_shown() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM touch_repository(NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER repository_shown AFTER UPDATE OF public ON repository FOR EACH ROW EXECUTE FUNCTION repository_shown();

-- As unmake_repository (0019), but looks, when nobody else can change it any more, whether somebody did something to it: gave or took
-- a permission, showed or hid it, made its tags immutable. Without accounts no repository has permissions.
CREATE FUNCTION unmake_untouched(repository_name text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    wanted repository;
BEGIN
    SELECT * INTO wanted FROM repository WHERE name = repository_name COLLATE "C" FOR UPDATE;
    IF NOT FOUND
        OR wanted.made_for_push IS NULL AND EXISTS (SELECT FROM permission WHERE repository_id = wanted.id)
        OR EXISTS (SELECT FROM immutable_pattern WHERE repository_id = wanted.id) THEN
        RETURN false;
    END IF;
    RETURN unmake_repository(repository_name);
END $$;
