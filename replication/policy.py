"""Placement policy: rules of a namespace in, sets of locations out; SQL does algebra on sets and never sees a rule. Pure."""

from collections.abc import Collection, Mapping

from attrs import field, frozen

from replication.model import LocationState

_LEAVING = (LocationState.DRAINING, LocationState.DRAINED, LocationState.REMOVED)


def _set(names: Collection[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


@frozen
class NamespacePolicy:
    """What the owner of a namespace asked for: locations its blobs must be in (None: the defaults) and must never be in."""

    required: frozenset[str] | None = field(default=None, converter=_set)
    never: frozenset[str] = field(default=frozenset(), converter=frozenset)


@frozen
class PlacementSets:
    """A compiled policy: the locations that every blob of a namespace owes, and those that must not get one."""

    required: frozenset[str]
    never: frozenset[str]


def compile_policy(
    policy: NamespacePolicy | None,
    defaults: Collection[str],
    states: Mapping[str, LocationState],
    replicate: bool,
) -> PlacementSets:
    """Return the sets for a namespace.

    Required is what the policy names; without one the defaults (DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS); where these are empty,
    every active location; always minus *never*, and minus locations that are being emptied. A paused location stays required: its
    debt waits. Without `replicate` (FEATURE_STORAGE_REPLICATION) nothing is required, one copy is enough, and *never* still holds.
    """
    never = policy.never if policy else frozenset()
    if not replicate:
        return PlacementSets(frozenset(), never)
    if policy is not None and policy.required is not None:
        wanted = policy.required
    else:
        wanted = frozenset(defaults) or frozenset(
            location for location, state in states.items() if state is LocationState.ACTIVE
        )
    leaving = {location for location in wanted if states.get(location) in _LEAVING}
    return PlacementSets(wanted - never - leaving, never)


def debt(required: Collection[str], present: Collection[str]) -> frozenset[str]:
    """Return the locations that still have to get a copy: required minus present. A suspect copy is not present."""
    return frozenset(required) - frozenset(present)
