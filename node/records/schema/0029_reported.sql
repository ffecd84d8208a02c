-- Whether a blob's copy in a location has this key by now: asked in the middle of a statement it sees what others have committed since
-- that began, as a sub-select would not. Expands 0001 to 0028.
CREATE FUNCTION is_placed_by_now(wanted_blob bigint, wanted_location integer, wanted_key text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM placement WHERE blob_id = wanted_blob AND location_id = wanted_location AND key = wanted_key);
END $$;
