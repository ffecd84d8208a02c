"""What somebody may do to a repository by their own rights: decided from facts that are remembered for METADATA_STALENESS."""

from collections.abc import Mapping, Sequence

import trio
from attrs import define, field, frozen

from node.auth.changes import ChangeLog
from node.auth.model import Grant, Identity, Standing, actions_of
from node.cache import Cache
from node.records.postgres import Database, DatabaseUnavailable
from node.records.rights import read_standings

_MOST = 50_000
_REFUSED_SECONDS = 0.25
"""How long it is remembered that something is not allowed: a right that has just been given counts almost at once."""


@frozen
class RightsRules:
    """METADATA_STALENESS and METADATA_GRACE in seconds, LIBRARY_NAMESPACE, FEATURE_SUPERUSERS_FULL_ACCESS."""

    staleness: float
    grace: float
    library: str
    full_access: bool


@frozen
class Decided:
    """What somebody may do, and how far the access log was when that was read."""

    grants: Mapping[str, Grant]
    epoch: int


@define(eq=False)
class Rights:
    """The decisions of a node."""

    _database: Database = field(alias="database")
    _rules: RightsRules = field(alias="rules")
    _changes: ChangeLog = field(alias="changes")
    _standings: Cache[tuple[str, str], Standing] = field(factory=lambda: Cache(_MOST), init=False)

    async def of(self, identity: Identity, repositories: Sequence[str], *, anew: bool = False) -> Decided:
        """Return what somebody may do to repositories, in one look-up at most; with `anew` in exactly one.

        Raises DatabaseUnavailable.
        """
        now = trio.current_time()
        found: dict[str, Standing] = {}
        if not anew:
            for name in repositories:
                held = self._held(identity, name, now)
                if held is not None:
                    found[name] = held
        missing = [name for name in repositories if name not in found]
        if missing:
            found |= await self._read(identity, missing, now)
        grants = {name: self._decide(identity, name, found[name]) for name in repositories}
        epochs = [self._changes.known(at.epoch, identity.name, (name,)) for name, at in found.items()]
        return Decided(grants, min(epochs, default=self._changes.number))

    async def in_namespace(self, identity: Identity, namespace: str) -> Standing:
        """Return what somebody is to a namespace: the same to any repository in it, there or not. Raises DatabaseUnavailable."""
        now, name = trio.current_time(), f"{namespace}/any"
        return self._held(identity, name, now) or (await self._read(identity, (name,), now))[name]

    async def _read(self, identity: Identity, names: Sequence[str], now: float) -> Mapping[str, Standing]:
        try:
            read = await read_standings(self._database, identity.name, names, self._rules.library)
        except DatabaseUnavailable:
            seen = {name: self._standings.get((identity.name, name), now - self._rules.grace) for name in names}
            known = {
                name: standing
                for name, standing in seen.items()
                if standing is not None and self._current(identity, name, standing)
            }
            if len(known) < len(names):
                raise
            return known
        for name, standing in read.items():
            self._standings.keep((identity.name, name), standing, now)
        return read

    def _held(self, identity: Identity, name: str, now: float) -> Standing | None:
        standing = self._standings.get((identity.name, name), now - self._rules.staleness)
        if standing is None or not self._current(identity, name, standing):
            return None
        if not self._decide(identity, name, standing).actions or not standing.exists:
            # It may have been given, or made, a moment ago.
            return self._standings.get((identity.name, name), now - min(_REFUSED_SECONDS, self._rules.staleness))
        return standing

    def _current(self, identity: Identity, name: str, standing: Standing) -> bool:
        return self._changes.is_current(standing.epoch, identity.name, (name,))

    def _decide(self, identity: Identity, name: str, standing: Standing) -> Grant:
        rules = self._rules
        return actions_of(identity, name, standing, library=rules.library, full_access=rules.full_access)
