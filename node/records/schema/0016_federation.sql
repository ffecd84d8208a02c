-- Who of an identity provider's people has which account. A provider never gives a subject to somebody else; names it does.
CREATE TABLE federated_login (
    issuer     text COLLATE "C" NOT NULL,
    subject    text COLLATE "C" NOT NULL,
    account_id bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX federated_login_account ON federated_login (account_id);

-- Which tokens of identity providers count for a robot, besides those that ROBOT_FEDERATION names.
CREATE TABLE robot_federation (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    robot_id   bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    issuer     text COLLATE "C" NOT NULL,
    audience   text COLLATE "C" NOT NULL,
    subject    text COLLATE "C" NOT NULL,  -- a star stands for any characters
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (robot_id, issuer, audience, subject)
);

CREATE FUNCTION robot_federation_gone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note_access((SELECT array_agg(DISTINCT a.name) FROM gone JOIN account a ON a.id = gone.robot_id), NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER robot_federation_gone AFTER DELETE ON robot_federation REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION robot_federation_gone();
