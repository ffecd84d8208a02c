"""What is wrong with a blob's copies and tasks, and what to do about it: required minus present, recomputed. Pure."""

from collections.abc import Mapping

from attrs import frozen

from replication.model import LocationState

STAYING = frozenset({LocationState.ACTIVE, LocationState.PAUSED})
"""A copy in such a location counts as kept: nobody is about to take it away."""


@frozen
class BlobFacts:
    """What the ledger knows of one blob. Locations by name."""

    linked: bool
    """Whether a repository has it. What none has is the collector's."""
    required: frozenset[str]
    """Active and paused locations where it must be, without what is forbidden."""
    forbidden: frozenset[str]
    """Where every namespace that links it says *never*."""
    placed: Mapping[str, bool]
    """Where it is: True for a good copy, False for a suspect one."""
    tasks: Mapping[str, bool]
    """Its open tasks by destination: True while somebody works under a lease."""
    states: tuple[tuple[str, LocationState], ...]
    """Every location with its state, in the order in which a blob that has to move tries them."""


@frozen
class Settlement:
    """What to change. All three name locations."""

    owe: tuple[str, ...] = ()
    """A copy is owed there, and no task says so: lost, or not noticed yet."""
    strike: tuple[str, ...] = ()
    """A task there is required by nothing, or paid."""
    trim: tuple[str, ...] = ()
    """The copy there has to go."""
    moving: bool = False
    """Whether what is owed is owed only to get the blob out of where it must not stay."""

    @property
    def settled(self) -> bool:
        """Whether nothing has to be changed."""
        return not (self.owe or self.strike or self.trim)


def refuge(facts: BlobFacts, needed: frozenset[str]) -> str | None:
    """Return the location that a blob must be copied to because no copy of it can stay where it is, None if one can.

    That is: all its good copies are in locations that are being emptied, or where it is forbidden, and nothing that it needs
    anyway would take a copy now. Where none is good those count that nobody trusts: copying reads them when there is nothing
    better, and makes a copy only of right bytes. One that can stay is healed where it is.
    """
    states = dict(facts.states)
    good = frozenset(at for at, ok in facts.placed.items() if ok)
    staying = {at for at in (good or facts.placed.keys()) - facts.forbidden if states.get(at) in STAYING}
    takes = [at for at, state in facts.states if state is LocationState.ACTIVE and at not in facts.forbidden]
    if not facts.linked or not facts.placed or (good and staying) or needed.intersection(takes):
        return None
    if staying:
        takes = [at for at in takes if at in staying]
    return takes[0] if takes else None


def settle(facts: BlobFacts, *, replicate: bool, down: frozenset[str] = frozenset()) -> Settlement:
    """Return what has to be changed for a blob to be where it must be, and only there.

    Never trims the last good copy: another one must stay in an active location that allows it and is not among `down` (the
    locations that the caller sees down). What is not required goes only when all that is required is there; what is forbidden,
    or suspect, as soon as another copy is good. Nothing is trimmed in a location that is paused or being emptied unless it is
    forbidden or suspect there. Without `replicate` one copy is enough: blobs only leave locations that are being emptied.
    """
    states = dict(facts.states)
    good = frozenset(at for at, ok in facts.placed.items() if ok)
    needed = facts.required if replicate else frozenset()
    target = refuge(facts, needed)
    if target is not None:
        needed |= {target}
    owe = tuple(sorted(needed - good - facts.tasks.keys()))
    moving = bool(owe) and owe == (target,) and target not in facts.placed
    if not replicate or not facts.linked:
        return Settlement(owe, moving=moving)
    trim: list[str] = []
    for at in sorted(facts.placed):
        # One after the other: two copies must not both go because the other one is there.
        if _goes(facts, at, states, good.difference(trim), needed, down):
            trim.append(at)
    strike = tuple(
        at
        for at, leased in sorted(facts.tasks.items())
        if not leased and (at in good or (at not in needed and not (at in facts.placed and not good)))
    )
    return Settlement(owe, strike, tuple(trim), moving)


def _goes(
    facts: BlobFacts,
    at: str,
    states: Mapping[str, LocationState],
    good: frozenset[str],
    needed: frozenset[str],
    down: frozenset[str],
) -> bool:
    """Decide whether the copy in `at` has to go."""
    if at in needed or facts.tasks.get(at) or states.get(at, LocationState.REMOVED) is LocationState.REMOVED:
        return False
    kept = good - facts.forbidden - down - {at}
    if not any(states.get(other) is LocationState.ACTIVE for other in kept):
        return False
    if at not in good or at in facts.forbidden:
        return True
    return states[at] is LocationState.ACTIVE and bool(facts.required) and facts.required <= good
