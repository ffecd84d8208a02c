"""Teams that follow the groups of a directory: at each login that it proves, and of everybody again and again.

Each team is asked about by one node at a time, under a lease; what a node that dies leaves is taken up when its lease has ended. A
directory that does not answer changes nothing, and that is said: whoever is in a team stays until it is known that they left.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog
import trio
from attrs import define, field

from node.auth.directory import DirectoryUnavailable
from node.auth.linking import Where
from node.auth.memberships import decide
from node.auth.team_sync import TeamSync
from node.config_values import say_duration
from node.records.accounts import Account
from node.records.postgres import Database
from node.records.team_sync import claim_stale, list_candidates, note_synced, overdue_teams
from replication.ports import LedgerUnavailable

_log = structlog.get_logger("antipode.access")

_EVERY = 30.0
_LEASE = 120.0
_PATIENCE = 90.0
"""Less than a lease: whoever waits for longer is not alone any more."""
_MOST = 100
"""Teams of one round."""


class Groups(Protocol):
    """Says who is in a group."""

    async def groups(
        self, names: Sequence[str], groups: Sequence[str], within: float | None = None
    ) -> Mapping[str, frozenset[str]]:
        """Return in which of `groups` everybody of these names is, `within` seconds. Raises DirectoryUnavailable."""


@define(eq=False)
class DirectoryTeams:
    """The teams that a directory's groups decide. `stale` is TEAM_RESYNC_STALE_TIME, seconds."""

    _teams: TeamSync
    _groups: Groups
    _database: Database
    _stale: float
    _node: str
    trouble: str = field(default="", init=False)
    """What keeps teams from being synchronised, empty while nothing does."""
    _failed: str = field(default="", init=False)
    """Why the directory could not be asked last."""

    async def at_login(self, account: Account, at: Where) -> None:
        """Let somebody whom the directory has just proven be in the teams of their groups. Raises DatabaseUnavailable."""
        standing = await self._teams.standing(account)
        if not standing.bound:
            return
        try:
            found = await self._groups.groups([account.name], sorted({line.group for line in standing.bound}))
        except DirectoryUnavailable:
            # It was logged. They are who they are; their teams stay as they were.
            return
        if account.name in found:
            await self._teams.follow(account, standing, found[account.name], at)

    async def resync(self) -> bool:
        """Synchronise some teams for which it is time; return whether there were any.

        Raises DirectoryUnavailable, DatabaseUnavailable.
        """
        service = self._teams.service
        bound = await claim_stale(self._database, service, self._stale, _LEASE, _MOST)
        if not bound:
            return False
        people = await list_candidates(self._database, f"{service}:", [line.team for line in bound])
        names = [person.name for person in people if person.linked]
        found = await self._groups.groups(names, sorted({line.group for line in bound}), _PATIENCE)
        # In a thread: of ten thousands of people it takes seconds, and requests must not wait for that.
        change = await trio.to_thread.run_sync(
            decide,
            bound,
            {(team, person.account) for person in people for team in person.teams},
            {person.account: found.get(person.name, frozenset()) for person in people},
        )
        accounts = {person.account: person.name for person in people}
        await self._teams.make(change, bound, accounts, "", Where(node=self._node))
        await note_synced(self._database, bound)
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Synchronise the teams for ever."""
        task_status.started()
        while True:
            await self.round()
            await trio.sleep(min(_EVERY, self._stale / 2))

    async def round(self) -> None:
        """Synchronise the teams for which it is time, and say what keeps them from it."""
        try:
            try:
                while await self.resync():
                    self._failed = ""
            except DirectoryUnavailable as error:
                self._failed = f"the directory cannot be asked for groups: {error}"
            overdue = await overdue_teams(self._database, self._teams.service, self._stale)
        except LedgerUnavailable as error:
            _log.info("teams are not synchronised while the database is away", reason=str(error))
            return
        if not overdue.teams:
            # Where this node could not, another one has.
            self._failed = ""
        reasons = [self._failed] if self._failed else []
        if overdue.seconds > self._stale + 2 * _LEASE:
            reasons.append(f"{overdue.teams} teams were not synchronised for {say_duration(round(overdue.seconds))}")
        trouble = "; ".join(reasons)
        if trouble and trouble != self.trouble:
            _log.warning("teams do not follow their groups", reason=trouble)
        self.trouble = trouble
