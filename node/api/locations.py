"""Locations that come and go: listed, paused, drained, removed, brought back."""

from collections.abc import Sequence

from attrs import asdict

from node.api.frame import Json, Problem
from node.records.debt import StuckBlob, list_stuck
from node.records.held_up import HeldUp, list_held_up
from node.records.locations import (
    Change,
    Changed,
    LocationLine,
    list_locations,
    note_drained,
    only_copies,
    purge_removed,
    remove_location,
    set_state,
)
from node.records.postgres import Database
from node.records.reconcile import ask_for_round
from replication.model import LocationState
from replication.ports import Forget, Publish, Wake

BY_HAND = (LocationState.ACTIVE, LocationState.PAUSED, LocationState.DRAINING, LocationState.REMOVED)
"""States that an operator may ask for. *Drained* comes by itself."""


_MOST_STUCK = 100
"""Blobs that nothing can move, of which an answer tells the names."""


async def get_locations(database: Database) -> Json:
    """Return all locations with their states and what is there, the first blobs that nothing can move, and what others wait for."""
    return {"locations": [await _describe(database, line) for line in await list_locations(database)]}


async def get_location(database: Database, name: str) -> Json:
    """Return one location, which must be there, likewise, and how many blobs have no good copy outside it."""
    line = next(line for line in await list_locations(database) if line.name == name)
    return {**await _describe(database, line), "only_copies": (await only_copies(database, name))[0]}


async def _describe(database: Database, line: LocationLine) -> Json:
    stuck = await list_stuck(database, line.name, _MOST_STUCK) if line.stuck_blobs else ()
    held_up = await list_held_up(database, line.name) if line.unproven else HeldUp()
    return {
        **asdict(line),
        "state": line.state.value,
        "stuck": [asdict(blob) for blob in stuck],
        "waiting_blobs": held_up.blobs,
        "waits_for": [asdict(at) for at in held_up.waits_for],
    }


async def change_location(database: Database, publish: Publish, name: str, wanted: str) -> Json:
    """Bring a location into another state; the nodes act on it at once. Raises Problem: 400, 404, 409 with the reason.

    `active`, `paused` (kept out for maintenance: not read, written or copied to; nothing is copied because of it), `draining`
    (no new writes; what is only there is copied elsewhere, and of the rest a copy elsewhere is read; it becomes *drained* by
    itself), `removed` (for good; only when each blob has a copy elsewhere that was made or read since; its bucket is left alone).
    """
    states = {state.value: state for state in BY_HAND}
    if wanted not in states:
        raise Problem(400, "not a state", f"{wanted[:40]!r}: write {', '.join(states)}")
    state = states[wanted]
    removing = state is LocationState.REMOVED
    changed = await remove_location(database, name) if removing else await set_state(database, name, state)
    if changed.outcome is not Change.DONE:
        only = await only_copies(database, name) if changed.outcome is Change.ONLY_COPIES else (0, 0)
        stuck = await list_stuck(database, name, _MOST_STUCK) if only[1] else ()
        raise _refusal(name, state, changed, *only, stuck)
    if state is LocationState.DRAINING:
        await note_drained(database)
    if removing:
        await purge_removed(database)
    await ask_for_round(database)
    # Caches hold placements, nodes hold states; both look at once.
    publish(Forget(), Wake())
    return await get_location(database, name)


def _refusal(
    name: str, state: LocationState, changed: Changed, only: int, suspect: int, stuck: Sequence[StuckBlob]
) -> Problem:
    if changed.outcome is Change.UNKNOWN:
        return Problem(404, "no such location", f"{name[:100]} is not a location of this registry")
    if changed.outcome is Change.ONLY_COPIES:
        more: dict[str, object] = {
            "only_copies": only,
            "suspect_blobs": suspect,
            "unproven": changed.blobs,
            "stuck": [asdict(blob) for blob in stuck],
        }
        if not only:
            detail = (
                f"{changed.blobs} blobs in {name} have no copy elsewhere that was made, or read and right, since it is being "
                "emptied: the nodes read them, and heal what is not right, until it is drained"
            )
            return Problem(409, "copies elsewhere are not proven", detail, more=more)
        detail = (
            f"{only} blobs have their only copy in {name}: drain it until nothing is only there. What no repository "
            "links any more waits for collection; what no other location may hold waits for its policy"
        )
        if suspect:
            detail += (
                f". Of {suspect} of them no copy is trusted anywhere: they are copied as soon as they are read and are right; "
                "`antipode replication stalled` names those that are not: push them again, or delete the images that need them"
            )
        return Problem(409, "only copies are there", detail, more=more)
    if changed.outcome is Change.ANOTHER_REMOVAL:
        return Problem(
            409, "another removal is under way", "the copies of another removed location are still being taken away"
        )
    if changed.before is None:
        return Problem(409, "not drained", f"{name} must be draining or drained before it can be removed")
    before = changed.before.value
    detail = f"{name} is {before}: it cannot become {state.value}, or no other location would be active"
    return Problem(409, "not from this state", detail)
