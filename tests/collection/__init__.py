"""Deletes and collection, on a real database and real stores."""
