"""Reads the stores: their engines, this node's order of preference, and the locations that every blob owes a copy to."""

from collections.abc import Mapping

from attrs import frozen

from engines import ArgumentErrors, parse_engine
from node.config.settings import LocationSettings
from node.config.values import Findings, Hidden, Unfit, read_ids, show, split_ids

CONFIG = "DISTRIBUTED_STORAGE_CONFIG"
PREFERENCE = "DISTRIBUTED_STORAGE_PREFERENCE"
DEFAULTS = "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS"
PREFERENCE_VARIABLE = "QUAY_DISTRIBUTED_STORAGE_PREFERENCE"
_RIGHT = "write a mapping of ids to [EngineName, {arguments}]"


@frozen
class Storage:
    """The stores, in the file's order, and the two lists of ids that speak of them."""

    locations: Mapping[str, LocationSettings]
    preference: tuple[str, ...]
    default_locations: tuple[str, ...]


def _read_location(name: object, entry: object, findings: Findings) -> LocationSettings | None:
    """Return one entry of DISTRIBUTED_STORAGE_CONFIG, None after errors."""
    where = f"{CONFIG}.{name}"
    if not isinstance(name, str):
        findings.wrong(where, show(name), "an id must be text: put it in quotes")
        return None
    if split_ids(name) != (name,) or not name.isprintable():
        findings.wrong(
            where, show(name), f"an id has no white space and no comma: {PREFERENCE_VARIABLE} is split there"
        )
        return None
    if not (
        isinstance(entry, list | tuple)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], Mapping)
    ):
        findings.wrong(where, show(entry, secret=isinstance(entry, str)), "write [EngineName, {arguments}]")
        return None
    try:
        spec = parse_engine(entry[0], entry[1])
    except ArgumentErrors as errors:
        for message in errors.errors:
            findings.wrong(where, "", message)
        return None
    for line in spec.warnings:
        findings.warn(f"{where}: {line}")
    return LocationSettings(name, spec, redirect=spec.redirect)


def _read_locations(given: object, findings: Findings) -> dict[str, LocationSettings | None]:
    """Return every id of DISTRIBUTED_STORAGE_CONFIG with its location, None where its entry has errors."""
    if not isinstance(given, Mapping) or not given:
        findings.wrong(CONFIG, show(given) if given != {} else "an empty mapping", _RIGHT)
        return {}
    read = {name: _read_location(name, entry, findings) for name, entry in given.items()}
    return {name: location for name, location in read.items() if isinstance(name, str)}


def _choose(key: str, given: object, known: Mapping[str, object], findings: Findings) -> tuple[str, ...] | None:
    """Return a list of ids that are all known, each once; None after errors."""
    try:
        ids = read_ids(given)
    except Unfit as error:
        findings.wrong(key, show(given), str(error))
        return None
    if not ids:
        findings.wrong(key, show(given), f"write at least one id of {CONFIG}")
        return None
    # Without any location the unknown ids are a consequence; the error that matters has been noted.
    unknown = [name for name in dict.fromkeys(ids) if name not in known] if known else []
    if unknown:
        findings.wrong(
            key,
            show(given)
            if isinstance(given, Hidden)
            else " and ".join(f'"{name}"' for name in unknown) + f" in {', '.join(ids)!r}",
            f"the ids in {CONFIG} are: {', '.join(known)}",
        )
        return None
    if len(set(ids)) < len(ids):
        findings.warn(f"{key}: an id stands there twice; its first place counts")
    return tuple(dict.fromkeys(ids))


def _read_preference(
    document: Mapping[str, object],
    environ: Mapping[str, str],
    known: Mapping[str, object],
    replicate: bool,
    findings: Findings,
) -> tuple[str, ...] | None:
    """Return the order of preference: the environment's, else the file's, else (without replication) the stores' own order."""
    words = split_ids(environ.get(PREFERENCE_VARIABLE, ""))
    if words:
        return _choose(PREFERENCE_VARIABLE, list(words), known, findings)
    given = document.get(PREFERENCE)
    if given is not None and given != []:
        return _choose(PREFERENCE, given, known, findings)
    if replicate:
        findings.wrong(
            PREFERENCE,
            show(given) if given is None else "an empty list",
            "with FEATURE_STORAGE_REPLICATION every node must know its own order of stores: "
            f'write the list, or set {PREFERENCE_VARIABLE}="{" ".join(known) or "us eu"}"',
        )
        return None
    return tuple(known)


def _check_replication(locations: Mapping[str, LocationSettings | None], allow_local: bool, findings: Findings) -> None:
    """Refuse to replicate into stores that other hosts cannot reach, unless that was asked for by name."""
    local = [name for name, location in locations.items() if location is not None and not location.engine.shared]
    if local and allow_local:
        findings.warn(
            f"ALLOW_LOCAL_REPLICATION: {', '.join(local)} can be reached from this machine only; "
            "a node on another machine would find its copies missing"
        )
    for name in local if not allow_local else ():
        location = locations[name]
        findings.wrong(
            f"{CONFIG}.{name}",
            f"{location.engine.kind if location else name} with FEATURE_STORAGE_REPLICATION",
            "other hosts cannot reach it: use an object store, or, if every node runs on this one machine, "
            "set ALLOW_LOCAL_REPLICATION: true",
        )


def _check_places(locations: Mapping[str, LocationSettings | None], findings: Findings) -> None:
    """Refuse two locations in one place: a copy there would be no second one, and what is one's would be garbage of the other.

    Ceph's tenants may each have a bucket of one name. Keys do not say whose tenant they are of, and a second pair of one account
    would look the same: these are refused, too, and told what makes them different for certain.
    """
    engines = [(name, location.engine) for name, location in locations.items() if location is not None]
    for count, (name, engine) in enumerate(engines):
        for other, before in engines[:count]:
            place, taken = engine.place, before.place
            if place.startswith(taken) or taken.startswith(place):
                where = "where" if place == taken else "inside of where" if place > taken else "around where"
                tenants = "" if engine.same_account(before) else ", also where their keys are of two tenants"
                findings.wrong(
                    f"{CONFIG}.{name}",
                    f"{place}, which is {where} {other} is",
                    f"give each location a bucket of its own, or a storage_path beside the other's{tenants}",
                )


def check_connections(storage: Storage, streams: int, per_location: int, parts: int, findings: Findings) -> None:
    """Warn of stores to which copies alone may take all connections.

    `streams` is REPLICATION_STREAMS, `per_location` REPLICATION_STREAMS_PER_LOCATION, `parts` REPLICATION_PARTS_PER_BLOB.
    """
    copies = min(streams, per_location) * parts
    for name, location in storage.locations.items() if len(storage.locations) > 1 else ():
        most = location.engine.connections
        if most is not None and most <= copies:
            findings.warn(
                f"{CONFIG}.{name}: maximum_connections is {most}, and copies alone may want {copies} at once "
                f"({min(streams, per_location)} by REPLICATION_STREAMS and REPLICATION_STREAMS_PER_LOCATION, of {parts} "
                "parts each by REPLICATION_PARTS_PER_BLOB): probes, pulls and pushes would wait behind them until the store "
                f"counts as down; give it {2 * copies} or more, or make these keys less"
            )


def read_storage(
    document: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    replicate: bool,
    allow_local: bool,
    findings: Findings,
) -> Storage | None:
    """Return the stores and lists, None after errors, which go to `findings`.

    QUAY_DISTRIBUTED_STORAGE_PREFERENCE replaces the preference as a whole. Default locations that are absent or empty
    mean every location, and a warning says so (Quay would replicate nothing).
    """
    locations = _read_locations(document.get(CONFIG), findings)
    preference = _read_preference(document, environ, locations, replicate, findings)
    _check_places(locations, findings)
    if replicate:
        _check_replication(locations, allow_local, findings)
    given = document.get(DEFAULTS)
    defaults: tuple[str, ...] | None = tuple(locations)
    if given is not None and given != []:
        defaults = _choose(DEFAULTS, given, locations, findings)
    elif replicate and locations:
        findings.warn(f"{DEFAULTS} is {'empty' if given == [] else 'absent'}: every location will hold every blob")
    if replicate and len(locations) == 1:
        findings.warn("FEATURE_STORAGE_REPLICATION is on with one location: there is nowhere to copy to")
    whole = {name: location for name, location in locations.items() if location is not None}
    if not preference or not defaults or len(whole) < len(locations):
        return None
    return Storage(whole, preference, defaults)
