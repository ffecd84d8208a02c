"""Registry tokens: signed statements about who somebody is and what they may do, which any node can check by itself.

EdDSA and nothing else, so that no token chooses how it is checked. Tokens for requests and tokens that only buy other tokens
(`refresh`) differ in their audience, and neither passes for the other. Sources: RFC 7519, RFC 8725; the Docker Registry v2 token
specification for the `access` claim.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from uuid import UUID, uuid4

import jwt
from attrs import define, field, frozen

from node.auth.keyring import Keyring
from node.auth.model import Grant, Identity, Kind
from node.auth.scopes import read_access, write_access
from node.cache import Cache

ALGORITHM = "EdDSA"
LEEWAY = 30.0
"""Seconds by which clocks may differ."""
_MOST_BYTES = 4 << 20
"""Of verified tokens in memory, about."""
_REFRESH = "/v2/auth"


class BadToken(Exception):
    """A token that proves nothing. The text is for the client and repeats nothing of the token."""


@frozen
class Renewal:
    """What a refresh token says: whose it is, and what it was given for. Good while the account's secret is the same."""

    account: str
    generation: int
    token: UUID | None
    """The application token that was shown."""
    id: int | None = None
    """The account's: its name may have become somebody else's. None: the token is of an earlier release."""
    issued: float = field(default=0.0, eq=False)
    """POSIX seconds."""


@frozen
class _Verified:
    identity: Identity
    ends: float
    key: str
    """The id of the key that signed it: a token ends with that, too."""
    size: int


@define(eq=False)
class Tokens:
    """Issues and checks tokens for the registry `service` (SERVER_HOSTNAME). `clock` in POSIX seconds."""

    _keyring: Keyring = field(alias="keyring")
    _service: str = field(alias="service")
    _clock: Callable[[], float] = field(alias="clock")
    _verified: Cache[bytes, _Verified] = field(
        factory=lambda: Cache(_MOST_BYTES, weigh=lambda held: held.size), init=False
    )

    def issue(
        self, identity: Identity, grants: Mapping[str, Grant], epoch: int, lifetime: float, *, catalog: bool
    ) -> str:
        """Return a token for requests. Raises BadToken when this node has no key that signs."""
        kind = None if identity.kind is None else identity.kind.value
        claims = {"access": write_access(grants, catalog=catalog), "kind": kind, "epoch": epoch}
        return self._sign(identity.name, self._service, lifetime, claims)

    def issue_refresh(self, renewal: Renewal, lifetime: float) -> str:
        """Return a token that buys others. Raises BadToken when this node has no key that signs."""
        token = None if renewal.token is None else str(renewal.token)
        claims = {"generation": renewal.generation, "token": token, "id": renewal.id}
        return self._sign(renewal.account, self._service + _REFRESH, lifetime, claims)

    async def verify(self, token: str) -> Identity:
        """Return whose token this is and what it grants. Raises BadToken. A token that was seen before costs a look-up."""
        key = sha256(token.encode()).digest()
        held = self._verified.get(key)
        now = self._clock()
        if held is None:
            claims = await self._read(token, self._service)
            signed_by = str(jwt.get_unverified_header(token)["kid"])
            held = _Verified(_identity(claims), _seconds(claims["exp"]), signed_by, 500 + len(token))
            self._verified.keep(key, held, 0.0)
        elif not self._keyring.has(held.key):
            raise BadToken("the token is not signed by this registry")
        if now >= held.ends + LEEWAY:
            raise BadToken("the token has expired")
        return held.identity

    def verify_at_once(self, token: str) -> Identity | None:
        """Return what `verify` does for a token that was seen before and is good; None: `verify` tells."""
        held = self._verified.get(sha256(token.encode()).digest())
        if held is None or not self._keyring.has(held.key) or self._clock() >= held.ends + LEEWAY:
            return None
        return held.identity

    async def verify_refresh(self, token: str) -> Renewal:
        """Return what a refresh token says. Raises BadToken."""
        claims = await self._read(token, self._service + _REFRESH)
        match {"id": None, **claims}:
            case {
                "sub": str(account),
                "generation": int(generation),
                "token": str() | None as given,
                "id": int() | None as number,
            }:
                with suppress(ValueError):
                    shown = None if given is None else UUID(given)
                    return Renewal(account, generation, shown, number, _seconds(claims["iat"]))
        raise BadToken("not a refresh token of this registry")

    def _sign(self, subject: str, audience: str, lifetime: float, claims: Mapping[str, object]) -> str:
        signing = self._keyring.signing()
        if signing is None:
            raise BadToken("this node has no signing key")
        key_id, key = signing
        now = int(self._clock())
        standard = {"iss": self._service, "sub": subject, "aud": audience, "iat": now, "exp": now + int(lifetime)}
        return jwt.encode({**standard, "jti": uuid4().hex, **claims}, key, algorithm=ALGORITHM, headers={"kid": key_id})

    async def _read(self, token: str, audience: str) -> Mapping[str, object]:
        """Return the claims of a token of ours. Raises BadToken."""
        try:
            header = jwt.get_unverified_header(token)
            key = await self._keyring.public(str(header.get("kid", "")))
            if key is None:
                raise BadToken("the token is not signed by this registry")
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=audience,
                issuer=self._service,
                # Our own clock tells the time, which tests set; its rules are those of `_in_time`.
                options={"require": ["exp", "iat", "sub", "aud", "iss"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.PyJWTError as error:
            raise BadToken(f"the token is not good: {type(error).__name__}") from None
        self._in_time(claims)
        return claims

    def _in_time(self, claims: Mapping[str, object]) -> None:
        issued, ends, now = _seconds(claims["iat"]), _seconds(claims["exp"]), self._clock()
        if now >= ends + LEEWAY:
            raise BadToken("the token has expired")
        if issued > now + LEEWAY:
            raise BadToken("the token was issued in the future")


def _seconds(claim: object) -> float:
    if isinstance(claim, int | float):
        return float(claim)
    raise BadToken("the token's times are not numbers")


def _identity(claims: Mapping[str, object]) -> Identity:
    match claims:
        case {"sub": str(name), "kind": str() | None as kind, "epoch": int(epoch), "access": list(access)}:
            # A token of a later release may say what this one does not know.
            with suppress(ValueError, TypeError):
                grants, catalog = read_access(access)
                of = None if kind is None else Kind(kind)
                until = _seconds(claims["exp"]) + LEEWAY
                return Identity(name, of, grants=grants, catalog=catalog, epoch=epoch, until=until)
    raise BadToken("not a token of this registry")
