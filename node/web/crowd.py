"""Whose connections a node has: no address has all of them, and those that are too many are told so without taking anybody's place.

A connection too many is still let in: its first request may be a balancer's probe, which is always answered. But it may also say
nothing for as long as it likes. So there are only as many of them as it takes to tell everybody, and a new one takes the place of
the oldest of whoever has most.
"""

from attrs import define, field

from node.shares import Places, Sources
from node.web.eldest import Eldest
from node.web.waits import Socket, close

RESERVE = 64
"""Connections beyond MAXIMUM_CONNECTIONS: enough for every balancer's probes, and for telling the others why."""
STAY = 48
"""Of these, how many may stay. The rest is for those that come: who finds no room is not accepted, and pushes nobody out."""


@define(eq=False)
class Crowd:
    """Counts connections by the address that they come from. A listed proxy's are everybody's."""

    places: Places
    sources: Sources
    _of: dict[Socket, str] = field(factory=dict, init=False)
    _beyond: Eldest[Socket] = field(factory=Eldest, init=False)

    def enter(self, accepted: Socket, address: str) -> None:
        """Count a connection, which must `leave`. One of those that are too many already may be closed for it."""
        who = self.sources.of(address)
        if self.places.take(who):
            self._of[accepted] = who
            return
        self.places.refused(who)
        if len(self._beyond) >= STAY:
            close(self._beyond.pop())
        self._beyond.add(accepted, who)

    def is_beyond(self, accepted: Socket) -> bool:
        """Tell whether a connection is one too many."""
        return accepted in self._beyond

    def leave(self, accepted: Socket) -> None:
        """Count a connection no more. One that never entered was not counted."""
        who = self._of.pop(accepted, None)
        if who is None:
            self._beyond.discard(accepted)
        else:
            self.places.give_back(who)
