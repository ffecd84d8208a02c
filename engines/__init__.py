"""Engines: one class per kind of store, behind one small protocol (`contract.py`)."""
