"""People who log in with an identity provider: a login begins, is finished by whoever began it, and gives an application token.

Nothing of a login is kept between its requests: what the next one needs is sealed with the registry's key and goes to whoever began
it, so that any node goes on with what another began. An account is found by the provider's name of itself and its subject for the
person (OpenID Connect Core, 5.7), never by a name that the provider says: names change hands.
"""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
import trio
from attrs import define, field, frozen

from node.auth.directory import DirectoryUnavailable
from node.auth.id_token import Said, Unsaid, describe, email_of, groups_of, name_of
from node.auth.limits import Failures, Limits
from node.auth.linking import CREATED, Where
from node.auth.provider import LoginRefused, Pending, Provider
from node.auth.sealing import Sealed, Sealer
from node.auth.secrets import APPLICATION, hash_secret, new_secret
from node.auth.team_sync import TeamSync
from node.auth.told import Unread
from node.gates import Gate
from node.records.accounts import Account
from node.records.application_tokens import ApplicationToken, create_token
from node.records.federated_logins import create_linked, find_linked
from node.records.postgres import Database
from node.shares import Sources

_log = structlog.get_logger("antipode.access")

_CONTEXT = "login"
_SECONDS = 600.0
"""How long somebody may take in the browser, where the provider does not say."""
_AT_ONCE, _WAITING, _PATIENCE = 8, 64, 20.0
_BEGUN = Limits(account=2**31, address=100)
"""Logins that one address may begin within five minutes: each is a request to the provider."""
_REDIRECT = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost):[1-9][0-9]{0,4}/[a-z]{0,20}")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


@frozen
class Begun:
    """A login that has begun. `handle` is whoever began it's alone; durations in seconds."""

    handle: str = field(repr=False)
    uri: str
    """Where the person logs in."""
    whole_uri: str | None = None
    """The same with the code in it."""
    user_code: str | None = None
    lifetime: float = _SECONDS
    interval: float = 5.0


@frozen
class SignedIn:
    """Somebody who has logged in, and the application token that they have now; `secret` is shown this once."""

    account: Account
    token: ApplicationToken
    secret: str = field(repr=False)


@define(eq=False)
class SignIn:
    """The logins of people with the provider. `clock` in POSIX seconds, `lifetime` of the tokens in seconds."""

    provider: Provider
    _database: Database
    _sealer: Sealer
    _clock: Callable[[], float]
    _lifetime: float
    _reserved: frozenset[str]
    """SUPER_USERS and LIBRARY_NAMESPACE: names that nobody has by a first login."""
    _node: str
    _teams: TeamSync | None = None
    """Whoever logs in joins and leaves teams by what the provider says."""
    _sources: Sources = field(factory=Sources)
    """Who shares the turns: nobody has said yet who they are."""
    _begun: Failures = field(init=False)
    _gate: Gate = field(factory=lambda: Gate("logins", _AT_ONCE, _WAITING, _PATIENCE), init=False)
    """Lets a few ask the provider at once."""

    def __attrs_post_init__(self) -> None:
        self._begun = Failures(trio.current_time, limits=_BEGUN, what="logins begun")

    async def begin_device(self, address: str) -> Begun:
        """Begin a login that is finished in a browser anywhere (RFC 8628).

        Raises LoginRefused, DirectoryUnavailable, RegistryError (429).
        """
        await self._count(address)
        async with self._turn(address):
            device = await self.provider.begin_device()
        handle = self._seal({"device": device.code}, device.lifetime)
        return Begun(handle, device.uri, device.whole_uri, device.user_code, device.lifetime, device.interval)

    async def begin_code(self, redirect: str, challenge: str, state: str, address: str) -> Begun:
        """Begin a login in a browser of this machine, which comes back to `redirect` (RFC 8252) with a code and `state`.

        `challenge` is the S256 one of a verifier that only whoever begins knows (RFC 7636). Raises LoginRefused for what cannot
        be used, DirectoryUnavailable, RegistryError (429).
        """
        if not is_loopback(redirect):
            raise LoginRefused(
                "redirect_uri: write http://127.0.0.1:PORT/callback: codes go to the machine itself only"
            )
        if _CHALLENGE.fullmatch(challenge) is None:
            raise LoginRefused("code_challenge: write the S256 challenge of RFC 7636, 43 characters")
        await self._count(address)
        nonce = secrets.token_urlsafe(24)
        async with self._turn(address):
            uri = await self.provider.authorization(redirect, challenge, state, nonce)
        kept = {"redirect": redirect, "challenge": challenge, "nonce": nonce}
        return Begun(self._seal(kept, _SECONDS), uri)

    async def finish(
        self, handle: str, code: str | None, verifier: str | None, title: str, address: str
    ) -> SignedIn | Pending:
        """Return who has logged in; Pending before they have.

        Raises LoginRefused, DirectoryUnavailable, DatabaseUnavailable, RegistryError (429).
        """
        kept = self._unseal(handle)
        async with self._turn(address):
            match kept:
                case {"device": str(device)}:
                    found = await self.provider.poll(device)
                case {"redirect": str(redirect), "challenge": str(challenge), "nonce": str(nonce)}:
                    if code is None or verifier is None or not proves(verifier, challenge):
                        raise LoginRefused("the code and the code_verifier of this login are needed")
                    found = await self.provider.exchange(code, redirect, verifier, nonce)
                case _:
                    raise LoginRefused("the login is none that this registry has begun")
        if isinstance(found, Pending):
            return found
        return await self._enter(found, title, Where(address, self._node))

    async def _enter(self, said: Said, title: str, at: Where) -> SignedIn:
        settings, claims = self.provider.settings, said.claims
        issuer, subject = await self.provider.issuer(), str(claims["sub"])
        known = await find_linked(self._database, issuer, subject)
        account = known if known is not None else await self._make(claims, issuer, subject, at)
        if not account.enabled:
            raise LoginRefused(f"the account {account.name} is disabled: ask an administrator of the registry")
        await self._follow(account, said, at)
        secret = new_secret(APPLICATION)
        line = at.line("login", account.name, by="oidc", provider=settings.name, first=known is None, title=title)
        token = await create_token(self._database, account.name, title, hash_secret(secret), self._lifetime, line=line)
        if token is None:
            raise LoginRefused(f"the account {account.name} has just gone")
        _log.info("logged in by the identity provider", account=account.name, provider=settings.name)
        return SignedIn(account, token, secret)

    async def _follow(self, account: Account, said: Said, at: Where) -> None:
        """Let somebody be in the teams of their groups; where those are not said, they stay in the teams that they are in."""
        if self._teams is None:
            return
        try:
            groups = groups_of(said, self.provider.settings)
        except Unsaid as error:
            self._teams.counts.unread[Unread.UNSAID] += 1
            _log.warning("nobody says which groups somebody is in", account=account.name, reason=str(error))
            return
        await self._teams.follow(account, await self._teams.standing(account), groups, at)

    async def _make(self, claims: Mapping[str, Any], issuer: str, subject: str, at: Where) -> Account:
        settings, name = self.provider.settings, name_of(claims, self.provider.settings)
        if name is None:
            right = "an account's name has lower-case letters and digits, joined by '.', '_', '__' or '-'"
            raise LoginRefused(f"no account can be made: {describe(claims, settings)}; {right}{_ways('NAME', subject)}")
        if name not in self._reserved:
            line = at.line(CREATED, name, by="oidc", provider=settings.name, issuer=issuer, subject=subject)
            made = await create_linked(self._database, name, email_of(claims, settings), issuer, subject, line)
            if made is not None:
                return made
            # Another node may have made it at this moment.
            found = await find_linked(self._database, issuer, subject)
            if found is not None:
                return found
        _log.warning("a name that the identity provider says is taken", account=name, issuer=issuer, subject=subject)
        raise LoginRefused(f"the name {name} is taken, or its namespace has repositories{_ways(name, subject)}")

    async def _count(self, address: str) -> None:
        self._begun.check("", address)
        await self._begun.note("", address)

    def _turn(self, address: str) -> AbstractAsyncContextManager[None]:
        """Ask the provider within this. Raises RegistryError (429)."""
        return self._gate.enter(self._sources.of(address))

    def _seal(self, kept: Mapping[str, str], lifetime: float) -> str:
        document = {**kept, "ends": self._clock() + lifetime}
        return self._sealer.seal(json.dumps(document).encode(), _CONTEXT)

    def _unseal(self, handle: str) -> Mapping[str, object]:
        try:
            kept = json.loads(self._sealer.unseal(handle, _CONTEXT))
        except (Sealed, ValueError):
            raise LoginRefused("the login is none that this registry has begun") from None
        if self._clock() >= kept["ends"]:
            raise LoginRefused("the login took too long: begin again")
        return {name: value for name, value in kept.items() if name != "ends"}


def is_loopback(redirect: str) -> bool:
    """Tell whether a redirect leads to the very machine of the browser (RFC 8252, 7.3)."""
    return _REDIRECT.fullmatch(redirect) is not None and int(redirect.rpartition(":")[2].partition("/")[0]) < 65536


def proves(verifier: str, challenge: str) -> bool:
    """Tell whether a challenge was made of this verifier (RFC 7636, 4.6)."""
    if _VERIFIER.fullmatch(verifier) is None:
        return False
    made = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    return secrets.compare_digest(made, challenge)


def _ways(name: str, subject: str) -> str:
    return f". An administrator of the registry may link an account: antipode user link {name} '{subject[:255]}'"


__all__ = ["Begun", "DirectoryUnavailable", "LoginRefused", "Pending", "SignIn", "SignedIn"]
