"""The gate that every request passes: who asks, and whether they may.

A registry token says both by itself, and is checked without the database. Everybody else is looked up, and remembered for
METADATA_STALENESS.
"""

from collections.abc import Callable, Sequence
from functools import partial

import structlog
import trio
from attrs import define, evolve, field

from node.auth.challenge import INSUFFICIENT, INVALID, basic, bearer, not_proven, unauthorized
from node.auth.changes import ACCESS_CHANGED, KEYS_CHANGED
from node.auth.credentials import NotProven, Proven
from node.auth.directory_teams import DirectoryTeams
from node.auth.header import Basic, Bearer, Malformed, read_authorization
from node.auth.held import Held
from node.auth.login_teams import LoginTeams
from node.auth.model import ANONYMOUS, ANYBODY, Action, Grant, Identity, Kind, owns
from node.auth.parts import Parts, make_parts
from node.auth.passwords import Passwords
from node.auth.scopes import Need
from node.auth.secrets import APPLICATION
from node.auth.team_counts import TeamCounts
from node.auth.tokens import LEEWAY, BadToken
from node.config.settings import Settings
from node.errors import DENIED, RegistryError
from node.records.permissions import create_repository, unmake_repository
from node.records.postgres import Database
from node.records.rights import read_changes
from replication.ports import Forget, Hint, LedgerUnavailable, Publish

_log = structlog.get_logger("antipode.access")

_KEYS_EVERY = 30.0
_LEAST_PAUSE = 0.25
_PAST = 3600.0
"""Seconds of the access log that a starting node reads beyond the longest life of a token."""

EVERYTHING = Grant(frozenset(Action))


@define(eq=False)
class Access:
    """What handlers ask. One per process; `run` keeps it up to date."""

    _settings: Settings = field(alias="settings")
    _database: Database = field(alias="database")
    passwords: Passwords = field(factory=Passwords, init=False)
    """Whoever hashes a password does it here: the memory of a node is bounded for all of them together."""
    parts: Parts | None = field(init=False)
    """None: the registry is open (FEATURE_OPEN_REGISTRY)."""
    _clock: Callable[[], float] = field(alias="clock")
    _publish: Publish = field(alias="publish")
    """Tells all nodes what has changed."""
    _node: str = field(alias="node", default="")
    """This process's id, as lines of the audit log have it."""
    _nudged: trio.Event = field(factory=trio.Event, init=False)
    _keys_nudged: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        if self._settings.open_registry:
            self.parts = None
        else:
            self.parts = make_parts(
                self._settings, self._database, self._clock, self.passwords, self._node, self._publish
            )

    async def identify(self, authorization: str | None, client: str, needs: Sequence[Need] | None = None) -> Identity:
        """Return who sent a request with this Authorization header from this address.

        Raises RegistryError: UNAUTHORIZED for credentials that are not good, TOOMANYREQUESTS after too many of them. The challenge
        of a 401 asks for a token that meets `needs`; None: for a name and a password, as the API takes them.
        """
        parts = self.parts
        if parts is None:
            return ANYBODY
        if authorization is None:
            return ANONYMOUS
        try:
            given = read_authorization(authorization)
            if isinstance(given, Basic):
                return self._of(await parts.credentials.check(given.name, given.password, client))
            return await self._bearer(given, client, needs)
        except Malformed as error:
            raise unauthorized(self.challenge(needs), str(error)) from None
        except NotProven:
            raise not_proven(self.challenge(needs), self._settings) from None
        except BadToken as error:
            raise unauthorized(self.challenge(needs, INVALID), str(error)) from None

    def puller_at_once(self, authorization: str | None, repository: str) -> Identity | None:
        """Return who sent a request with this Authorization header and may pull, where that can be told without waiting.

        None: `identify` and `admit` tell.
        """
        parts = self.parts
        if parts is None:
            return ANYBODY
        if authorization is None:
            return None
        try:
            given = read_authorization(authorization)
        except Malformed:
            return None
        identity = parts.tokens.verify_at_once(given.token) if isinstance(given, Bearer) else None
        if identity is None or identity.grants is None:
            return None
        grant = identity.grants.get(repository)
        may = grant is not None and Action.PULL in grant.actions
        return identity if may and parts.changes.is_current(identity.epoch, identity.name, (repository,)) else None

    async def _bearer(self, given: Bearer, client: str, needs: Sequence[Need] | None) -> Identity:
        assert self.parts is not None
        if given.token.startswith(APPLICATION):
            return self._of(await self.parts.credentials.check("$app", given.token, client))
        identity = await self.parts.tokens.verify(given.token)
        names = tuple(need.repository for need in needs or ())
        self.check_current(identity, names)
        return identity

    def _of(self, proven: Proven) -> Identity:
        """Return who has proven who they are, for one request, which may take as long as a token would be good."""
        longest = self._clock() + self._settings.token_lifetime
        until = longest if proven.ends is None else min(proven.ends, longest)
        return evolve(proven.identity, epoch=proven.epoch, until=until)

    def check_current(self, identity: Identity, repositories: Sequence[str]) -> None:
        """Return if nothing took rights of this token's away since it was issued. Raises BadToken."""
        assert self.parts is not None
        if not self.parts.changes.is_current(identity.epoch, identity.name, repositories):
            raise BadToken("rights have changed since the token was issued")

    def challenge(self, needs: Sequence[Need] | None, error: str = "") -> tuple[tuple[str, str], ...]:
        """Return the header of a 401; see `identify`."""
        settings = self._settings
        if needs is None:
            return basic(settings.server_hostname)
        return bearer(settings.scheme, settings.server_hostname, needs, error)

    async def grant(self, identity: Identity, repository: str) -> Grant:
        """Return what somebody may do to a repository, which need not exist. Raises DatabaseUnavailable."""
        if identity.everything:
            return EVERYTHING
        if identity.grants is not None:
            return identity.grants.get(repository, Grant())
        if identity.anonymous and not self._settings.anonymous_access:
            return Grant()
        assert self.parts is not None
        return (await self.parts.rights.of(identity, (repository,))).grants[repository]

    async def may(self, identity: Identity, action: Action, repository: str) -> bool:
        """Tell whether somebody may do this to a repository, which need not exist. Raises DatabaseUnavailable."""
        return action in (await self.grant(identity, repository)).actions

    def reader(self, identity: Identity) -> str | None:
        """Return whose rights decide which repositories somebody may see: an account's name, or None for all repositories."""
        whole = identity.superuser and self._settings.superusers_full_access
        return None if identity.everything or whole else identity.name

    async def require(self, identity: Identity, action: Action, repository: str) -> None:
        """Return if somebody may do this to a repository. Raises RegistryError: UNAUTHORIZED for nobody, else DENIED."""
        if identity.grants is not None:
            try:
                self.check_current(identity, (repository,))
            except BadToken as error:
                raise unauthorized(self.challenge(None), str(error)) from None
        if not await self.may(identity, action, repository):
            raise self._refusal(identity, {"name": repository, "action": action.value})

    async def require_namespace(self, identity: Identity, namespace: str) -> None:
        """Return if somebody may do everything in a namespace: its user, its organisation's admins. Raises RegistryError."""
        if identity.everything:
            return
        if identity.grants is None:
            assert self.parts is not None
            standing = await self.parts.rights.in_namespace(identity, namespace)
            full = self._settings.superusers_full_access
            if owns(identity, namespace, standing, full_access=full) or identity.superuser:
                return
        raise self._refusal(identity, {"namespace": namespace})

    def require_superuser(self, identity: Identity) -> None:
        """Return if somebody is a superuser. Raises RegistryError."""
        if not identity.superuser:
            raise self._refusal(identity, {"reason": "only superusers may"})

    def require_somebody(self, identity: Identity) -> None:
        """Return if somebody has proven who they are. Raises RegistryError (401)."""
        if identity.anonymous and not identity.everything:
            raise self._refusal(identity, None)

    def require_user(self, identity: Identity) -> None:
        """Return if somebody is a user, by their own rights: no robot, and no registry token. Raises RegistryError."""
        if not identity.everything and (identity.kind is not Kind.USER or identity.grants is not None):
            raise self._refusal(identity, {"reason": "only users may"})

    def _refusal(self, identity: Identity, detail: object) -> RegistryError:
        if identity.anonymous:
            return unauthorized(self.challenge(None), "log in first")
        return RegistryError(DENIED, detail)

    async def admit(self, identity: Identity, need: Need) -> Held | None:
        """Return by which rights somebody may do what a request of the registry needs; None where everybody may do anything.

        Raises RegistryError with the challenge that gets a client the right token, where a token may help; DENIED where not.
        """
        if identity.everything:
            return None
        assert self.parts is not None
        changes, name = self.parts.changes, need.repository
        if identity.grants is not None:
            grant = identity.grants.get(name, Grant())
            epoch = changes.known(identity.epoch, identity.name, (name,))
        elif identity.anonymous and not self._settings.anonymous_access:
            raise self.refuse(identity, (need,))
        else:
            decided = await self.parts.rights.of(identity, (name,))
            grant = decided.grants[name]
            epoch = min(decided.epoch, changes.known(identity.epoch, identity.name, ()))
        # The last is what the request does; the others are what clients ask for with it.
        if need.actions[-1] not in grant.actions:
            raise self.refuse(identity, (need,))
        return Held(identity.name, epoch, identity.until)

    def is_current(self, identity: Identity, repository: str) -> bool:
        """Tell whether what somebody's token says of a repository still holds; without a token it is looked up anyway."""
        if identity.grants is None:
            return True
        assert self.parts is not None
        return self.parts.changes.is_current(identity.epoch, identity.name, (repository,))

    def holds(self, held: Held, repository: str) -> bool:
        """Tell whether nothing took the rights away, as far as this node has heard, by which a request was admitted."""
        return self.parts is None or self.parts.changes.is_current(held.epoch, held.account, (repository,))

    def lapsed(self, *needs: Need) -> RegistryError:
        """Return the answer to a request whose rights were taken away, or whose token ran out, before it was done."""
        reason = "rights have changed, or what proved them has ended, since they were given"
        return unauthorized(self.challenge(needs, INVALID), reason)

    def refuse(self, identity: Identity, needs: Sequence[Need]) -> RegistryError:
        """Return the answer to a request that needs more than its sender may do."""
        if identity.anonymous or identity.grants is not None:
            error = INSUFFICIENT if identity.grants is not None else ""
            return unauthorized(self.challenge(needs, error), "a token for this is needed")
        return RegistryError(DENIED, {"name": needs[0].repository} if needs else None)

    async def make(self, identity: Identity, need: Need) -> bool:
        """Make a repository for somebody who may by a grant that `creates`; return whether it was not there.

        Raises RegistryError where it is there by now, and they may not do to it what they need.
        """
        assert self.parts is not None
        settings = self._settings
        made = await create_repository(
            self._database,
            need.repository,
            settings.library_namespace,
            identity.name,
            public=not settings.private_on_push,
            for_push=True,
        )
        may = Action.PUSH in (await self._own_grant(identity, need)).actions
        if not made and not may:
            raise self.refuse(identity, (need,))
        return made

    async def unmake(self, identity: Identity, need: Need) -> None:
        """Delete a repository that was made for a push which was then refused, unless somebody has used it meanwhile."""
        if await unmake_repository(self._database, need.repository):
            await self._own_grant(identity, need)

    async def _own_grant(self, identity: Identity, need: Need) -> Grant:
        """Return what somebody may do to a repository by their own rights, read anew."""
        assert self.parts is not None
        own = Identity(identity.name, identity.kind, identity.superuser)
        decided = await self.parts.rights.of(own, (need.repository,), anew=True)
        return decided.grants[need.repository]

    def teams(self) -> DirectoryTeams | None:
        """Return the teams that follow the directory's groups, where they do."""
        return None if self.parts is None else self.parts.teams

    def login_teams(self) -> LoginTeams | None:
        """Return what lets people leave their teams whose login is too long ago, where that is so."""
        return None if self.parts is None else self.parts.login_teams

    def team_counts(self) -> TeamCounts | None:
        """Return what was counted of teams that follow groups, where they do."""
        return None if self.parts is None or self.parts.synced is None else self.parts.synced.counts

    def heard(self, hint: Hint) -> None:
        """Take in that something may have changed; read it soon."""
        if hint in (ACCESS_CHANGED, Forget()):
            self._nudged.set()
        if hint == KEYS_CHANGED:
            self._keys_nudged.set()

    async def open(self) -> None:
        """Read what requests need before the first one comes. Raises DatabaseUnavailable."""
        if self.parts is not None:
            await self.parts.keyring.refresh()
            await self._read_changes(self.parts, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the signing keys and the access log up to date for ever."""
        task_status.started()
        pause = max(_LEAST_PAUSE, self._settings.metadata_staleness / 2)
        async with trio.open_nursery() as nursery:
            if self.parts is not None:
                nursery.start_soon(partial(self._keep_changes, self.parts, pause))
                nursery.start_soon(partial(self._keep_keys, self.parts))
            else:
                nursery.start_soon(trio.sleep_forever)

    async def _keep_changes(self, parts: Parts, pause: float) -> None:
        while True:
            with trio.move_on_after(pause):
                await self._nudged.wait()
            self._nudged = trio.Event()
            try:
                await self._read_changes(parts, parts.changes.number)
            except LedgerUnavailable as error:
                _log.debug("the access log cannot be read", reason=str(error))
                await trio.sleep(_LEAST_PAUSE)

    async def _read_changes(self, parts: Parts, after: int | None) -> None:
        parts.changes.take(await read_changes(self._database, after, self._settings.token_lifetime + LEEWAY + _PAST))

    async def _keep_keys(self, parts: Parts) -> None:
        while True:
            with trio.move_on_after(_KEYS_EVERY):
                await self._keys_nudged.wait()
            self._keys_nudged = trio.Event()
            try:
                await parts.keyring.refresh()
            except LedgerUnavailable as error:
                _log.info("the signing keys cannot be read", reason=str(error))
                await trio.sleep(_LEAST_PAUSE)
