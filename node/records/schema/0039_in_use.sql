-- An account stays whose first repository is made while it is about to be deleted. Expands 0001 to 0038; nodes of the release before
-- look only before they wait.

-- Whether a namespace has repositories by now: see 0029.
CREATE FUNCTION is_used_by_now(wanted_namespace text) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM namespace n JOIN repository r ON r.namespace_id = n.id WHERE n.name = wanted_namespace);
END $$;
