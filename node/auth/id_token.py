"""What an identity provider says of a person: claims of an ID token, judged and read. Pure.

Sources: OpenID Connect Core 1.0, 2 (claims), 3.1.3.7 (validation), 5.1 and 5.7 (which claims identify somebody).
"""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from node.config.settings import OidcSettings
from node.config.values import show
from node.names import is_account

_LEEWAY = 60.0
"""Seconds that two clocks may differ."""
_LATEST = 1e12
_MOST_SUBJECT = 255
_NAMES = ("preferred_username", "unique_name", "upn")
"""Claims that have the name where PREFERRED_USERNAME_CLAIM_NAME says none (as in Quay)."""


@frozen
class Said:
    """What a provider said of somebody. `whole`: the user endpoint has answered, or there was no need to ask it."""

    claims: Mapping[str, Any]
    whole: bool = True


class Unsaid(Exception):
    """The provider did not say which groups somebody is in; the text says why, for the log."""


def refuse(claims: Mapping[str, Any], *, issuer: str, client: str, nonce: str | None, now: float) -> str | None:
    """Return why an ID token, whose signature is good, does not count; None: it does.

    `nonce` is what the login began with; None: it began with none (RFC 8628 has no place for it).
    """
    audience, party = claims.get("aud"), claims.get("azp")
    audiences = audience if isinstance(audience, list) else [audience]
    if claims.get("iss") != issuer:
        return "it is of another issuer"
    if client not in audiences or (party is not None and party != client) or (len(audiences) > 1 and party is None):
        return "it is for another client"
    if nonce is not None and claims.get("nonce") != nonce:
        return "it is of another login"
    if not is_subject(claims.get("sub")):
        return "its subject cannot be used"
    ends, issued, begins = claims.get("exp"), claims.get("iat"), claims.get("nbf", 0)
    if not all(_is_time(time) for time in (ends, issued, begins)):
        return "its times are no numbers"
    if now >= ends + _LEEWAY:  # type: ignore[operator]  # it is a number
        return "it has ended"
    if max(issued, begins) > now + _LEEWAY:
        return "it has not begun"
    return None


def is_subject(text: object) -> bool:
    """Tell whether a text can be somebody's subject: at most 255 characters (Core, 2) that can be shown."""
    return isinstance(text, str) and 0 < len(text) <= _MOST_SUBJECT and text.isprintable()


def wants_more(claims: Mapping[str, Any], settings: OidcSettings) -> bool:
    """Tell whether the user endpoint must be asked, as the claim with the name or the groups is not in the ID token."""
    lacks_groups = settings.group_claim is not None and claims.get(settings.group_claim) is None
    return settings.user_endpoint and (lacks_groups or _name_claim(claims, settings) is None)


def joined(claims: Mapping[str, Any], more: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an ID token says, and what the user endpoint says of the rest: what is null in the token was not said there."""
    return {**more, **{name: value for name, value in claims.items() if value is not None}}


def groups_of(said: Said, settings: OidcSettings) -> frozenset[str]:
    """Return the groups that somebody is in. Raises Unsaid.

    Where there is no such claim, that says something only if it had been there otherwise, as the scope of its name was asked for or
    MISSING_GROUP_CLAIM_MEANS_NONE says so; and if the provider has answered all that it was asked.
    """
    name = settings.group_claim or ""
    found, elsewhere = said.claims.get(name), said.claims.get("_claim_names")
    if isinstance(found, str):
        found = [found]
    if isinstance(found, list) and all(isinstance(group, str) for group in found):
        return frozenset(group for group in found if group)
    if found is not None:
        raise Unsaid(f"{name} is {show(found)[:100]}, and no list of names")
    if isinstance(elsewhere, Mapping) and name in elsewhere:
        # Core, 5.6.2; Entra does so for whoever is in more than 200 groups.
        raise Unsaid(f"there are more groups in {name} than the provider sends: let it send fewer")
    if not said.whole:
        raise Unsaid(f"there is no {name} in the ID token, and the user endpoint did not answer")
    if name in settings.scopes or settings.silence_is_none:
        return frozenset()
    raise Unsaid(f"there is no {name}, which is not among LOGIN_SCOPES")


def name_of(claims: Mapping[str, Any], settings: OidcSettings) -> str | None:
    """Return what somebody's account may be called, in lower case; None: no claim has a name that an account can have.

    Of an address of mail it is what stands before the @, as in Quay.
    """
    name = _name_claim(claims, settings)
    given = claims.get(name) if name is not None else None
    # Before the letters are made small: others than ASCII's become ASCII by that.
    if not isinstance(given, str) or not given.isascii():
        return None
    wanted = given.partition("@")[0].lower()
    return wanted if is_account(wanted) else None


def describe(claims: Mapping[str, Any], settings: OidcSettings) -> str:
    """Return what was found in place of a name, for people."""
    name = _name_claim(claims, settings)
    if name is None:
        return f"there is no {settings.username_claim or ', '.join(_NAMES)} in what {settings.service_name} says"
    return f"{name} is {show(claims[name])}"


def email_of(claims: Mapping[str, Any], settings: OidcSettings) -> str | None:
    """Return somebody's address of mail, if the provider has verified it."""
    named = settings.email_claim
    found = claims.get(named or "email")
    verified = named is not None or claims.get("email_verified") is True
    return found if verified and isinstance(found, str) and len(found) <= 255 and found.isprintable() else None


def _name_claim(claims: Mapping[str, Any], settings: OidcSettings) -> str | None:
    names = _NAMES if settings.username_claim is None else (settings.username_claim,)
    return next((name for name in names if claims.get(name) is not None), None)


def _is_time(claim: object) -> bool:
    # JSON as Python reads it knows NaN, which is before and after nothing.
    return isinstance(claim, int | float) and not isinstance(claim, bool) and 0 <= claim <= _LATEST
