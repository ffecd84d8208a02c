"""Is a closure as durable as a push asked? Which locations make it so, and what is missing where. Pure."""

from collections.abc import Collection, Mapping, Sequence

from attrs import frozen

from replication.closure import COUNTING, Closure, ClosureBlob, Place
from replication.model import LocationState
from replication.policy import Durability


@frozen
class Shortfall:
    """What a location still lacks before a push may be acknowledged: blobs, bytes, and the last error of a copy that fails."""

    location: str
    blobs: int
    size: int
    last_error: str | None = None


def usable(states: Mapping[str, LocationState], never: Collection[str]) -> tuple[str, ...]:
    """Return the locations where copies can be kept, in the order of `states`."""
    return tuple(name for name, state in states.items() if state in COUNTING and name not in never)


def refusal(durability: Durability, states: Mapping[str, LocationState], never: Collection[str]) -> str | None:
    """Return why a durability can never be had with these locations, naming what could be; None if it can be had."""
    found = usable(states, never)
    if durability.copies <= len(found):
        return None
    names = f" ({', '.join(found)})" if found else ""
    right = f"ask for quorum:{len(found)} or less" if found else "there is none to ask for"
    return f"{durability} needs {durability.copies} locations and {len(found)} can be used{names}: {right}"


def required_by(closure: Closure, patterns: Collection[str]) -> tuple[str, ...]:
    """Return the locations where a closure must be: its namespace's, and what the patterns of the tags to be moved add."""
    return tuple(
        name for name, place in sorted(closure.places.items()) if place.counts and (place.required or name in patterns)
    )


def targets(durability: Durability, required: Sequence[str], places: Mapping[str, Place]) -> tuple[str, ...]:
    """Return the locations that are to get copies: the required ones and, where a quorum needs more, further ones.

    Further ones are allowed locations in a fixed order, active before paused and then by name, so that a repeated push chooses
    the same.
    """
    others = sorted(
        (place for place in places.values() if place.counts and place.name not in required),
        key=lambda place: (place.state is not LocationState.ACTIVE, place.name),
    )
    more = max(0, durability.copies - len(required))
    return (*required, *(place.name for place in others[:more]))


def satisfies(closure: Closure, durability: Durability, required: Sequence[str]) -> bool:
    """Return whether every blob has the copies that were asked for, verified, in locations where they are meant to stay."""
    return all(_enough(blob, closure.places, durability, required) for blob in closure.blobs)


def shortfalls(
    closure: Closure, durability: Durability, required: Sequence[str], chosen: Sequence[str]
) -> tuple[Shortfall, ...]:
    """Return what each of the `chosen` locations lacks of the blobs that have not enough copies, if it lacks any."""
    short = [blob for blob in closure.blobs if not _enough(blob, closure.places, durability, required)]
    found = []
    for location in chosen:
        lacking = [blob for blob in short if not blob.present_in(location)]
        if lacking:
            errors = (
                need.debt.last_error
                for blob in lacking
                if (need := blob.needs.get(location)) is not None and need.debt is not None and need.debt.last_error
            )
            found.append(Shortfall(location, len(lacking), sum(blob.size for blob in lacking), next(errors, None)))
    return tuple(found)


def _enough(blob: ClosureBlob, places: Mapping[str, Place], durability: Durability, required: Sequence[str]) -> bool:
    copies = sum(1 for name, good in blob.held.items() if good and name in places and places[name].counts)
    if copies < durability.copies:
        return False
    return not durability.every or all(blob.present_in(name) for name in required)
