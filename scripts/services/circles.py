"""Transactions that waited for each other in a circle, by PostgreSQL's log: tests drop the databases that counted them.

Each costs everybody in it a second and one an error, and its cause is always ours: locks that are taken in two orders. A test that
makes one on purpose has its database keep quiet: `ALTER DATABASE name SET log_min_messages = fatal`.
"""

import re

VARIABLE = "ANTIPODE_TEST_POSTGRES_LOG"
"""Names the log, where the server is ours."""

_ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", re.MULTILINE)
_SEVERITY = re.compile(r"\] ([A-Z]+):  ")


def circles(log: str) -> list[str]:
    """Return what a log says of each: who waited for whom, and their statements."""
    found: list[str] = []
    inside = False
    for entry in _ENTRY.split(log):
        severity = _SEVERITY.search(entry)
        kind = "" if severity is None else severity[1]
        if kind in ("ERROR", "FATAL"):
            inside = "deadlock detected" in entry
            if inside:
                found.append(entry)
        elif inside and kind in ("DETAIL", "HINT", "CONTEXT", "STATEMENT"):
            # What one process says of an error comes in one piece.
            found[-1] += entry
        else:
            inside = False
    return found
