"""Teams that follow the groups of an identity provider: a login says who is in them, and is believed for so long.

The provider tells nobody that somebody has left a group, nor does whoever left tell it. So a right that a group gave ends by itself
where TEAM_LOGIN_STALE_TIME says when, unless a login shows again that it is right.
"""

import structlog
import trio
from attrs import define

from node.auth.linking import Where
from node.auth.team_sync import TeamSync
from replication.ports import LedgerUnavailable

_log = structlog.get_logger("antipode.access")

_EVERY = 60.0


@define(eq=False)
class LoginTeams:
    """The teams that a provider's groups decide. `believed` is TEAM_LOGIN_STALE_TIME, seconds."""

    _teams: TeamSync
    _believed: float
    _node: str

    async def round(self) -> None:
        """Let everybody leave whose login is too long ago. While the database is away nothing happens: it says when that was."""
        try:
            await self._teams.expire(self._believed, Where(node=self._node))
        except LedgerUnavailable as error:
            _log.info("nobody leaves a team while the database is away", reason=str(error))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do so for ever, every minute."""
        task_status.started()
        while True:
            await self.round()
            await trio.sleep(_EVERY)
