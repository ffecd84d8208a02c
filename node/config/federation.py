"""Reads ROBOT_FEDERATION: which tokens of which identity providers count for which robots."""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from node.config.settings import FederationRule
from node.config.values import Findings, Unfit, show

KEY, ISSUERS_KEY = "ROBOT_FEDERATION", "ROBOT_FEDERATION_ISSUERS"
_FIELDS = ("robot", "issuer", "audience", "subject")
_ROBOT = re.compile(r"[a-z0-9][a-z0-9._-]*\+[a-z0-9][a-z0-9._-]*")
_LEAST = 8
"""Characters of a subject before its first star: `repo:*` at a public service is everybody there."""


def read_federation(document: Mapping[str, object], findings: Findings) -> tuple[FederationRule, ...]:
    """Return the rules; errors go to `findings`. A rule without an audience is for tokens that are meant for this registry."""
    given = document.get(KEY)
    if given is None:
        return ()
    if not isinstance(given, list):
        findings.wrong(KEY, show(given), f"write a list of rules, each with {', '.join(_FIELDS)}")
        return ()
    hostname = document.get("SERVER_HOSTNAME")
    rules = (_read(f"{KEY}[{place}]", entry, str(hostname), findings) for place, entry in enumerate(given))
    return tuple(rule for rule in rules if rule is not None)


def _read(where: str, entry: object, hostname: str, findings: Findings) -> FederationRule | None:
    if not isinstance(entry, Mapping):
        findings.wrong(where, show(entry), f"write a mapping with {', '.join(_FIELDS)}")
        return None
    before = len(findings.problems)
    for name in entry:
        if name not in _FIELDS:
            findings.wrong(f"{where}.{name}", "an unknown key", f"there are: {', '.join(_FIELDS)}")
    texts = {"audience": hostname, **{name: value for name, value in entry.items() if value is not None}}
    for name in _FIELDS:
        value = texts.get(name)
        wrong = "write some text" if not isinstance(value, str) or not value else refuse(name, value)
        if wrong is not None:
            findings.wrong(f"{where}.{name}", show(value), wrong)
    if len(findings.problems) > before:
        return None
    return FederationRule(**{name: str(texts[name]) for name in _FIELDS})


def read_issuers(value: object) -> tuple[str, ...]:
    """Return a list of issuers. Raises Unfit."""
    if isinstance(value, list | tuple) and all(
        isinstance(item, str) and refuse("issuer", item) is None for item in value
    ):
        return tuple(value)
    raise Unfit("write a list of providers' https URLs, just as their tokens have them in iss")


def refuse(name: str, value: str) -> str | None:
    """Return what would be right instead of a field's text; None: it is right."""
    if name == "robot" and _ROBOT.fullmatch(value) is None:
        return "write a robot's whole name, such as team+ci"
    if name == "issuer":
        try:
            parts = urlsplit(value)
        except ValueError:
            return "it is not a URL"
        if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            return "write the provider's https URL, just as its tokens have it in iss"
    if name == "subject" and "*" in value and value.index("*") < _LEAST:
        return f"write at least {_LEAST} characters before the first star: else it may be anybody there"
    return None
