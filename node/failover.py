"""What a node does when another server answers for the database: says so, looks for lost commits, and has all counted anew.

A standby that is promoted may not have received what its primary had committed. Nobody can bring that back from here, but it must
not go unnoticed: clients were told that their push counts.
"""

from collections import Counter
from collections.abc import Sequence

import structlog
import trio
from attrs import define, field

from node.acknowledged import Acknowledged, Push
from node.records.dial import LineageChange
from node.records.lineage import Change
from node.records.postgres import Database, DatabaseUnavailable
from node.records.presence import missing_pushes
from node.records.reconcile import ask_for_round
from replication.ports import Forget, Publish, Wake

_log = structlog.get_logger("antipode.database")

_AGAIN_SECONDS = 1.0
_MOST_NAMED = 50


@define(eq=False)
class FailOvers:
    """Follows the database from server to server. Run `run` in a nursery."""

    _database: Database
    _acknowledged: Acknowledged
    _publish: Publish
    changes: Counter[Change] = field(factory=Counter, init=False)
    """How often which change was seen since the start."""
    lost: int = field(default=0, init=False)
    """Pushes that this node had acknowledged, and that were missing after one."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow for ever. Ends by cancellation."""
        task_status.started()
        while True:
            change = await self._database.next_change()
            self._say(change)
            # What is remembered may have been lost, and what others wait for may be owed again.
            self._publish(Forget(), Wake())
            await self._look()

    def _say(self, seen: LineageChange) -> None:
        self.changes[seen.change] += 1
        _log.error(
            "another server answers for the database; commits may be lost",
            change=seen.change.value,
            timeline_before=seen.before.timeline,
            timeline=seen.after.timeline,
            transaction_before=seen.before.next_transaction,
            transaction=seen.after.next_transaction,
        )

    async def _look(self) -> None:
        """Compare with what was acknowledged, and have a whole round of reconciliation done."""
        acknowledged = self._acknowledged.since(trio.current_time())
        while True:
            try:
                missing = await missing_pushes(self._database, acknowledged)
                await ask_for_round(self._database)
            except DatabaseUnavailable:
                await trio.sleep(_AGAIN_SECONDS)
                continue
            break
        self._count(missing, len(acknowledged))

    def _count(self, missing: Sequence[Push], of: int) -> None:
        self.lost += len(missing)
        for push in missing[:_MOST_NAMED]:
            _log.error(
                "an acknowledged push is lost: push it again",
                repository=push.repository,
                tag=push.tag or None,
                digest=push.digest,
            )
        tell = _log.error if missing else _log.info
        tell("looked for lost commits; everything is being counted anew", lost=len(missing), acknowledged=of)
