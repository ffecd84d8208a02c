"""A drill: a location that nodes treat as down although it is well, to see what would happen. Pure."""

from collections.abc import Mapping

from attrs import evolve

from replication.model import Board, Drill, LocationHealth, Verdict


def rehearsed(board: Board, drills: Mapping[str, Drill], now: float) -> Board:
    """Return the board as it would be at `now` if the locations of drills that are not over were down since these began."""
    return {
        name: _down(health, drills[name], now) if name in drills and drills[name].left > 0 else health
        for name, health in board.items()
    }


def _down(health: LocationHealth, drill: Drill, now: float) -> LocationHealth:
    return evolve(
        health,
        verdict=Verdict.DOWN,
        since=health.since if health.verdict is Verdict.DOWN else now - drill.ran,
        probe_good=False,
        reason=f"a drill, for {drill.left:.0f} s more",
    )
