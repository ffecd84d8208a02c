"""The janitor: small chores that any node may do, at a gentle pace. Unfinished uploads, old tokens, the shared default list."""

import structlog
import trio

from node.auth.changes import ACCESS_CHANGED
from node.records.application_tokens import drop_ended_tokens
from node.records.idempotency import drop_old_keys
from node.records.members import agree_on_defaults
from node.records.permissions import settle_new_repositories
from node.records.postgres import Database
from node.records.rights import drop_old_changes
from node.records.signing_keys import drop_keys
from node.records.uploads import expire_uploads
from replication.ports import Hints, LedgerUnavailable, Wake

_log = structlog.get_logger("antipode.janitor")

_EVERY = 30.0
_BATCH = 100
_LIVE = 10.0
_NEW = 600.0
"""Seconds for which a repository that was made for a push stays without anything: its client may try again."""
_ACCESS_LOG = 2 * 86400.0
"""Seconds; tokens live for a day at most."""


async def sweep_up(database: Database, hints: Hints) -> None:
    """Do the chores once, completely. Raises LedgerUnavailable."""
    while expired := await expire_uploads(database, _BATCH):
        _log.info("abandoned uploads expired", uploads=expired)
        hints.publish(Wake())
        if expired < _BATCH:
            break
    while settled := await settle_new_repositories(database, _NEW, _BATCH):
        hints.publish(ACCESS_CHANGED)
        if settled < _BATCH:
            break
    await drop_old_changes(database, _ACCESS_LOG)
    await drop_ended_tokens(database)
    await drop_keys(database)
    await drop_old_keys(database)
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
