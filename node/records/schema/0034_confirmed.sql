-- When a login, or whoever put them in, last confirmed that somebody is in a team; and since when a team waits with letting very many
-- people go at once. Expands 0001 to 0033: nodes of the release before confirm nothing, and wait with nobody.
ALTER TABLE team_member ADD COLUMN confirmed_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE team_sync ADD COLUMN held_since timestamptz;
