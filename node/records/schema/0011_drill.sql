-- A drill: one location that every node treats as down until then. One row at most: one drill at a time.

CREATE TABLE drill (
    single      boolean PRIMARY KEY DEFAULT true CHECK (single),
    id          uuid NOT NULL,
    location_id integer NOT NULL REFERENCES location,
    balancer    boolean NOT NULL,       -- whether /health/endtoend says so, too
    begun_at    timestamptz NOT NULL DEFAULT now(),
    until       timestamptz NOT NULL    -- renewed by whoever leads it: it ends by itself when that one dies
);
