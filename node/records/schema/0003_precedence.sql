-- Who goes first, as replication/plan.py decides it (precedence): the least, in seconds. A constant of the task, so it is indexed.
-- Epochs do not depend on the time zone, which is why this may be called immutable although extract() is not for all its fields.

CREATE FUNCTION task_precedence(created_at timestamptz, priority smallint, size bigint) RETURNS float8 IMMUTABLE LANGUAGE sql AS $$
    SELECT extract(epoch FROM created_at)::float8 - 21600.0 * priority + least(size / 4194304.0, 300.0)
$$;
DROP INDEX task_due;
CREATE INDEX task_first ON task (location_id, task_precedence(created_at, priority, size));
