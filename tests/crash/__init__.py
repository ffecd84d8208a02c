"""A node is killed at each of its calls to the database and to a store, and nothing that was acknowledged is lost."""
