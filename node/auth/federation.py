"""Robots without a secret: a token that somebody else's identity provider signed, such as a build service's, counts for a robot.

Rules say which tokens: who issued them, whom they are for, and whom they are about (Quay: robot federation). The token
takes the place of the robot's own in Basic. Sources: OpenID Connect Core 1.0, 3.1.3.7; RFC 8725 for what a token must not decide.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import jwt
import structlog
from attrs import define, field

from node.auth.issuers import Issuers
from node.config.settings import FederationRule

_log = structlog.get_logger("antipode.access")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Only those whose key that checks cannot sign: with the others the provider's public key would be everybody's secret."""

_MOST = 16 * 1024
_LEEWAY = 60.0
"""Seconds that two clocks may differ."""
_LONGEST = 24 * 3600.0
"""Seconds. What is good for longer is no proof of what runs now."""
_LATEST = 1e12


def looks_like_token(secret: str) -> bool:
    """Tell whether a secret may be a signed token: three parts, the first a JSON object in base64."""
    return secret.startswith("eyJ") and secret.count(".") == 2


def admits(rule: FederationRule, claims: Mapping[str, Any]) -> bool:
    """Tell whether a rule is about a token of these claims. Pure."""
    audience, subject = claims.get("aud"), claims.get("sub")
    audiences = audience if isinstance(audience, list) else [audience]
    if claims.get("iss") != rule.issuer or rule.audience not in audiences or not isinstance(subject, str):
        return False
    return fits(rule.subject, subject)


def fits(pattern: str, text: str) -> bool:
    """Tell whether a text is what a pattern says, in which a star stands for any characters. Pure.

    A regular expression would try every way to share the text out among the stars: five of them could keep a node for minutes.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *between, last = rest
    if not text.startswith(first):
        return False
    at = len(first)
    for piece in between:
        # The first place is as good as any: what it leaves is the most.
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return len(text) - len(last) >= at and text.endswith(last)


def ends_of(claims: Mapping[str, Any], now: float) -> float | None:
    """Return when a token ends, in POSIX seconds; None where it does not count now. Pure."""
    ends: Any = claims.get("exp")
    issued: Any = claims.get("iat")
    begins: Any = claims.get("nbf", 0)
    if not all(_is_time(time) for time in (ends, issued, begins)):
        return None
    if now >= ends + _LEEWAY or max(issued, begins) > now + _LEEWAY or ends - issued > _LONGEST:
        return None
    return float(ends + _LEEWAY)


def _is_time(claim: object) -> bool:
    # JSON as Python reads it knows NaN, which is before and after nothing.
    return isinstance(claim, int | float) and not isinstance(claim, bool) and 0 <= claim <= _LATEST


async def _nothing(_robot: str) -> Sequence[FederationRule]:
    """Return that there are no other rules."""
    return ()


@define(eq=False)
class Federation:
    """The rules of ROBOT_FEDERATION, and those that a robot has besides. `clock` in POSIX seconds."""

    _rules: Sequence[FederationRule] = field(alias="rules")
    _issuers: Issuers = field(alias="issuers")
    _clock: Callable[[], float] = field(alias="clock")
    _more: Callable[[str], Awaitable[Sequence[FederationRule]]] = field(alias="more", default=_nothing)

    async def prove(self, robot: str, token: str) -> float | None:
        """Return until when (POSIX seconds) this token counts for this robot; None: it does not.

        Raises DirectoryUnavailable, DatabaseUnavailable.
        """
        if len(token) > _MOST:
            return None
        rules = [*(rule for rule in self._rules if rule.robot == robot), *await self._more(robot)]
        if not rules:
            return None
        try:
            header = jwt.get_unverified_header(token)
            issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
            # Nobody is asked whom no rule names.
            if not isinstance(issuer, str) or issuer not in {rule.issuer for rule in rules}:
                return None
            if header.get("alg") not in ALGORITHMS:
                return None
            key = await self._issuers.key(issuer, header.get("kid"))
            if key is None or header["alg"] not in key.algorithms:
                return None
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                # Whom it is for and when is decided below.
                options={"verify_aud": False, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            _log.info("a token does not count for a robot", robot=robot, reason=type(error).__name__)
            return None
        ends = ends_of(claims, self._clock())
        if ends is None or not any(admits(rule, claims) for rule in rules):
            _log.info("a token does not count for a robot", robot=robot, issuer=issuer, in_time=ends is not None)
            return None
        return ends
