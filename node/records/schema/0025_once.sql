-- Manifest PUTs that may be repeated: one row for each that had an idempotency key, made by the statement that stores the manifest,
-- so that a repetition, or the first try when it comes late, finds what was done and does nothing. Expands 0001 to 0022; nodes of the
-- release before make no rows, and look for none.
CREATE TABLE idempotency_key (
    id    uuid PRIMARY KEY,      -- of the key and of all that was asked for with it: node/push/idempotency.py
    moved boolean NOT NULL,      -- false: the manifest is stored, and its tags move when its copies are there
    at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_key_at ON idempotency_key (at);
COMMENT ON TABLE idempotency_key IS 'what need not be done again; kept for a day';
