-- Teams whose members are those of a group elsewhere, in a directory or at an identity provider. Expands 0001 to 0025; nodes of the
-- release before know nothing of it: what they change by hand in such a team the next synchronisation puts right.
CREATE TABLE team_sync (
    team_id      bigint PRIMARY KEY REFERENCES team ON DELETE CASCADE,
    service      text NOT NULL CHECK (service IN ('ldap', 'oidc')),
    group_name   text COLLATE "C" NOT NULL,  -- as somebody wrote it: of a directory relative to its base
    created_at   timestamptz NOT NULL DEFAULT now(),
    synced_at    timestamptz,                -- when a directory was last asked for all of its members; NULL: not yet
    leased_until timestamptz                 -- a node is asking
);
CREATE INDEX team_sync_service ON team_sync (service, synced_at);
