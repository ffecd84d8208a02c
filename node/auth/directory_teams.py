"""Teams that follow the groups of a directory: at each login that it proves, and of everybody again and again.

Each team is asked about by one node at a time, under a lease; what a node that dies leaves is taken up when its lease has ended. A
directory that does not answer changes nothing, and that is said: whoever is in a team stays until it is known that they left.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import structlog
import trio
from attrs import define, evolve, field

from node.auth.directory import DirectoryUnavailable
from node.auth.linking import Where
from node.auth.memberships import Bound, decide, unlikely
from node.auth.team_sync import TeamSync
from node.auth.told import Told
from node.config.values import say_duration
from node.records.accounts import Account
from node.records.postgres import Database
from node.records.team_sync import Standing, claim_stale, list_candidates, note_synced, overdue_teams
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

    async def groups(self, names: Sequence[str], groups: Sequence[str], within: float | None = None) -> Told:
        """Return in which of `groups` everybody of these names is, `within` seconds. Raises DirectoryUnavailable."""

    async def listing(self, groups: Sequence[str]) -> Collection[str]:
        """Return the groups that list anybody. Raises DirectoryUnavailable."""


@define(eq=False)
class DirectoryTeams:
    """The teams that a directory's groups decide. `stale` is TEAM_RESYNC_STALE_TIME, `hold` TEAM_RESYNC_HOLD_TIME, seconds."""

    teams: TeamSync = field(alias="teams")
    _groups: Groups
    _database: Database
    _stale: float
    _hold: float
    _node: str
    trouble: str = field(default="", init=False)
    """What keeps teams from being synchronised, empty while nothing does."""
    _failed: str = field(default="", init=False)
    """Why the directory could not be asked last, or not for all groups."""
    _most: int = field(default=_MOST, init=False)
    """Teams that are asked about together: fewer where no answer came, so that one group holds up no others for long."""

    async def at_login(self, account: Account, at: Where) -> None:
        """Let somebody whom the directory has just proven be in the teams of their groups. Raises DatabaseUnavailable."""
        standing = await self.teams.standing(account)
        if not standing.bound:
            return
        try:
            told = await self._groups.groups([account.name], sorted({line.group for line in standing.bound}))
            if account.name not in told.who:
                return
            theirs = told.who[account.name]
            bound = await self._seen(account, evolve(standing, bound=self._read(standing.bound, told)), theirs)
        except DirectoryUnavailable as error:
            # It was logged. They are who they are; their teams stay as they were.
            self.teams.counts.unread[error.why] += len(standing.bound)
            return
        await self.teams.follow(account, evolve(standing, bound=bound), theirs, at)

    async def _seen(self, account: Account, standing: Standing, theirs: Collection[str]) -> Sequence[Bound]:
        """Return the teams about which a login decides: none that somebody would leave whose group lists nobody at all.

        Such a group may be hidden from LDAP_ADMIN_DN. Each login would take one out then, and a round, which waits with a crowd,
        would find nobody left. Raises DirectoryUnavailable.
        """
        left = {
            line.group
            for line in standing.bound
            if (line.team, account.id) in standing.present and line.group not in theirs
        }
        hidden = left - set(await self._groups.listing(sorted(left))) if left else set[str]()
        return [line for line in standing.bound if line.group not in hidden]

    async def resync(self) -> bool:
        """Synchronise some teams for which it is time; return whether there were any.

        Raises DirectoryUnavailable, DatabaseUnavailable.
        """
        service = self.teams.service
        claimed = await claim_stale(self._database, service, self._stale, _LEASE, self._most)
        if not claimed:
            return False
        people = await list_candidates(self._database, f"{service}:", [line.team for line in claimed])
        names = [person.name for person in people if person.linked]
        try:
            told = await self._groups.groups(names, sorted({line.group for line in claimed}), _PATIENCE)
        except DirectoryUnavailable as error:
            self.teams.counts.unread[error.why] += len(claimed)
            self._most = max(1, self._most // 4)
            raise
        self._most = min(_MOST, 2 * self._most)
        bound = self._read(claimed, told)
        present = {(team, person.account) for person in people for team in person.teams}
        groups = {person.account: told.who.get(person.name, frozenset()) for person in people}
        # In threads: of ten thousands of people it takes seconds, and requests must not wait for that.
        change = await trio.to_thread.run_sync(decide, bound, present, groups)
        held = await trio.to_thread.run_sync(unlikely, change, bound, present, self._hold)
        accounts = {person.account: person.name for person in people}
        await self.teams.make(change.keeping(held), bound, accounts, "", Where(node=self._node))
        await note_synced(self._database, bound, held)
        self.teams.counts.rounds += 1
        return True

    def _read(self, bound: Sequence[Bound], told: Told) -> Sequence[Bound]:
        """Return the teams of whose groups it is known who is in them."""
        for line in bound:
            if (trouble := told.unread.get(line.group)) is not None:
                self.teams.counts.unread[trouble.why] += 1
                self._failed = f"a group cannot be read: {trouble.text}"
                _log.warning("a group cannot be read", group=line.group, reason=trouble.text)
        return [line for line in bound if line.group not in told.unread]

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
                    pass
            except DirectoryUnavailable as error:
                self._failed = f"the directory cannot be asked for groups: {error}"
            overdue = await overdue_teams(self._database, self.teams.service, self._stale)
        except LedgerUnavailable as error:
            _log.info("teams are not synchronised while the database is away", reason=str(error))
            return
        if not overdue.teams:
            # Where this node could not, another one has.
            self._failed = ""
        reasons = [self._failed] if self._failed else []
        if overdue.seconds > self._stale + 2 * _LEASE:
            reasons.append(f"{overdue.teams} teams were not synchronised for {say_duration(round(overdue.seconds))}")
        if overdue.held:
            reasons.append(
                f"most people of {', '.join(overdue.held)} have left the group at once, and stay for a while: see that the "
                "directory is right, or bind the team again to the same group"
            )
        trouble = "; ".join(reasons)
        if trouble and trouble != self.trouble:
            _log.warning("teams do not follow their groups", reason=trouble)
        self.trouble = trouble
