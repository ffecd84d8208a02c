"""The janitor: small chores that any node may do, at a gentle pace. Uploads that nobody finished, and the shared default list."""

import structlog
import trio

from node.records.members import agree_on_defaults
from node.records.postgres import Database
from node.records.uploads import expire_uploads
from replication.ports import Hints, LedgerUnavailable, Wake

_log = structlog.get_logger("antipode.janitor")

_EVERY = 30.0
_BATCH = 100
_LIVE = 10.0


async def sweep_up(database: Database, hints: Hints) -> None:
    """Do the chores once, completely. Raises LedgerUnavailable."""
    while expired := await expire_uploads(database, _BATCH):
        _log.info("abandoned uploads expired", uploads=expired)
        hints.publish(Wake())
        if expired < _BATCH:
            break
    changed = await agree_on_defaults(database, _LIVE)
    if changed is not None:
        _log.info("all live nodes agree: the default locations changed", locations=list(changed))


async def run_janitor(
    database: Database,
    hints: Hints,
    *,
    every: float = _EVERY,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Do the chores for ever; a database that is away is simply asked again next time."""
    task_status.started()
    while True:
        try:
            await sweep_up(database, hints)
        except LedgerUnavailable as error:
            _log.warning("chores postponed: the database is away", reason=str(error))
        await trio.sleep(every)
