"""The grammar of names, tags and digests as clients send them (distribution-spec, "Pulling manifests")."""

import re

from node.errors import DIGEST_INVALID, NAME_INVALID, RegistryError
from replication.digests import BadDigest, Digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_ACCOUNT = re.compile(_COMPONENT)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
"""What nearly every digest looks like: seeing that takes 0.3 us instead of 1.2."""

NAME_MOST = 255
"""Longest name in characters, as most clients assume (spec, 1.1.1: name and host together)."""


def check_name(name: str) -> str:
    """Return the repository name, or raise NAME_INVALID with what would be right."""
    if len(name) > NAME_MOST:
        raise RegistryError(NAME_INVALID, {"name": name[:64] + "...", "reason": f"longer than {NAME_MOST} characters"})
    if not _NAME.fullmatch(name):
        raise RegistryError(
            NAME_INVALID,
            {
                "name": name,
                "reason": "components of lower-case letters and digits, joined by '.', '_', '__' or '-', separated by '/'",
            },
        )
    return name


def is_name(name: str) -> bool:
    """Tell whether this is a repository name."""
    return len(name) <= NAME_MOST and _NAME.fullmatch(name) is not None


def is_tag(tag: str) -> bool:
    """Tell whether this is a tag."""
    return _TAG.fullmatch(tag) is not None


def is_account(name: str) -> bool:
    """Tell whether a user, an organisation, a team or the own part of a robot's name may be called so: one component of a name."""
    return len(name) <= NAME_MOST and _ACCOUNT.fullmatch(name) is not None


def check_digest(text: str) -> Digest:
    """Return the digest, or raise DIGEST_INVALID with what is wrong with it."""
    try:
        return Digest.parse(text)
    except BadDigest as error:
        raise RegistryError(DIGEST_INVALID, {"digest": text[:160], "reason": str(error)}) from error


def check_digest_text(text: str) -> str:
    """Return a digest's text as it is, or raise as `check_digest`."""
    return text if _SHA256.fullmatch(text) else str(check_digest(text))


def namespace_of(name: str, library: str) -> str:
    """Return a repository's namespace: its first component; one-component names belong to `library` (LIBRARY_NAMESPACE)."""
    first, slash, _ = name.partition("/")
    return first if slash else library
