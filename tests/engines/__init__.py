"""Tests of the engines: one contract for all of them, and what is special about each."""
