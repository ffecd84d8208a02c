"""What may be said of an image's arrival, and of its durability: never better than the facts, never worse for one more copy."""

from typing import Any

from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st

from property_tests.strategies import LOCATIONS, boards
from replication.arrival import SETTLED, Status, arrival, as_copiers_see
from replication.closure import Closure, ClosureBlob, Debt, Need, Place
from replication.durable import refusal, required_by, satisfies, shortfalls, targets, usable
from replication.model import LocationHealth, LocationState, Verdict
from replication.plan import STALLED_AFTER
from replication.policy import Durability
from replication.sources import health_of
from replication.throughput import Meter

NOW = 100.0
HERE = "eu"
BETTER = (Status.IMPOSSIBLE, Status.NOT_REQUIRED, Status.STALLED, Status.PENDING, Status.PRESENT)
"""From worst to best."""

debts = st.none() | st.builds(
    Debt, st.integers(0, 12), st.none() | st.just("it burns"), st.none() | st.floats(0, 1e9), st.just(0), st.booleans()
)
copiers = st.lists(st.none() | st.dictionaries(st.sampled_from(LOCATIONS), st.floats(0, 1e9)), max_size=3).map(tuple)
durabilities = st.builds(Durability, st.integers(1, 6), st.booleans())


@st.composite
def blobs(draw: st.DrawFn, number: int) -> ClosureBlob:
    held = draw(st.dictionaries(st.sampled_from(LOCATIONS), st.booleans()))
    lacking = [at for at in LOCATIONS if not held.get(at)]
    needs = {at: Need(draw(st.booleans()), draw(debts)) for at in lacking}
    return ClosureBlob(f"sha256:{number:064x}", draw(st.integers(0, 1 << 30)), held, needs)


@st.composite
def closures(draw: st.DrawFn) -> Closure:
    places = {
        name: Place(
            name,
            draw(st.sampled_from(LocationState)),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.integers(0, 100)),
            draw(st.integers(0, 1 << 40)),
            draw(st.none() | st.floats(1, 1e9)),
        )
        for name in LOCATIONS
    }
    found = tuple(draw(blobs(number)) for number in range(draw(st.integers(0, 4))))
    return Closure("sha256:" + "f" * 64, found, places, 1e9)


def copied_by(closure: Closure, words: tuple[dict[str, float] | None, ...]) -> Closure:
    return evolve(closure, places={**closure.places, HERE: evolve(closure.places[HERE], copiers=words)})


arriving = st.builds(copied_by, closures(), copiers)


def rank(status: Status) -> int:
    return BETTER.index(status)


@given(arriving, boards())
def test_present_is_never_said_early(closure: Closure, board: dict[str, LocationHealth]) -> None:
    """`present` means that every blob of the closure has a verified copy in that very location, and that it may stay there."""
    answer = arrival(closure, HERE, board, NOW)
    complete = all(blob.held.get(HERE) is True for blob in closure.blobs)
    assert (answer.status is Status.PRESENT) == (complete and not closure.places[HERE].forbidden)


@given(arriving, boards())
def test_the_numbers_agree(closure: Closure, board: dict[str, LocationHealth]) -> None:
    """What is missing is counted exactly, and only what is coming has a place in a queue or an estimate."""
    answer = arrival(closure, HERE, board, NOW)
    missing = [blob for blob in closure.blobs if blob.held.get(HERE) is not True]
    assert (answer.missing_blobs, answer.missing_bytes) == (len(missing), sum(blob.size for blob in missing))
    assert (answer.blobs, answer.size) == (len(closure.blobs), sum(blob.size for blob in closure.blobs))
    assert (answer.estimate is not None) <= (answer.status is Status.PENDING)
    assert (answer.queue_position is not None) == (answer.status in (Status.PENDING, Status.STALLED))
    assert bool(answer.reason) == (answer.status not in (Status.PRESENT, Status.PENDING))


@given(arriving, boards(), st.data())
def test_one_more_copy_never_makes_it_worse(
    closure: Closure, board: dict[str, LocationHealth], data: st.DataObject
) -> None:
    """A good copy that arrives anywhere leaves the answer as good or better, and nothing more missing."""
    assume(closure.blobs)
    blob = data.draw(st.sampled_from(closure.blobs))
    at = data.draw(st.sampled_from(LOCATIONS))
    before = arrival(closure, HERE, board, NOW)
    after = arrival(closure.assuming(blob.digest, at), HERE, board, NOW)
    assert rank(after.status) >= rank(before.status)
    assert after.missing_bytes <= before.missing_bytes
    if before.estimate is not None and after.estimate is not None:
        assert after.estimate <= before.estimate


@given(arriving, boards())
def test_what_is_settled_does_not_depend_on_the_board(closure: Closure, board: dict[str, LocationHealth]) -> None:
    """Whether a wait is over is in the facts: the stores' health decides only between pending and stalled."""
    seen, blind = arrival(closure, HERE, board, NOW), arrival(closure, HERE, {}, NOW)
    assert seen.settled == blind.settled == (seen.status in SETTLED)
    assert not seen.settled or seen == blind


@given(arriving, boards())
def test_impossible_and_not_required_say_what_is_so(closure: Closure, board: dict[str, LocationHealth]) -> None:
    """`impossible` is a *never* or a blob without any copy; `not_required` a copy that nothing will bring."""
    status = arrival(closure, HERE, board, NOW).status
    place, missing = closure.places[HERE], closure.lacking(HERE)
    lost = any(not blob.held for blob in missing)
    assert (status is Status.IMPOSSIBLE) == (place.forbidden or lost)
    if status is Status.NOT_REQUIRED:
        assert not place.counts or any(not blob.needs[HERE].required for blob in missing)
    if status in (Status.PENDING, Status.STALLED):
        assert place.counts
        assert all(blob.needs[HERE].required for blob in missing)


@given(copiers, boards())
def test_down_is_what_all_who_copy_see_down(
    words: tuple[dict[str, float] | None, ...], board: dict[str, LocationHealth]
) -> None:
    """Whatever the node that is asked sees; its board is the answer where nobody is known to copy, or somebody does not say."""
    seen = as_copiers_see(board, words, NOW - 1e9)
    said = [word for word in words if word is not None]
    if not said or len(said) < len(words):
        assert seen == board
        return
    for name in LOCATIONS:
        assert (health_of(seen, name).verdict is Verdict.DOWN) == all(name in word for word in said)


def coming(**changes: Any) -> Closure:
    """A closure of one blob that is on its way from us to eu."""
    blob = ClosureBlob("sha256:" + "a" * 64, 1000, {"us": True}, {HERE: Need(required=True, debt=Debt())})
    place = Place(HERE, LocationState.ACTIVE, required=True, queue_position=3, bytes_ahead=4000, throughput=500.0)
    return Closure("sha256:" + "f" * 64, (evolve(blob, **changes),), {HERE: place}, 1e9)


def test_pending_has_numbers() -> None:
    """The estimate is what is missing and what goes before it, at the measured pace."""
    answer = arrival(coming(), HERE, {}, NOW)
    assert (answer.status, answer.estimate, answer.queue_position, answer.bytes_ahead) == (
        Status.PENDING,
        10.0,
        3,
        4000,
    )


def test_stalled_says_why_and_since_when() -> None:
    """A source that is down, a destination that is down or paused, only suspect copies, and many failures: each is said."""
    down = LocationHealth("us", Verdict.DOWN, since=NOW - 60, reason="connection refused")
    answer = arrival(coming(), HERE, {"us": down}, NOW)
    assert (answer.status, answer.last_error, answer.since) == (Status.STALLED, "connection refused", 1e9 - 60)
    answer = arrival(coming(held={"us": True, "ap": True}), HERE, {"us": down}, NOW)
    assert answer.status is Status.PENDING
    answer = arrival(coming(), HERE, {HERE: evolve(down, location=HERE)}, NOW)
    assert (answer.status, answer.reason, answer.since) == (Status.STALLED, "eu is down", 1e9 - 60)
    answer = arrival(coming(held={"us": False}), HERE, {}, NOW)
    assert answer.status is Status.STALLED
    assert "suspect" in answer.reason
    paused = coming()
    paused = evolve(paused, places={HERE: evolve(paused.places[HERE], state=LocationState.PAUSED)})
    assert "paused" in arrival(paused, HERE, {}, NOW).reason
    for attempts, status in ((STALLED_AFTER - 1, Status.PENDING), (STALLED_AFTER, Status.STALLED)):
        debt = Debt(attempts, "disk full", 123.0)
        answer = arrival(coming(needs={HERE: Need(required=True, debt=debt)}), HERE, {}, NOW)
        assert (answer.status, answer.last_error, answer.since) == (status, "disk full", 123.0)


@given(closures(), durabilities, st.sets(st.sampled_from(LOCATIONS)))
def test_durable_means_so_many_copies_of_every_blob(
    closure: Closure, durability: Durability, patterns: set[str]
) -> None:
    """A push is acknowledged only when each blob has its copies in places that count, and with `all` in every required one."""
    required = required_by(closure, patterns)
    counting = [name for name, place in closure.places.items() if place.counts]
    enough = all(
        sum(blob.present_in(at) for at in counting) >= durability.copies
        and (not durability.every or all(blob.present_in(at) for at in required))
        for blob in closure.blobs
    )
    assert satisfies(closure, durability, required) == enough


@given(closures(), durabilities, st.sets(st.sampled_from(LOCATIONS)))
def test_copies_in_the_chosen_locations_are_enough(
    closure: Closure, durability: Durability, patterns: set[str]
) -> None:
    """Whatever is possible is had by copying every blob into the chosen locations, which hold all required and no forbidden one."""
    states = {name: place.state for name, place in closure.places.items()}
    never = {name for name, place in closure.places.items() if place.forbidden}
    required = required_by(closure, patterns)
    chosen = targets(durability, required, closure.places)
    assert set(required) <= set(chosen) <= set(usable(states, never))
    if refusal(durability, states, never) is not None:
        return
    for blob in closure.blobs:
        for at in chosen:
            closure = closure.assuming(blob.digest, at)
    assert satisfies(closure, durability, required)
    assert shortfalls(closure, durability, required, chosen) == ()


@given(closures(), st.data())
def test_what_falls_short_is_said(closure: Closure, data: st.DataObject) -> None:
    """A closure that is not durable enough has something missing somewhere, unless the demand could never be met."""
    states = {name: place.state for name, place in closure.places.items()}
    never = {name for name, place in closure.places.items() if place.forbidden}
    asked = [Durability(copies, everywhere) for copies in range(1, 7) for everywhere in (False, True)]
    possible = [durability for durability in asked if refusal(durability, states, never) is None]
    assume(possible)
    durability = data.draw(st.sampled_from(possible))
    required = required_by(closure, ())
    found = shortfalls(closure, durability, required, targets(durability, required, closure.places))
    assert bool(found) == (not satisfies(closure, durability, required))
    assert all(short.blobs == 0 or 0 < short.blobs <= len(closure.blobs) for short in found)


spans = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.floats(0, 50), st.floats(0.1, 10)).map(lambda x: (x[0], x[1], x[1] + x[2])),
    min_size=1,
    max_size=20,
)


@given(spans)
def test_parallel_copies_share_their_seconds(copies: list[tuple[int, float, float]]) -> None:
    """The pace is between that of all bytes over all time in which any copy ran, give or take what the past counts less."""
    meter = Meter()
    for size, began, ended in copies:
        meter = meter.after(size, began, ended)
    union, until = 0.0, float("-inf")
    for _, began, ended in sorted(copies, key=lambda copy: copy[1]):
        union += max(0.0, ended - max(began, until))
        until = max(until, ended)
    assert meter.seconds <= union * (1 + 1e-9)
    total = sum(size for size, _, _ in copies)
    assert (meter.rate is None) == (meter.size == 0.0)
    assert meter.size <= total


def test_a_steady_pace_is_measured() -> None:
    """Sixteen copies of a megabyte, four at a time and each a second long, are four megabytes a second."""
    meter = Meter()
    for number in range(16):
        start = number // 4
        meter = meter.after(1_000_000, float(start), float(start + 1))
    assert meter.rate is not None
    assert 3_900_000 < meter.rate < 4_100_000
