"""Names and secrets: proven against the database, remembered for a while, also while the database is away.

What was proven is kept under a hash that this process alone can make, with the account as it was. Within METADATA_STALENESS it
counts at once, later the account is read again, which costs no slow hash while its secret is the same; while the database is away
it counts for METADATA_GRACE.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable
from uuid import UUID

import trio
from attrs import define, evolve, field, frozen

from node.alike import Alike
from node.auth.changes import ChangeLog
from node.auth.directory import Directory
from node.auth.directory_teams import DirectoryTeams
from node.auth.federation import Federation, looks_like_token
from node.auth.limits import Failures
from node.auth.linking import Where, belongs, link
from node.auth.model import Identity, Kind
from node.auth.passwords import Passwords
from node.auth.secrets import APPLICATION, hash_secret
from node.auth.tokens import Renewal
from node.cache import Cache
from node.records.accounts import upgrade_secret
from node.records.logins import Login, find_by_name, find_by_token, find_renewal
from node.records.postgres import Database, DatabaseUnavailable

APPLICATION_NAME = "$app"
"""Whoever shows an application token need not say whose it is (Quay's name for that)."""
_MOST = 20_000
_FAILURE_SECONDS = 0.5
"""How long a failed login takes at least, whatever was wrong: an unknown name, an old hash, a password."""


class NotProven(Exception):
    """Nobody of that name and secret may log in; why is not for the client."""


@frozen
class Rules:
    """What `Credentials` is told. Seconds; `superusers` is SUPER_USERS."""

    staleness: float
    grace: float
    superusers: frozenset[str] = frozenset()


@frozen
class Proven:
    """Somebody who has proven who they are. `epoch`: how far the access log was then; `ends`: when what they showed ends."""

    identity: Identity
    account: int
    generation: int
    epoch: int
    token: UUID | None = None
    ends: float | None = None
    secret: str | None = field(default=None, repr=False)
    """The hash that was right."""
    renewable: bool = True
    """Whether a refresh token may stand for it: the registry hears of the end of what proved it."""


@define(eq=False)
class Credentials:
    """The logins of a node. `clock` in POSIX seconds."""

    _database: Database = field(alias="database")
    _rules: Rules = field(alias="rules")
    _changes: ChangeLog = field(alias="changes")
    _failures: Failures = field(alias="failures")
    _clock: Callable[[], float] = field(alias="clock")
    _passwords: Passwords = field(alias="passwords")
    _directory: Directory | None = field(alias="directory", default=None)
    """Proves those who have no password in the database."""
    _federation: Federation | None = field(alias="federation", default=None)
    """Proves robots that show somebody else's token."""
    _teams: DirectoryTeams | None = field(alias="teams", default=None)
    """Whoever the directory proves joins and leaves teams by what it says."""
    _node: str = field(alias="node", default="")
    """This process's id, as lines of the audit log have it."""
    _pepper: bytes = field(factory=lambda: secrets.token_bytes(32), init=False)
    _known: Cache[bytes, Proven] = field(factory=lambda: Cache(_MOST), init=False)
    _alike: "Alike[Proven | None]" = field(factory=Alike, init=False)

    def now(self) -> float:
        """Return the time in POSIX seconds."""
        return self._clock()

    async def check(self, name: str, secret: str, address: str) -> Proven:
        """Return who has this name and secret.

        Raises NotProven, RegistryError (429), DatabaseUnavailable, DirectoryUnavailable.
        """
        if self._directory is not None:
            # To a directory alice and Alice are the same, so to the limit of failures, too.
            name = name.lower()
        key = self._key(name, secret)
        asked_at = trio.current_time()
        known = self._remembered(key, asked_at - self._rules.staleness)
        if known is not None:
            return known
        seen = self._remembered(key, asked_at - self._rules.grace)
        limited = can_be_guessed(name, secret)
        if limited and seen is None:
            self._failures.check(name, address)
        began = trio.current_time()
        # A fleet comes at once with one name and secret, when its node has just started: that takes a hash or two, not one each.
        proven = await self._away(seen, lambda: self._alike.get(key, lambda: self._prove(name, secret, seen, address)))
        if limited and seen is None:
            # Many may have come at once. Who finds others' failures to be enough learns no more than who comes later.
            self._failures.check(name, address)
        if proven is None:
            if seen is not None:
                # Once refused, it does not count while the database is away, either.
                self._known.keep(key, evolve(seen, ends=0.0), asked_at)
            if limited:
                await self._failures.note(name, address)
            await trio.sleep_until(began + _FAILURE_SECONDS)
            raise NotProven
        self._known.keep(key, proven, asked_at)
        return proven

    async def renew(self, renewal: Renewal, refresh_token: str) -> Proven:
        """Return whose refresh token this is, if it is still good. Raises NotProven, DatabaseUnavailable."""
        key = self._key("", refresh_token)
        asked_at = trio.current_time()
        known = self._remembered(key, asked_at - self._rules.staleness)
        if known is not None:
            return known

        async def ask() -> Proven | None:
            login = await find_renewal(
                self._database, renewal.account, renewal.generation, renewal.token, renewal.id, renewal.issued
            )
            return None if login is None else self._proven(login)

        proven = await self._away(self._remembered(key, asked_at - self._rules.grace), ask)
        if proven is None:
            raise NotProven
        self._known.keep(key, proven, asked_at)
        return proven

    async def _away(self, seen: Proven | None, ask: Callable[[], Awaitable[Proven | None]]) -> Proven | None:
        """Ask; where the database is away return what was seen."""
        try:
            return await ask()
        except DatabaseUnavailable:
            if seen is None:
                raise
            return seen

    async def _prove(self, name: str, secret: str, seen: Proven | None, address: str) -> Proven | None:
        if secret.startswith(APPLICATION):
            login = await find_by_token(self._database, hash_secret(secret))
            good = login is not None and name in (APPLICATION_NAME, login.account.name)
            return self._proven(login) if login is not None and good else None
        # A name that no account can have need not be looked for; everything else about it is the same.
        # PostgreSQL takes no NUL.
        possible = 0 < len(name) <= 255 and name.isprintable()
        login = await find_by_name(self._database, name) if possible else None
        stored = None if login is None else login.account.secret
        if login is not None and seen is not None and seen.renewable and stored is not None and seen.secret == stored:
            return self._proven(login)
        if "+" in name:
            if self._federation is not None and looks_like_token(secret):
                return await self._ask_issuer(self._federation, name, login, secret)
            right = stored is not None and hmac.compare_digest(stored, hash_secret(secret))
            return self._proven(login) if login is not None and right else None
        if possible and self._directory is not None and belongs(self._directory, name, login):
            return await self._ask(self._directory, name, secret, login, Where(address, self._node))
        verdict = await self._passwords.verify(secret, stored)
        if not verdict.right or login is None or stored is None:
            return None
        if verdict.better is not None:
            await upgrade_secret(self._database, login.account.id, stored, verdict.better)
        return self._proven(login)

    async def _ask(
        self, directory: Directory, name: str, password: str, login: Login | None, at: Where
    ) -> Proven | None:
        person = await directory.prove(name, password)
        if login is not None and not login.account.enabled:
            # Only now: nobody shall see by the time that it takes whose account is disabled.
            return None
        linked = None if person is None else await link(self._database, directory, name, login, person, at)
        proven = None if linked is None else self._proven(linked)
        if person is None or linked is None or proven is None:
            return None
        if self._teams is not None and not person.remembered:
            await self._teams.at_login(linked.account, at)
        superuser = proven.identity.superuser or person.superuser
        return evolve(proven, identity=evolve(proven.identity, superuser=superuser), renewable=False)

    async def _ask_issuer(self, federation: Federation, name: str, login: Login | None, token: str) -> Proven | None:
        # Whether or not there is such a robot, and whether it is enabled, a token costs the same.
        ends = await federation.prove(name, token)
        proven = None if login is None else self._proven(login)
        return None if proven is None or ends is None else evolve(proven, ends=ends, renewable=False)

    def _proven(self, login: Login) -> Proven | None:
        account = login.account
        if not account.enabled or account.kind is Kind.ORGANIZATION:
            return None
        superuser = account.kind is Kind.USER and (account.superuser or account.name in self._rules.superusers)
        identity = Identity(account.name, account.kind, superuser)
        return Proven(identity, account.id, account.generation, login.epoch, login.token, login.ends, account.secret)

    def _remembered(self, key: bytes, oldest: float) -> Proven | None:
        proven = self._known.get(key, oldest)
        if proven is None or not self._changes.is_current(proven.epoch, proven.identity.name, ()):
            return None
        return None if proven.ends is not None and self._clock() >= proven.ends else proven

    def _key(self, name: str, secret: str) -> bytes:
        return hmac.digest(self._pepper, f"{name}\0{secret}".encode(), "sha256")


def can_be_guessed(name: str, secret: str) -> bool:
    """Tell whether what is shown may be a password. Application tokens and robots' secrets are random, and long.

    Failures with those must hold nobody off, neither the account, whose name is all that is needed, nor the address: one robot with
    an old secret fails as often as it is started, and would keep out all that have the same way out. Pure.
    """
    return not secret.startswith(APPLICATION) and "+" not in name
