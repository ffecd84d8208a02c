-- A request with an idempotency key that was refused, and whose key stands for no other: a try that comes late finds that, and does
-- nothing. Deletes have such rows, too. Expands 0025; nodes of the release before take a refused row for one of which a part is done.
ALTER TABLE idempotency_key ADD COLUMN refused boolean NOT NULL DEFAULT false;
