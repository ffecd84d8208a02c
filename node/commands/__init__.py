"""Verbs of the command line, one room per topic. `node/cli.py` puts them together."""
