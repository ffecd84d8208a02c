-- A statement that a cut network held back must do nothing when it arrives at last: whoever sent it has been told that it failed.

CREATE FUNCTION in_time(deadline timestamptz) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    -- Not now(): that is when the transaction began, which may have waited for a lock since.
    IF clock_timestamp() >= deadline THEN
        RAISE EXCEPTION 'the statement arrived too late' USING ERRCODE = 'AT001';
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION in_time IS 'true, or an error that ends the statement: nobody waits for it any more';
