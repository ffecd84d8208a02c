"""What pulls are decided by from memory alone: while it is the same, so are the answers, and nobody needs to decide again.

A warm pull passes through forty functions, most of which find out that nothing has changed. On a machine that is busy with other
things each of them costs a microsecond, because the processor has forgotten it since the last request.
"""

from collections.abc import Callable, Mapping

from attrs import field, frozen

from node.answers import Answer
from replication.model import LocationState
from replication.sources import Standing

LONGEST = 5.0
"""Seconds in which a decision is not looked at again. It bounds how late what is seen only then is seen: that a store's credentials
are others now."""


@frozen
class Ground:
    """What all pulls are decided by, beside their senders' rights: it is another one as soon as any of it has changed."""

    standing: Standing
    states: Mapping[str, LocationState]
    hints: int
    """How many have come so far."""


def until(asked_at: float, staleness: float, now: float, longest: float = LONGEST) -> float:
    """Return until when a decision made now holds, where what it was made by was asked for then and may be so many seconds old.

    `longest`: seconds, where it should be made again sooner.
    """
    return min(asked_at + staleness, now + min(longest, LONGEST))


@frozen
class Decided:
    """An answer that was found in memory; whoever asks for the same thing on the same ground gets it, too, `until` then."""

    answer: Answer
    until: float
    """Of Trio's clock."""
    renewed: Callable[[float], float] = field(repr=False)
    """Returns until when it holds from now on, where what has been asked for since says the same; -inf where it is to be decided
    anew. One look-up brings all blobs of an image, and what they are answered with need not be made again for that."""
    condition: str
    """A header that asks for something else."""
    body: Callable[[], bytes | None] = field(repr=False)
    """Returns the body, None where that has been forgotten."""
