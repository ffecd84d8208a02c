"""Lets groups decide who is in a team: at a login those of whoever logs in, and, where a directory knows them all, of everybody.

What decides is `node/auth/memberships.py`. Nobody gets an account by being in a group: that takes a login.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import structlog
from attrs import define, evolve, field

from node.auth.changes import ACCESS_CHANGED
from node.auth.linking import Where
from node.auth.memberships import Bound, Change, Membership, decide
from node.auth.team_counts import TeamCounts
from node.records.accounts import Account
from node.records.auditlog import Line
from node.records.postgres import Database
from node.records.team_confirmations import list_unconfirmed
from node.records.team_sync import Done, Standing, Step, standing_of, take_steps
from replication.ports import Publish

_log = structlog.get_logger("antipode.access")

CONFIRMED = "oidc"
"""The service that says who is in a group at their logins alone."""
_MOST = 1000
"""Memberships that end in one transaction."""


@define(eq=False)
class TeamSync:
    """The synchronised teams of a service: `ldap` or `oidc`."""

    service: str
    _database: Database
    _publish: Publish
    counts: TeamCounts = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.counts = TeamCounts(self.service)

    async def standing(self, account: Account) -> Standing:
        """Return which teams groups decide, and in which of them somebody is. Raises DatabaseUnavailable."""
        return await standing_of(self._database, self.service, account.id)

    async def follow(self, account: Account, standing: Standing, groups: Collection[str], at: Where) -> None:
        """Let somebody who logs in be in the teams of these groups and in no other bound one. Raises DatabaseUnavailable."""
        change = decide(standing.bound, standing.present, {account.id: groups})
        change = change.keeping({line.team for line in standing.bound if line.held is not None})
        if self.service == CONFIRMED:
            # Also those that are there are confirmed by this.
            change = evolve(change, joins=change.joins | change.stays)
        await self.make(change, standing.bound, {account.id: account.name}, account.name, at)

    async def make(
        self, change: Change, bound: Iterable[Bound], names: Mapping[int, str], actor: str, at: Where
    ) -> None:
        """Do what was decided about accounts of these names, and let all nodes know. Raises DatabaseUnavailable."""
        steps = list(self._steps(change, {line.team: line for line in bound}, names, actor, at))
        if steps:
            await self._take(steps)

    async def expire(self, believed: float, at: Where) -> None:
        """Let those leave whose login that put them in a team is longer ago than `believed` seconds. Raises DatabaseUnavailable."""
        left = _MOST
        while left == _MOST:
            found = await list_unconfirmed(self._database, self.service, believed, _MOST)
            steps = [
                self._step(
                    (one.bound.team, one.account), one.bound, one.name, False, "", at, confirmed=int(one.confirmed)
                )
                for one in found
            ]
            left = (await self._take(steps, believed)).left if steps else 0

    async def _take(self, steps: Sequence[Step], believed: float | None = None) -> Done:
        done = await take_steps(self._database, self.service, steps, believed)
        if not done.joined and not done.left:
            return done
        self._publish(ACCESS_CHANGED)
        self.counts.joined += done.joined
        self.counts.left += done.left
        _log.info(
            "teams follow their groups",
            service=self.service,
            joined=done.joined,
            left=done.left,
        )
        return done

    def _steps(
        self, change: Change, teams: Mapping[int, Bound], names: Mapping[int, str], actor: str, at: Where
    ) -> Iterator[Step]:
        for joins, memberships in ((True, change.joins), (False, change.leaves)):
            for membership in sorted(memberships):
                yield self._step(membership, teams[membership[0]], names[membership[1]], joins, actor, at)

    def _step(
        self,
        membership: Membership,
        team: Bound,
        name: str,
        joins: bool,
        actor: str,
        at: Where,
        **more: object,
    ) -> Step:
        detail = {"team": team.name, "member": name, "by": self.service, "group": team.group, **more}
        # As those operations of the API are called that do the same by hand.
        action = "putMember" if joins else "dropMember"
        line = Line(action, actor, team.organization, detail=detail, client=at.client, node=at.node)
        return Step(team, membership[1], joins, line)
