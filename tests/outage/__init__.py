"""Stores that hang, refuse, reset and lie while real nodes copy between them."""
