"""The public keys of identity providers: found by OpenID Connect Discovery 1.0, kept, and asked for again when a new one signs.

`outgoing.py` asks. A provider that is away costs nothing while its keys are known.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
import structlog
import trio
from attrs import define, field, frozen

from node.auth.directory import DirectoryUnavailable
from node.auth.outgoing import NoAnswer, Outgoing
from node.hooks.addresses import Network

_log = structlog.get_logger("antipode.access")

_FRESH = 3600.0
_GRACE = 24 * 3600.0
_AGAIN = 30.0
"""Seconds between two questions to one provider: anybody can make up the name of a key."""
_AGAIN_WITHOUT = 3.0
"""The same while none of its keys is known."""
_MOST_KEYS = 100
_ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA",),
    "Ed448": ("EdDSA",),
}
"""What keys of each type or curve can check. Those that also sign, `oct`, are no public keys."""
_LEAST_RSA = 2048
"""Bits."""


@frozen
class Key:
    """A provider's public key, and the algorithms that it may be used with."""

    key: Any = field(repr=False)
    algorithms: tuple[str, ...]


@define
class _Held:
    """What is known of one provider. Times are Trio's."""

    document: Mapping[str, Any] = field(factory=dict)
    keys: Mapping[str | None, Key] = field(factory=dict)
    read_at: float = float("-inf")
    asked_at: float = float("-inf")
    lock: trio.Lock = field(factory=trio.Lock)


@define(eq=False)
class Issuers:
    """Providers that an operator named.

    `authorities`: a PEM file with those that may vouch for them; None: the system's. `places`: where those are found that are
    not found at their own name.
    """

    _allowed: Sequence[Network] = field(alias="allowed")
    _authorities: Path | None = field(alias="authorities")
    _places: Mapping[str, str] = field(alias="places", factory=dict)
    _outgoing: Outgoing = field(init=False)
    _held: dict[str, _Held] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._outgoing = Outgoing(self._allowed, self._authorities)

    async def key(self, issuer: str, name: str | None) -> Key | None:
        """Return the key of this name (`kid`); None: the provider has none such. Raises DirectoryUnavailable.

        `issuer` must be one that an operator named.
        """
        return pick((await self._known(issuer, lambda held: pick(held.keys, name) is None)).keys, name)

    async def metadata(self, issuer: str) -> Mapping[str, Any]:
        """Return what a provider says about itself (Discovery 1.0, 3). Raises DirectoryUnavailable."""
        return (await self._known(issuer, lambda held: not held.document)).document

    async def _known(self, issuer: str, lacks: Callable[[_Held], bool]) -> _Held:
        held = self._held.setdefault(issuer, _Held())
        if self._must_ask(held, lacks):
            async with held.lock:
                # Somebody else may have asked meanwhile.
                if self._must_ask(held, lacks):
                    await self._ask(issuer, held)
        if trio.current_time() - held.read_at >= _GRACE:
            raise DirectoryUnavailable(f"{issuer} cannot be asked")
        return held

    def _must_ask(self, held: _Held, lacks: Callable[[_Held], bool]) -> bool:
        now = trio.current_time()
        if now - held.asked_at < (_AGAIN if held.keys else _AGAIN_WITHOUT):
            return False
        return lacks(held) or now - held.read_at >= _FRESH

    async def _ask(self, issuer: str, held: _Held) -> None:
        held.asked_at = trio.current_time()
        try:
            document, keys = await self._discover(issuer)
        except NoAnswer as error:
            _log.warning("an identity provider cannot be asked", issuer=issuer, reason=str(error)[:300])
            return
        held.document, held.keys, held.read_at = document, keys, held.asked_at

    async def _discover(self, issuer: str) -> tuple[Mapping[str, Any], Mapping[str | None, Key]]:
        place = self._places.get(issuer, issuer)
        document = await self._get(f"{place.rstrip('/')}/.well-known/openid-configuration")
        said = document.get("issuer")
        # Operators leave a slash at the end out, or write one; what tokens have is compared as it is.
        if not isinstance(said, str) or said.rstrip("/") != issuer.rstrip("/"):
            raise NoAnswer("it says to be somebody else")
        where = document.get("jwks_uri")
        if not isinstance(where, str):
            raise NoAnswer("it has no jwks_uri")
        keys = keys_of(await self._get(where))
        if not keys:
            raise NoAnswer("there is no key in its key set that can be used")
        return document, keys

    async def _get(self, url: str) -> Mapping[str, Any]:
        reply = await self._outgoing.ask(url)
        if reply.status != 200:
            raise NoAnswer(f"it answered {reply.status}")
        return reply.document


def pick(keys: Mapping[str | None, Key], name: str | None) -> Key | None:
    """Return the key that a token names; one that names none means the only one there is (OpenID Connect Core, 10.1)."""
    return next(iter(keys.values())) if name is None and len(keys) == 1 else keys.get(name)


def keys_of(document: Mapping[str, Any]) -> Mapping[str | None, Key]:
    """Return the public keys in a key set (RFC 7517) by name; what cannot be used is left out, as the standard wants."""
    given = document.get("keys")
    found: dict[str | None, Key] = {}
    for entry in given[:_MOST_KEYS] if isinstance(given, list) else ():
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        algorithms = _ALGORITHMS.get(str(entry.get("crv", entry.get("kty"))), ())
        if (only := entry.get("alg")) is not None:
            algorithms = tuple(name for name in algorithms if name == only)
        if not algorithms or not isinstance(entry.get("kid"), str | None):
            continue
        try:
            key = jwt.PyJWK(entry, algorithms[0]).key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if getattr(key, "key_size", _LEAST_RSA) >= _LEAST_RSA or "crv" in entry:
            found[entry.get("kid")] = Key(key, algorithms)
    return found
