-- What proves who somebody is, besides passwords: application tokens, the keys that sign registry tokens, the first superuser's token.

CREATE TABLE application_token (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id  bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    title       text NOT NULL,
    secret      text COLLATE "C" NOT NULL UNIQUE,  -- SHA-256: what is random in it cannot be guessed
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz
);
CREATE INDEX application_token_account ON application_token (account_id);

CREATE FUNCTION tokens_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access((SELECT array_agg(DISTINCT a.name) FROM gone JOIN account a ON a.id = gone.account_id), NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER tokens_gone AFTER DELETE ON application_token REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION tokens_gone();

-- Published before it signs and kept after: a node that reads this table now and then knows every key that it meets.
CREATE TABLE signing_key (
    id             text COLLATE "C" PRIMARY KEY,
    public         bytea NOT NULL,
    private        text NOT NULL,   -- encrypted with DATABASE_SECRET_KEY
    created_at     timestamptz NOT NULL DEFAULT now(),
    signs_from     timestamptz NOT NULL,
    signs_until    timestamptz NOT NULL,
    verifies_until timestamptz NOT NULL,
    CHECK (signs_from < signs_until AND signs_until < verifies_until)
);

CREATE TABLE bootstrap (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    secret     text COLLATE "C" NOT NULL,  -- SHA-256
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE bootstrap IS 'the token that makes the first superuser, once; printed by the node that made it';
