"""What the simulated database tells of closures: of one blob, and of an image."""

from collections.abc import Iterable

from property_tests.memory_truth import Truth
from replication.closure import Closure, ClosureBlob, Debt, Need, Place


def closure_of_blob(truth: Truth, blob: int) -> Closure:
    """Return a closure of one blob; a location requires it where any namespace that links it does."""
    required, forbidden = truth.required(blob), truth.forbidden(blob)
    return _closure(truth, truth.blobs[blob].digest, [blob], required, forbidden)


def closure_of_image(truth: Truth, digest: str) -> Closure | None:
    """Return the closure of a manifest, as its namespace sees the locations; None when it is not there any more."""
    made = truth.tags.manifests.get(digest)
    if made is None:
        return None
    return _closure(truth, digest, sorted(made.blobs), *truth.rules(made.namespace))


def _closure(
    truth: Truth, digest: str, blobs: Iterable[int], required: frozenset[str], forbidden: frozenset[str]
) -> Closure:
    places = {at: Place(at, state, at in forbidden, at in required) for at, state in truth.states.items()}
    return Closure(digest, tuple(_blob(truth, blob) for blob in blobs), places, truth.now())


def _blob(truth: Truth, blob: int) -> ClosureBlob:
    known, required = truth.blobs[blob], truth.required(blob)
    held = {p.location: not p.suspect for p in truth.sources(blob)}
    needs = {at: Need(at in required, _debt(truth, blob, at)) for at in truth.states if not held.get(at)}
    return ClosureBlob(known.digest, known.size, held, needs)


def _debt(truth: Truth, blob: int, at: str) -> Debt | None:
    task = truth.tasks.get((blob, at))
    return None if task is None else Debt(task.attempts, task.error, None, task.priority)
