"""Whose clock counts: the database's for all that nodes share, and a node's own only where nothing of theirs depends on it."""

import ast

import pytest

from tests.services import repository_root
from tests.test_architecture import files

WALL_CLOCKS = {
    "engines/s3_bytes.py": "signatures: the store compares them with its own clock, and takes a quarter of an hour",
    "node/running.py": "presigned URLs, likewise",
    "node/assembly.py": "registry tokens, which allow for half a minute and are asked for again",
    "node/auth/own_token.py": "likewise",
    "node/clock_offset.py": "how far that clock is off",
    "node/commands/own_logins.py": "what the user's machine shows of its own logins",
    "node/commands/orphans.py": "ages that people are shown; whether something is an orphan the database says",
    "node/repair.py": "likewise",
    "node/hooks/courier.py": "signatures of webhooks, which the receiver compares with its own clock",
    "node/auditlog.py": "when a pull was, as this node saw it",
    "node/web/wire.py": "the access log and the header Date",
    "node/access_writer.py": "the access log",
    "node/commands/user.py": "lifetimes that people are shown",
    "node/tls.py": "dates of certificates",
    "node/config/report.py": "likewise",
}
"""Who may look at this machine's clock, and why it does no harm when that is wrong."""

_READS = frozenset({"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.strftime"})
_DATES = frozenset({"now", "utcnow", "today"})


def reads_wall_clock(source: str) -> bool:
    """Return whether a module names a function that tells the time of day."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in _READS or (node.attr in _DATES and "date" in ast.unparse(node.value)):
                return True
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            return True
    return False


def test_only_these_look_at_the_machine_s_clock() -> None:
    """Leases, deadlines, grace, retention, ends of uploads and ages of debt are the database's: a wrong clock moves none."""
    found = {path for path in files() if reads_wall_clock((repository_root() / path).read_text())}
    assert found == set(WALL_CLOCKS)


@pytest.mark.parametrize(
    "source", ["import time\nx = time.time", "from time import time", "from datetime import datetime\ndatetime.now()"]
)
def test_a_look_at_the_clock_is_seen(source: str) -> None:
    """However it is named."""
    assert reads_wall_clock(source)
    assert not reads_wall_clock("import trio\ntrio.current_time()")
