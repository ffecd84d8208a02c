"""The Authorization header: a name with a password, or a token. Pure."""

import base64
import binascii

from attrs import field, frozen

_MOST = 32 * 1024
"""Characters. The edge allows no longer heads anyway."""


@frozen
class Basic:
    """A name and a password (RFC 7617)."""

    name: str
    password: str = field(repr=False)


@frozen
class Bearer:
    """A token (RFC 6750)."""

    token: str = field(repr=False)


class Malformed(Exception):
    """A header that is neither; the text says what would be right, and repeats nothing of it."""


def read_authorization(header: str) -> Basic | Bearer:
    """Return what the header says. Raises Malformed."""
    scheme, _, rest = header.strip().partition(" ")
    given = rest.strip()
    if len(given) > _MOST or not given.isascii():
        raise Malformed("the Authorization header is too long, or not ASCII")
    if scheme.lower() == "bearer" and given:
        return Bearer(given)
    if scheme.lower() == "basic":
        try:
            text = base64.b64decode(given, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise Malformed("Basic needs base64 of name:password in UTF-8") from None
        name, colon, password = text.partition(":")
        if colon and text.isprintable():
            return Basic(name, password)
        raise Malformed("Basic needs base64 of name:password without control characters")
    raise Malformed("write Basic or Bearer")
