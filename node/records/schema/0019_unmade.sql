-- Takes back a repository that was made for a push which was refused, unless somebody has begun to use it. A function, because the
-- look for what it has must see what was committed before its row was locked. Expands 0001 to 0017.
CREATE FUNCTION unmake_repository(repository_name text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    wanted bigint;
BEGIN
    SELECT id INTO wanted FROM repository WHERE name = repository_name COLLATE "C" FOR UPDATE;
    IF NOT FOUND
        OR EXISTS (SELECT FROM upload WHERE repository_id = wanted)
        OR EXISTS (SELECT FROM repository_blob WHERE repository_id = wanted)
        OR EXISTS (SELECT FROM repository_manifest WHERE repository_id = wanted)
        OR EXISTS (SELECT FROM tag_history WHERE repository_id = wanted) THEN
        RETURN false;
    END IF;
    DELETE FROM repository WHERE id = wanted;
    RETURN true;
END $$;
