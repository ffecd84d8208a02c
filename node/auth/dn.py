"""Distinguished names of a directory, so that two ways to write one are the same (RFC 4514). Pure.

Values are the same that differ in capital letters alone. Directories do not agree what else is the same (spaces, accents, forms of
a letter: RFC 4518). Where one has two entries that look alike, whoever may make the second must not get the teams of the first.

ldap3 has a parser, which refuses names that are right (`2.5.4.3=x`, `cn=a=b`, a value that ends with an escaped space) and leaves
what is escaped as it was written.
"""

import re
from functools import lru_cache

from node.config.values import Unfit

Dn = tuple[str, ...]
"""The components, the first one first, each as one of the ways in which it can be written: in small letters."""

_RIGHT = "write a name such as cn=devs,ou=groups"
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9-]*|\d+(\.\d+)*")
# A character behind a backslash is itself, unless two hexadecimal digits say which byte it is.
_PIECE = re.compile(r"\\([0-9a-fA-F]{2})|\\(.)|(.)", re.DOTALL)
_SPECIAL = re.compile(r'[\\,+"<>;=]|^[# ]| $')


def parse(text: str) -> Dn:
    """Return a name's components. Raises Unfit."""
    if len(text) > 1000 or not text.isprintable():
        raise Unfit(_RIGHT)
    return tuple(map(_component, _split(text, ",")))


def below(name: Dn, base: Dn) -> Dn | None:
    """Return what stands before `base` in a name that is below it; None: it is not."""
    rest = len(name) - len(base)
    return name[:rest] if rest > 0 and name[rest:] == base else None


# All but the first component of a name are many others', too: a large group is read more than twice as fast by that.
@lru_cache(maxsize=4096)
def _component(text: str) -> str:
    return "+".join(sorted(map(_pair, _split(text, "+"))))


def _split(text: str, mark: str) -> list[str]:
    if "\\" not in text:
        return text.split(mark)
    parts, escaped = [""], False
    for character in text:
        if character == mark and not escaped:
            parts.append("")
        else:
            parts[-1] += character
        escaped = character == "\\" and not escaped
    return parts


def _pair(text: str) -> str:
    attribute, equals, value = text.partition("=")
    attribute = attribute.strip().lower()
    if not equals or _ATTRIBUTE.fullmatch(attribute) is None:
        raise Unfit(_RIGHT)
    plain = bytearray()
    stripped = value.strip()
    if stripped.endswith("\\") and value.endswith(" "):
        # The backslash was the last space's.
        stripped += " "
    if stripped.startswith("#"):
        # The value's encoding (RFC 4514, 2.4): the same value has another name, too.
        raise Unfit(_RIGHT)
    at = 0
    for found in _PIECE.finditer(stripped):
        code, escaped, character = found.groups()
        if character == "\\" or (character == '"'):
            raise Unfit(_RIGHT)
        plain += bytes.fromhex(code) if code else (escaped or character).encode()
        at = found.end()
    try:
        meant = "".join(map(_small, plain.decode()))
    except UnicodeDecodeError:
        raise Unfit(_RIGHT) from None
    if not meant.strip() or at != len(stripped) or not meant.isprintable():
        raise Unfit(_RIGHT)
    return f"{attribute}={_SPECIAL.sub(_escape, meant)}"


def _small(character: str) -> str:
    """Return the small letter of a capital one, where no other capital has it: the Kelvin sign is no K."""
    small = character.lower()
    return small if small.upper() == character else character


def _escape(found: "re.Match[str]") -> str:
    return f"\\{found[0]}"
