"""The journal in the stores: what a registry is besides its blobs, so that it can be rebuilt when the database is lost."""
