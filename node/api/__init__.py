"""The API as functions from a node's parts and plain parameters to JSON values; it knows no web framework.

`frame.py` has what all of them share: problems (RFC 9457) and the reading of parameters. `table/` has the operations with their
paths, and `node/web/api_app.py` makes routes of it.
"""
