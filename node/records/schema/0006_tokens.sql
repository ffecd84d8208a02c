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

CREATE FUNCTION token_less() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access(a.name, NULL) FROM account a WHERE a.id = OLD.account_id;
    RETURN NULL;
END $$;
CREATE TRIGGER token_less AFTER DELETE ON application_token FOR EACH ROW EXECUTE FUNCTION token_less();

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
