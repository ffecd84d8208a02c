"""When a signing key is made, signs and verifies. Pure: times are seconds from now, negative ones are past.

A key is published a day before it signs, so that every node knows it when it meets the first token; and kept until the last token
that it signed has ended. So a rotation is no event for anybody.
"""

from collections.abc import Sequence

from attrs import frozen

from node.records.signing_keys import KeyRow

SIGNS = 30 * 86400.0
"""How long a key signs."""
AHEAD = 86400.0
"""How long before that it is published."""
_MARGIN = 3600.0
"""Clocks differ, and a token's holder may be slow."""


@frozen
class Span:
    """A key to be made."""

    signs_from: float
    signs_until: float
    verifies_until: float


def next_key(keys: Sequence[KeyRow], longest: float, *, at_once: bool = False) -> Span | None:
    """Return the key to be made now, None if none is needed. `keys` are those that could sign; `longest` a token's lifetime.

    With `at_once` one is made in any case and signs as soon as every node must have read it.
    """
    last = max((key.signs_until for key in keys), default=None)
    if at_once:
        begins = 120.0
    elif last is None or last <= 0:
        begins = 0.0
    elif last <= AHEAD:
        begins = last
    else:
        return None
    return Span(begins, begins + SIGNS, begins + SIGNS + longest + _MARGIN)
