-- Tags that never move: patterns of a namespace or of one repository. Triggers hold them, whatever asks for a change.
-- Expands 0001; a node of the release before is held, too.

CREATE TABLE immutable_pattern (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace_id  bigint NOT NULL REFERENCES namespace ON DELETE CASCADE,
    repository_id bigint REFERENCES repository ON DELETE CASCADE,  -- NULL: of every repository of the namespace
    pattern       text COLLATE "C" NOT NULL,
    expression    text NOT NULL,                                   -- the same as a regular expression
    UNIQUE NULLS NOT DISTINCT (namespace_id, repository_id, pattern)
);
CREATE INDEX immutable_pattern_repository ON immutable_pattern (repository_id) WHERE repository_id IS NOT NULL;

CREATE FUNCTION tag_is_immutable(in_repository bigint, wanted text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM repository r JOIN immutable_pattern p
            ON p.namespace_id = r.namespace_id AND (p.repository_id IS NULL OR p.repository_id = r.id)
        WHERE r.id = in_repository AND wanted ~ p.expression)
$$;

-- A repository that is being deleted takes its tags along: it is gone when they go.
CREATE FUNCTION tag_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.manifest_id = OLD.manifest_id THEN
        RETURN NEW;
    END IF;
    IF tag_is_immutable(OLD.repository_id, OLD.name) THEN
        RAISE EXCEPTION '%', OLD.name USING ERRCODE = 'AN002';
    END IF;
    RETURN CASE TG_OP WHEN 'UPDATE' THEN NEW ELSE OLD END;
END $$;
CREATE TRIGGER tag_immutable BEFORE UPDATE OR DELETE ON tag FOR EACH ROW EXECUTE FUNCTION tag_immutable();
