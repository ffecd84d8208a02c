"""A drill: a location that nodes treat as down although it is well, to see what would happen. Pure."""

from collections.abc import Mapping

from attrs import evolve

from replication.model import Board, Verdict


def rehearsed(board: Board, left: Mapping[str, float]) -> Board:
    """Return the board as it would be if the locations of `left` (seconds that their drills last) were down."""
    return {
        name: evolve(health, verdict=Verdict.DOWN, probe_good=False, reason=f"a drill, for {left[name]:.0f} s more")
        if left.get(name, 0.0) > 0
        else health
        for name, health in board.items()
    }
