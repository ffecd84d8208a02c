-- Accounts and rights. A user or an organisation owns the namespace of its name; a robot is named `owner+name`.
-- Roles are numbers, so that the best of several is their maximum: 1 read, 2 write, 3 admin; of teams 1 member, 2 creator, 3 admin.

CREATE TABLE account (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE,
    kind        text NOT NULL CHECK (kind IN ('user', 'organization', 'robot')),
    owner_id    bigint REFERENCES account ON DELETE CASCADE,  -- of a robot
    secret      text,      -- of a user argon2id or bcrypt of the password, of a robot SHA-256 of its token; NULL: cannot log in
    generation  integer NOT NULL DEFAULT 0,  -- counts changes of the secret: what was issued before is void
    email       text,
    description text,
    superuser   boolean NOT NULL DEFAULT false,
    enabled     boolean NOT NULL DEFAULT true,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'robot') = (owner_id IS NOT NULL)),
    CHECK (NOT superuser OR kind = 'user')
);
CREATE INDEX account_owner ON account (owner_id) WHERE owner_id IS NOT NULL;

CREATE TABLE team (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    name            text COLLATE "C" NOT NULL,
    role            smallint NOT NULL DEFAULT 1 CHECK (role BETWEEN 1 AND 3),
    description     text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organization_id, name)
);

CREATE TABLE team_member (
    team_id    bigint NOT NULL REFERENCES team ON DELETE CASCADE,
    account_id bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    PRIMARY KEY (team_id, account_id)
);
CREATE INDEX team_member_account ON team_member (account_id);

CREATE TABLE permission (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    account_id    bigint REFERENCES account ON DELETE CASCADE,
    team_id       bigint REFERENCES team ON DELETE CASCADE,
    role          smallint NOT NULL CHECK (role BETWEEN 1 AND 3),
    CHECK (num_nonnulls(account_id, team_id) = 1),
    UNIQUE (repository_id, account_id),
    UNIQUE (repository_id, team_id)
);
CREATE INDEX permission_account ON permission (account_id) WHERE account_id IS NOT NULL;
CREATE INDEX permission_team ON permission (team_id) WHERE team_id IS NOT NULL;

CREATE TABLE default_permission (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace_id bigint NOT NULL REFERENCES account ON DELETE CASCADE,  -- the organisation whose new repositories get it
    creator_id   bigint REFERENCES account ON DELETE CASCADE,           -- NULL: whoever makes them
    account_id   bigint REFERENCES account ON DELETE CASCADE,
    team_id      bigint REFERENCES team ON DELETE CASCADE,
    role         smallint NOT NULL CHECK (role BETWEEN 1 AND 3),
    CHECK (num_nonnulls(account_id, team_id) = 1)
);
CREATE UNIQUE INDEX default_permission_once
    ON default_permission (namespace_id, coalesce(creator_id, 0), coalesce(account_id, 0), coalesce(team_id, 0));

ALTER TABLE repository ADD COLUMN public boolean NOT NULL DEFAULT false;

-- What took rights away, in the order in which it was committed: whoever takes a number holds the counter's row until the commit.
-- A node keeps the latest in memory and refuses tokens that are older than a change of their account or of a repository in them.
CREATE TABLE access_epoch (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    number   bigint NOT NULL
);
CREATE TABLE access_change (
    number     bigint NOT NULL,  -- what one statement changed has one number
    account    text COLLATE "C",
    repository text COLLATE "C",
    at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX access_change_number ON access_change (number);
CREATE INDEX access_change_at ON access_change (at);

CREATE FUNCTION note_access(accounts text[], repositories text[]) RETURNS void LANGUAGE sql AS $$
    WITH changed AS (
        SELECT a AS account, NULL AS repository FROM unnest(accounts) a UNION ALL SELECT NULL, r FROM unnest(repositories) r),
    counted AS (
        INSERT INTO access_epoch AS e (number) SELECT 1 WHERE EXISTS (SELECT FROM changed)
        ON CONFLICT (only_row) DO UPDATE SET number = e.number + 1 RETURNING number)
    INSERT INTO access_change (number, account, repository) SELECT number, account, repository FROM counted, changed
$$;

CREATE FUNCTION accounts_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access((SELECT array_agg(name) FROM gone), NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER accounts_gone AFTER DELETE ON account REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_gone();

CREATE FUNCTION account_less() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access(ARRAY[OLD.name], NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER account_less AFTER UPDATE ON account FOR EACH ROW
    WHEN (OLD.generation <> NEW.generation OR OLD.enabled > NEW.enabled OR OLD.superuser > NEW.superuser)
    EXECUTE FUNCTION account_less();

-- What went with its account or repository is noted there: those are not found any more.
CREATE FUNCTION members_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access((SELECT array_agg(a.name) FROM gone JOIN account a ON a.id = gone.account_id), NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER members_gone AFTER DELETE ON team_member REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION members_gone();

CREATE FUNCTION team_less() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access((
        SELECT array_agg(a.name) FROM team_member m JOIN account a ON a.id = m.account_id WHERE m.team_id = OLD.id), NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER team_less AFTER UPDATE ON team FOR EACH ROW WHEN (OLD.role > NEW.role) EXECUTE FUNCTION team_less();

CREATE FUNCTION permissions_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access(NULL, (
        SELECT array_agg(DISTINCT r.name) FROM gone JOIN repository r ON r.id = gone.repository_id));
    RETURN NULL;
END $$;
CREATE TRIGGER permissions_gone AFTER DELETE ON permission REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION permissions_gone();

CREATE FUNCTION permission_less() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access(NULL, ARRAY[(SELECT r.name FROM repository r WHERE r.id = OLD.repository_id)]);
    RETURN NULL;
END $$;
CREATE TRIGGER permission_less AFTER UPDATE ON permission FOR EACH ROW WHEN (OLD.role > NEW.role)
    EXECUTE FUNCTION permission_less();

CREATE FUNCTION repositories_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access(NULL, (SELECT array_agg(name) FROM gone));
    RETURN NULL;
END $$;
CREATE TRIGGER repositories_gone AFTER DELETE ON repository REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION repositories_gone();

CREATE FUNCTION repository_less() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access(NULL, ARRAY[OLD.name]);
    RETURN NULL;
END $$;
CREATE TRIGGER repository_less AFTER UPDATE ON repository FOR EACH ROW WHEN (OLD.public > NEW.public)
    EXECUTE FUNCTION repository_less();
