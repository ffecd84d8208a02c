"""Hedged reads: when the best source takes unusually long for its first byte, the next one is asked beside it. Pure.

The first that begins to answer goes on, the other is left. Extra reads are a bounded share of all reads, so that a store which is
slow because it is busy is not made busier (Dean and Barroso, "The Tail at Scale", 2013).
"""

from collections.abc import Callable

from attrs import define, field, frozen


@frozen
class HedgeRules:
    """When a second source is asked. Seconds."""

    share: float = 0.0
    """Extra reads as a share of all reads; 0 never hedges."""
    least: float = 0.3
    """Below this nobody notices."""
    times: float = 4.0
    """How many times its measured latency a source may take."""


def hedge_after(latency: float | None, stall: float, rules: HedgeRules) -> float:
    """Return how many seconds a source of that measured latency (None: not measured) may take for its first byte.

    At most half the silence (`stall`) after which it is given up anyway.
    """
    return min(max(rules.least, rules.times * (latency or 0.0)), stall / 2)


def may_hedge(reads: int, hedges: int, rules: HedgeRules) -> bool:
    """Return whether one more extra read keeps within the share of so many reads. There is no credit: the first reads have none."""
    return hedges + 1 <= rules.share * reads


def unhurried(_location: str) -> float | None:
    """Know no latency."""
    return None


@define(eq=False)
class Hedging:
    """Counts what a node reads and hedges. `latency` returns a location's measured time to first byte."""

    rules: HedgeRules = HedgeRules()
    latency: Callable[[str], float | None] = unhurried
    reads: int = field(default=0, init=False)
    hedges: int = field(default=0, init=False)
    won: int = field(default=0, init=False)
    """Hedges that were quicker than what they hedged."""

    def begin(self) -> bool:
        """Count a read; return whether hedging is on at all."""
        self.reads += 1
        return self.rules.share > 0

    def take(self) -> bool:
        """Take one extra read, if there is one left."""
        if not may_hedge(self.reads, self.hedges, self.rules):
            return False
        self.hedges += 1
        return True
