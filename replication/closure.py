"""A manifest's closure as facts: which blobs it has, where each one is, and what is owed of it to the locations asked about. Pure.

The facts of one moment of the database; what they mean is decided in `arrival.py` and `durable.py`.
"""

from collections.abc import Mapping

from attrs import Factory, evolve, field, frozen

from replication.model import LocationState

COUNTING = frozenset({LocationState.ACTIVE, LocationState.PAUSED})
"""Only in such locations is a copy meant to stay."""


@frozen
class Debt:
    """The task that owes a blob to a location. `failing_since` is POSIX seconds, None while nothing failed."""

    attempts: int = 0
    last_error: str | None = None
    failing_since: float | None = None
    priority: int = 0
    leased: bool = False
    """A node is copying it now."""


@frozen
class Need:
    """What a location that lacks a blob has of it instead: whether it must get a copy, and the task for that, if there is one."""

    required: bool
    debt: Debt | None = None


@frozen
class ClosureBlob:
    """One blob: bytes, where it is (True: present, False: suspect), and its need in every asked location that lacks it."""

    digest: str
    size: int
    held: Mapping[str, bool] = Factory(dict)
    needs: Mapping[str, Need] = Factory(dict)

    def present_in(self, location: str) -> bool:
        """Return whether the location has a verified copy that nobody distrusts."""
        return self.held.get(location, False)


@frozen
class Place:
    """A location that was asked about, as this closure's namespace sees it."""

    name: str
    state: LocationState
    forbidden: bool = False
    """The namespace's policy says *never*."""
    required: bool = False
    """The namespace itself requires its blobs to be here."""
    queue_position: int = 0
    """Copies of other images into this location that go before the last missing blob of this closure."""
    bytes_ahead: int = 0
    """Their bytes."""
    throughput: float | None = None
    """Bytes per second that copies into this location have brought lately, None where nobody has measured."""
    copiers: tuple[Mapping[str, float] | None, ...] = ()
    """The living nodes that copy into this location because they prefer it: which locations each sees down, with the POSIX seconds
    since when; None: it does not say. Where there are none, whoever can helps."""

    @property
    def counts(self) -> bool:
        """Return whether a copy here is meant to stay."""
        return self.state in COUNTING and not self.forbidden


@frozen
class Closure:
    """The closure of the manifest `digest`, as the database had it at `now` (its clock, POSIX seconds)."""

    digest: str
    blobs: tuple[ClosureBlob, ...] = field(repr=False)
    places: Mapping[str, Place]
    now: float
    absent: int = 0
    """Children that a sparse index names and the repository has not: nothing is known of their blobs."""

    def lacking(self, location: str) -> tuple[ClosureBlob, ...]:
        """Return the blobs that are not present in a location."""
        return tuple(blob for blob in self.blobs if not blob.present_in(location))

    def assuming(self, digest: str, location: str) -> "Closure":
        """Return the closure as it would be if this blob were present there: what a hint says, until somebody looks."""
        blobs = tuple(
            evolve(
                blob,
                held={**blob.held, location: True},
                needs={at: need for at, need in blob.needs.items() if at != location},
            )
            if blob.digest == digest
            else blob
            for blob in self.blobs
        )
        return evolve(self, blobs=blobs)
