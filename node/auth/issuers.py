"""The public keys of identity providers: found by OpenID Connect Discovery 1.0, kept, and asked for again when a new one signs.

Only https, only to public addresses unless an operator allows others, no redirects, within a deadline and a size. A provider that
is away costs nothing while its keys are known.
"""

import json
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore
import jwt
import structlog
import trio
from attrs import define, field, frozen

from node.auth.directory import DirectoryUnavailable
from node.hooks.addresses import Network, refuse_url
from node.hooks.network import Checked, Refused

_log = structlog.get_logger("antipode.access")

_FRESH = 3600.0
_GRACE = 24 * 3600.0
_AGAIN = 30.0
"""Seconds between two questions to one provider: anybody can make up the name of a key."""
_AGAIN_WITHOUT = 3.0
"""The same while none of its keys is known."""
_SECONDS = 5.0
_MOST = 256 * 1024
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

    keys: Mapping[str | None, Key] = field(factory=dict)
    read_at: float = float("-inf")
    asked_at: float = float("-inf")
    lock: trio.Lock = field(factory=trio.Lock)


@define(eq=False)
class Issuers:
    """The providers that ROBOT_FEDERATION names.

    `authorities`: a PEM file with those that may vouch for them; None: the system's.
    """

    _allowed: Sequence[Network] = field(alias="allowed")
    _authorities: Path | None = field(alias="authorities")
    _held: dict[str, _Held] = field(factory=dict, init=False)

    async def key(self, issuer: str, name: str | None) -> Key | None:
        """Return the key of this name (`kid`); None: the provider has none such. Raises DirectoryUnavailable.

        `issuer` must be one that an operator named.
        """
        held = self._held.setdefault(issuer, _Held())
        if self._must_ask(held, name):
            async with held.lock:
                # Somebody else may have asked meanwhile.
                if self._must_ask(held, name):
                    await self._ask(issuer, held)
        if trio.current_time() - held.read_at >= _GRACE:
            raise DirectoryUnavailable(f"{issuer} cannot be asked")
        return pick(held.keys, name)

    def _must_ask(self, held: _Held, name: str | None) -> bool:
        now = trio.current_time()
        if now - held.asked_at < (_AGAIN if held.keys else _AGAIN_WITHOUT):
            return False
        return pick(held.keys, name) is None or now - held.read_at >= _FRESH

    async def _ask(self, issuer: str, held: _Held) -> None:
        held.asked_at = trio.current_time()
        try:
            with trio.fail_after(_SECONDS):
                keys = await self._discover(issuer)
        except trio.TooSlowError:
            reason = f"no answer within {_SECONDS:g} s"
        except (Refused, ValueError, OSError, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            held.keys, held.read_at = keys, held.asked_at
            return
        _log.warning("an identity provider cannot be asked", issuer=issuer, reason=reason[:300])

    async def _discover(self, issuer: str) -> Mapping[str | None, Key]:
        document = await self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if document.get("issuer") != issuer:
            raise Refused("it says to be somebody else")
        place = document.get("jwks_uri")
        if not isinstance(place, str) or urlsplit(place).scheme != "https":
            raise Refused("its jwks_uri is no https URL")
        keys = keys_of(await self._get(place))
        if not keys:
            raise Refused("there is no key in its key set that can be used")
        return keys

    async def _get(self, url: str) -> Mapping[str, Any]:
        """Return the JSON object at a URL. Raises Refused, ValueError, OSError and what httpcore does."""
        if (reason := refuse_url(url, self._allowed)) is not None:
            raise Refused(reason)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(cafile=self._authorities),
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=Checked(self._allowed),
        )
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), _SECONDS)
        headers = [("accept", "application/json"), ("connection", "close")]
        body = b""
        async with pool, pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as answer:
            if answer.status != 200:
                raise Refused(f"it answered {answer.status}")
            async for data in answer.aiter_stream():
                body += data
                if len(body) > _MOST:
                    raise Refused(f"its answer is longer than {_MOST} bytes")
        document = json.loads(body)
        if not isinstance(document, dict):
            raise Refused("its answer is no JSON object")
        return document


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
