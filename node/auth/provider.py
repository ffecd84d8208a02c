"""The provider of AUTHENTICATION_TYPE: OIDC, and this registry as its client: the registry itself gets the ID token and checks it.

Sources: OpenID Connect Core 1.0 and Discovery 1.0; RFC 6749 (2.3.1, 4.1.3); RFC 7636 (PKCE); RFC 8628 (device authorisation).
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import jwt
import structlog
from attrs import define, field, frozen

from node.answers import Headers
from node.auth.directory import DirectoryUnavailable
from node.auth.federation import ALGORITHMS
from node.auth.id_token import Said, joined, refuse, wants_more
from node.auth.issuers import Issuers
from node.auth.outgoing import ANYWHERE, NoAnswer, Outgoing
from node.config.settings import OidcSettings, Settings

_log = structlog.get_logger("antipode.access")

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_WAITING = frozenset({"authorization_pending", "slow_down"})
_REFUSED = frozenset({"invalid_grant", "access_denied", "expired_token", "invalid_request"})
"""What a login itself is refused for, that took too long, was denied, or was finished before."""
_MOST_TOKEN = 16 * 1024
_MOST_SECONDS = 3600.0
"""A device code that is good for longer counts as one that is good for so long."""
_INTERVAL = 5.0


class LoginRefused(Exception):
    """The provider did not prove anybody; the text says why, and is for whoever logs in."""


@frozen
class Pending:
    """Nobody has logged in yet. `slower`: whoever asks should do so less often (RFC 8628, 3.5)."""

    slower: bool = False


@frozen
class Device:
    """What a provider says about a login that somebody finishes in a browser elsewhere. Durations in seconds."""

    code: str = field(repr=False)
    user_code: str
    uri: str
    whole_uri: str | None
    lifetime: float
    interval: float


@define(eq=False)
class Provider:
    """The provider. `clock` in POSIX seconds. Whatever asks it raises DirectoryUnavailable while it cannot be asked."""

    settings: OidcSettings
    _issuers: Issuers
    _outgoing: Outgoing
    _clock: Callable[[], float]

    async def has_devices(self) -> bool:
        """Tell whether somebody may log in with a browser on another machine."""
        return isinstance((await self._metadata()).get("device_authorization_endpoint"), str)

    async def begin_device(self) -> Device:
        """Begin a login that is finished in a browser anywhere. Raises LoginRefused."""
        place = await self._endpoint("device_authorization_endpoint")
        document = await self._post(place, {"scope": " ".join(self.settings.scopes)})
        device = read_device(document)
        if device is None:
            raise DirectoryUnavailable("its answer to a device authorisation request cannot be used")
        return device

    async def authorization(self, redirect: str, challenge: str, state: str, nonce: str) -> str:
        """Return the URL where somebody logs in, and that leads the browser back to `redirect`."""
        place = await self._endpoint("authorization_endpoint")
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": redirect,
            "scope": " ".join(self.settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{place}{'&' if urlsplit(place).query else '?'}{urlencode(asked)}"

    async def poll(self, device_code: str) -> Pending | Said:
        """Return what is said of who has logged in; Pending before. Raises LoginRefused."""
        form = {"grant_type": DEVICE_GRANT, "device_code": device_code}
        document = await self._post(await self._endpoint("token_endpoint"), form)
        if document.get("error") in _WAITING:
            return Pending(document["error"] == "slow_down")
        return await self._claims(document, None)

    async def exchange(self, code: str, redirect: str, verifier: str, nonce: str) -> Said:
        """Return what is said of who has logged in and came back with this code. Raises LoginRefused."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect,
            "code_verifier": verifier,
        }
        return await self._claims(await self._post(await self._endpoint("token_endpoint"), form), nonce)

    async def issuer(self) -> str:
        """Return the provider's name of itself, as its tokens have it."""
        return str((await self._metadata())["issuer"])

    async def _metadata(self) -> Mapping[str, Any]:
        return await self._issuers.metadata(self.settings.issuer)

    async def _endpoint(self, name: str) -> str:
        place = (await self._metadata()).get(name)
        if not isinstance(place, str) or urlsplit(place).scheme != "https":
            raise DirectoryUnavailable(f"{self.settings.issuer} has no {name} that is an https URL")
        return place

    async def _post(self, place: str, form: Mapping[str, str]) -> Mapping[str, Any]:
        """Return what the provider answers to this client; an error that says that nobody is waiting is an answer, too."""
        settings = self.settings
        headers: Headers = ()
        sent = {**form, "client_id": settings.client_id}
        if settings.client_secret is not None:
            methods = (await self._metadata()).get("token_endpoint_auth_methods_supported")
            if isinstance(methods, list) and "client_secret_post" in methods:
                sent["client_secret"] = settings.client_secret
            else:
                headers = basic(settings.client_id, settings.client_secret)
        document, status = await self._ask(place, sent, headers)
        error = document.get("error")
        if status == 200 or error in _WAITING:
            return document
        said = document.get("error_description")
        text = f"{settings.service_name} says {error}" + (f": {said}" if isinstance(said, str) else "")
        if error in _REFUSED:
            raise LoginRefused(text[:300])
        # What is left is for the operator: a client that is not registered, a grant that it may not use.
        _log.warning("the identity provider refused this registry", provider=settings.issuer, reason=text[:300])
        raise DirectoryUnavailable(text[:300])

    async def _ask(self, place: str, form: Mapping[str, str] | None, headers: Headers) -> tuple[Mapping[str, Any], int]:
        try:
            reply = await self._outgoing.ask(place, form, headers)
        except NoAnswer as error:
            _log.warning("the identity provider cannot be asked", place=place[:300], reason=str(error)[:300])
            raise DirectoryUnavailable(f"{self.settings.issuer}: {error}") from error
        if reply.status != 200 and not isinstance(reply.document.get("error"), str):
            raise DirectoryUnavailable(f"{self.settings.issuer} answered {reply.status}")
        return reply.document, reply.status

    async def _claims(self, document: Mapping[str, Any], nonce: str | None) -> Said:
        """Return what the ID token says in an answer of the token endpoint, once it has been checked."""
        token, settings = document.get("id_token"), self.settings
        issuer = await self.issuer()
        try:
            if not isinstance(token, str) or len(token) > _MOST_TOKEN:
                raise LoginRefused(f"{settings.service_name} sent no ID token")
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise LoginRefused("its ID token is signed in a way that does not count")
            key = await self._issuers.key(settings.issuer, header.get("kid"))
            if key is None or header["alg"] not in key.algorithms:
                raise LoginRefused("its ID token is signed by nobody known")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                # Whom it is for and when is decided by `refuse`.
                options={"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise LoginRefused(f"its ID token is not good: {type(error).__name__}") from None
        reason = refuse(claims, issuer=issuer, client=settings.client_id, nonce=nonce, now=self._clock())
        if reason is not None:
            _log.warning("an ID token does not count", provider=settings.issuer, reason=reason)
            raise LoginRefused(f"its ID token does not count: {reason}")
        return await self._more(claims, document.get("access_token"))

    async def _more(self, claims: Mapping[str, Any], access_token: object) -> Said:
        place = (await self._metadata()).get("userinfo_endpoint")
        if not wants_more(claims, self.settings) or not isinstance(place, str) or not is_token(access_token):
            return Said(claims)
        more, status = await self._ask(place, None, (("authorization", f"Bearer {access_token}"),))
        # Core, 5.3.2: whatever is said of somebody else does not count.
        good = status == 200 and more.get("sub") == claims["sub"]
        return Said(joined(claims, more) if good else claims, good)


def provider_of(settings: Settings, clock: Callable[[], float]) -> Provider | None:
    """Return the provider that the configuration names, if it names one."""
    if settings.oidc is None:
        return None
    issuers = Issuers(ANYWHERE, settings.authorities, {settings.oidc.issuer: settings.oidc.server})
    return Provider(settings.oidc, issuers, Outgoing(ANYWHERE, settings.authorities), clock)


def is_token(text: object) -> bool:
    """Tell whether a text may stand in a header as a bearer token."""
    return isinstance(text, str) and 0 < len(text) <= _MOST_TOKEN and text.isascii() and text.isprintable()


def basic(client: str, secret: str) -> Headers:
    """Return the header with which a client says who it is: each part encoded as in a form (RFC 6749, 2.3.1)."""
    both = f"{quote_plus(client)}:{quote_plus(secret)}"
    return (("authorization", f"Basic {base64.b64encode(both.encode()).decode()}"),)


def read_device(document: Mapping[str, Any]) -> Device | None:
    """Return what a device authorisation response says (RFC 8628, 3.2); None: it cannot be used."""
    # Some providers have the name that the draft had.
    uri = document.get("verification_uri", document.get("verification_url"))
    code, user_code, whole = (document.get(name) for name in ("device_code", "user_code", "verification_uri_complete"))
    lifetime, interval = document.get("expires_in"), document.get("interval", _INTERVAL)
    if not is_token(code) or not is_shown(user_code, 64) or not is_web(uri):
        return None
    if not all(isinstance(number, int | float) and 0 <= number < 1e9 for number in (lifetime, interval)):
        return None
    assert isinstance(lifetime, int | float)
    return Device(
        str(code),
        str(user_code),
        str(uri),
        str(whole) if is_web(whole) else None,
        float(min(lifetime, _MOST_SECONDS)),
        float(min(max(interval, 1), 60)),
    )


def is_web(uri: object) -> bool:
    """Tell whether a URL may be shown to people and opened in a browser."""
    return is_shown(uri, 2000) and str(uri).isascii() and str(uri).startswith("https://")


def is_shown(text: object, most: int) -> bool:
    """Tell whether a text of a provider's may be shown on a terminal."""
    return isinstance(text, str) and 0 < len(text) <= most and text.isprintable()
