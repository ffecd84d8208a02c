-- The last transactions that waited for each other in a circle: whoever comes to several things comes to them in one order. Before all
-- of a namespace that 0031 names come accounts by id, which has owners before their robots, and teams by id; then the repositories that
-- they have permissions on. Whoever comes to several tags, or candidates, of a repository has its row FOR NO KEY UPDATE.
-- Expands 0001 to 0036; nodes of the release before take some of these locks in other orders.

-- Finds or makes a namespace, and shares its row: it stays. A row that another was quicker to make is not written again: whoever looks
-- for the latest of several versions waits for the one that makes it, whatever they lock it for.
CREATE FUNCTION hold_namespace(wanted text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found_id bigint;
BEGIN
    LOOP
        SELECT n.id INTO found_id FROM namespace n WHERE n.name = wanted FOR KEY SHARE;
        IF FOUND THEN
            RETURN found_id;
        END IF;
        INSERT INTO namespace (name) VALUES (wanted) ON CONFLICT (name) DO NOTHING;
    END LOOP;
END $$;

-- The same for a repository in it: what is not there yet cannot be locked, so its namespace comes first.
CREATE FUNCTION hold_repository(in_namespace text, wanted text) RETURNS repository LANGUAGE plpgsql AS $$
DECLARE
    home bigint := hold_namespace(in_namespace);
    result repository;
BEGIN
    LOOP
        SELECT r.* INTO result FROM repository r WHERE r.name = wanted FOR KEY SHARE;
        IF FOUND THEN
            RETURN result;
        END IF;
        INSERT INTO repository (namespace_id, name) VALUES (home, wanted) ON CONFLICT (name) DO NOTHING;
    END LOOP;
END $$;

-- Whatever goes with accounts and teams, whose rows the caller has FOR UPDATE: nobody gives them anything any more, so that what is
-- found is all.
CREATE FUNCTION hold_what_goes_with(accounts bigint[], teams bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM team_sync s WHERE s.team_id = ANY(teams) ORDER BY s.team_id FOR UPDATE;
    PERFORM FROM team_member m WHERE m.team_id = ANY(teams) OR m.account_id = ANY(accounts)
        ORDER BY m.team_id, m.account_id FOR UPDATE;
    PERFORM FROM default_permission d WHERE d.namespace_id = ANY(accounts) OR d.creator_id = ANY(accounts)
        OR d.account_id = ANY(accounts) OR d.team_id = ANY(teams) ORDER BY d.id FOR UPDATE;
    -- Before the permissions on them, as whoever deletes them has both.
    PERFORM FROM repository r WHERE r.id IN (
        SELECT p.repository_id FROM permission p WHERE p.account_id = ANY(accounts)
        UNION ALL SELECT p.repository_id FROM permission p WHERE p.team_id = ANY(teams)) ORDER BY r.id FOR NO KEY UPDATE;
END $$;

-- Locks a team for its deletion. False: it is gone.
CREATE FUNCTION hold_team(wanted bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM team t WHERE t.id = wanted FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM hold_what_goes_with('{}', ARRAY[wanted]);
    RETURN true;
END $$;

-- Locks an account for its deletion, with its robots and teams. False: it is gone.
CREATE FUNCTION hold_account(wanted bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    robots bigint[];
    teams bigint[];
BEGIN
    PERFORM FROM account a WHERE a.id = wanted FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    robots := ARRAY(SELECT a.id FROM account a WHERE a.owner_id = wanted ORDER BY a.id FOR UPDATE);
    teams := ARRAY(SELECT t.id FROM team t WHERE t.organization_id = wanted ORDER BY t.id FOR UPDATE);
    PERFORM hold_what_goes_with(wanted || robots, teams);
    RETURN true;
END $$;

-- Owes closures of repositories' manifests, each to its location, in one order for all of them: home, root and location belong
-- together. Tasks that exist are left as they are, and those of another transaction that is not over are waited for.
CREATE FUNCTION owe_closures(homes bigint[], roots bigint[], locations integer[]) RETURNS void LANGUAGE sql AS $$
    WITH asked AS MATERIALIZED (
        SELECT u.home, u.root, array_agg(DISTINCT u.location_id) AS locations
        FROM unnest(homes, roots, locations) AS u (home, root, location_id) GROUP BY 1, 2),
    part AS MATERIALIZED (
        SELECT DISTINCT mb.blob_id, a.locations FROM asked a CROSS JOIN LATERAL closure_in(a.home, a.root, true) m
        JOIN manifest_blob mb ON mb.manifest_id = m),
    -- The blobs first: whoever settles one may hold it and come to a task of another that is being made here.
    held AS MATERIALIZED (
        SELECT b.id, b.size FROM blob b WHERE b.id IN (SELECT blob_id FROM part) ORDER BY b.id FOR KEY SHARE)
    INSERT INTO task (blob_id, location_id, size)
    SELECT DISTINCT b.id, l.id, b.size
    FROM held b JOIN part ON part.blob_id = b.id JOIN location l ON l.id = ANY(part.locations) AND l.state IN ('active', 'paused')
    WHERE NOT EXISTS (SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = l.id AND p.state = 'present')
        AND NOT EXISTS (SELECT FROM task t WHERE t.blob_id = b.id AND t.location_id = l.id)
        AND NOT blob_forbidden(b.id, l.id)
    ORDER BY 1, 2
    ON CONFLICT (blob_id, location_id) DO NOTHING
$$;

CREATE OR REPLACE FUNCTION tag_location_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM owe_closures(array_agg(t.repository_id), array_agg(t.manifest_id), array_agg(n.location_id))
        FROM new_rows n JOIN tag t ON t.repository_id = n.repository_id AND t.name = n.name HAVING count(*) > 0;
    RETURN NULL;
END $$;

-- All that the manifests must have now, not only what their tags that moved add: a push that gives one of its tags a location owes that
-- in a statement of its own, which then finds it done.
CREATE OR REPLACE FUNCTION tag_moved_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows n JOIN tag_location tl ON tl.repository_id = n.repository_id AND tl.name = n.name) THEN
        PERFORM owe_closures(array_agg(t.repository_id), array_agg(t.manifest_id), array_agg(tl.location_id))
            FROM (SELECT DISTINCT n.repository_id, n.manifest_id FROM new_rows n) n
            JOIN tag t ON t.repository_id = n.repository_id AND t.manifest_id = n.manifest_id
            JOIN tag_location tl ON tl.repository_id = t.repository_id AND tl.name = t.name HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION manifest_linked_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM tag_location) THEN
        PERFORM owe_closures(array_agg(n.repository_id), array_agg(n.manifest_id), array_agg(tl.location_id))
            FROM new_rows n CROSS JOIN LATERAL manifest_tags(n.repository_id, n.manifest_id) t (name)
            JOIN tag_location tl ON tl.repository_id = n.repository_id AND tl.name = t.name COLLATE "C" HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tag_attached_owe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE name LIKE 'sha256-%') AND EXISTS (SELECT FROM tag_location) THEN
        PERFORM owe_closures(array_agg(n.repository_id), array_agg(n.manifest_id), array_agg(tl.location_id))
            FROM new_rows n CROSS JOIN LATERAL manifest_tags(n.repository_id, n.manifest_id) t (name)
            JOIN tag_location tl ON tl.repository_id = n.repository_id AND tl.name = t.name COLLATE "C"
            WHERE n.name ~ '^sha256-[0-9a-f]{64}\.(sig|att|sbom)$' HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;
