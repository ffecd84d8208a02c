"""How long a client's upload waits for a store: until that has been silent for a while and fails its probes, too.

An engine's own limits are those of a store that is well and slow; no client waits so long. Silence alone proves nothing, since one
part may take its time, nor does one failed probe. Both together do, within a probe's interval and deadline of the store's death.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from engines.contract import EngineUnavailable

SILENCE = 3.0
"""Seconds without a sign of life after which a store that fails its probes is not waited for any more."""


@define(eq=False)
class Wait:
    """A call on a store that is being waited for."""

    began: float
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    doubted: bool = False

    def alive(self) -> None:
        """Say that the store has just answered something."""
        self.began = trio.current_time()
        self.judge(ill=self.doubted)

    def judge(self, *, ill: bool) -> None:
        """Wait on for as long as it takes, or only until the silence is long enough."""
        self.doubted = ill
        self.scope.deadline = self.began + SILENCE if ill else float("inf")


class Patience:
    """Calls on stores that clients wait for. One per node; the watcher tells it of every probe."""

    def __init__(self) -> None:
        self._waits: dict[str, set[Wait]] = defaultdict(set)
        self._ill: set[str] = set()

    def probed(self, location: str, ok: bool) -> None:
        """Take in the latest probe of a location: one that failed ends the waits that have been silent for long enough."""
        if ok:
            self._ill.discard(location)
        else:
            self._ill.add(location)
        for wait in self._waits[location]:
            wait.judge(ill=not ok)

    @contextmanager
    def waiting(self, location: str) -> Iterator[Wait]:
        """Wait for a store inside this context. Raises EngineUnavailable when it is not worth it any more."""
        wait = Wait(trio.current_time())
        wait.judge(ill=location in self._ill)
        self._waits[location].add(wait)
        try:
            with wait.scope:
                yield wait
        finally:
            self._waits[location].discard(wait)
        if wait.scope.cancelled_caught:
            raise EngineUnavailable(f"{location}: silent for {SILENCE:g} s, and to a probe")
