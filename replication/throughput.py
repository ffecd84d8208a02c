"""How fast copies into a location have been: bytes over the time in which any copy ran, the recent past counting most. Pure."""

from collections.abc import Mapping

from attrs import define, field, frozen

HALF_LIFE = 60.0
"""Seconds of copying after which a measurement counts half."""

_MOST_SPANS = 64


@frozen
class Meter:
    """One location's measurement: decayed bytes over decayed seconds in which at least one copy ran."""

    size: float = 0.0
    seconds: float = 0.0
    spans: tuple[tuple[float, float], ...] = ()
    """The latest stretches of time in which copies ran, apart and in order: parallel copies share their seconds."""

    @property
    def rate(self) -> float | None:
        """Return bytes per second, None while nothing was measured."""
        return self.size / self.seconds if self.seconds > 0.0 and self.size > 0.0 else None

    def after(self, size: int, began: float, ended: float) -> "Meter":
        """Return the meter after a copy that brought `size` bytes between two times of one clock."""
        apart = [span for span in self.spans if span[1] < began or span[0] > ended]
        joined = [span for span in self.spans if span not in apart]
        merged = (min([began, *(a for a, _ in joined)]), max([ended, *(b for _, b in joined)]))
        fresh = max(0.0, (merged[1] - merged[0]) - sum(b - a for a, b in joined))
        decay = 0.5 ** (fresh / HALF_LIFE)
        spans = tuple(sorted([*apart, merged])[-_MOST_SPANS:])
        return Meter(self.size * decay + size, self.seconds * decay + fresh, spans)


@define(eq=False)
class Throughput:
    """One node's measurements, by destination."""

    _meters: dict[str, Meter] = field(factory=dict)

    def note(self, location: str, size: int, began: float, ended: float) -> None:
        """Take in a copy that brought `size` bytes into a location between two times of one clock."""
        self._meters[location] = self._meters.get(location, Meter()).after(size, began, ended)

    def rates(self) -> Mapping[str, float]:
        """Return bytes per second by location, where anything was measured."""
        return {location: rate for location, meter in self._meters.items() if (rate := meter.rate) is not None}
