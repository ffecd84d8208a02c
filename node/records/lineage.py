"""Where a database comes from, and what a difference means: a fail-over, an older state, another database. Pure.

A promoted standby begins a new timeline; what its primary had committed and it had not received is lost with the primary
(PostgreSQL documentation, 25.3.5 "Timelines", 26.2.8 "Synchronous Replication").
"""

from enum import Enum

from attrs import evolve, frozen


@frozen
class Lineage:
    """What a server says of itself: the id that it got at initdb, its timeline, and the next transaction's id."""

    system: int
    timeline: int
    next_transaction: int


class Change(Enum):
    """How a server differs from the one that answered before."""

    NONE = "none"
    FAIL_OVER = "fail-over"
    """A standby was promoted: a later timeline. Commits may be lost; with fewer transactions than were seen they are."""
    WENT_BACK = "went back"
    """It knows fewer transactions than were seen, as after a restored snapshot: commits are lost."""
    REPLACED = "replaced"
    """Another database altogether, as after a restore into a new one. Commits may be lost."""
    OUTDATED = "outdated"
    """An earlier timeline: the old primary is back, beside its successor. It must not be used."""


def compare(before: Lineage | None, after: Lineage) -> Change:
    """Say what a server that is `after` is to somebody who has seen `before`. None: nothing was seen."""
    if before is None:
        return Change.NONE
    if after.system != before.system:
        return Change.REPLACED
    if after.timeline < before.timeline:
        return Change.OUTDATED
    if after.timeline > before.timeline:
        return Change.FAIL_OVER
    return Change.WENT_BACK if after.next_transaction < before.next_transaction else Change.NONE


def latest(before: Lineage | None, after: Lineage) -> Lineage:
    """Return what is known when both were seen: answers overtake one another."""
    if before is None or (before.system, before.timeline) != (after.system, after.timeline):
        return after
    return evolve(after, next_transaction=max(before.next_transaction, after.next_transaction))
