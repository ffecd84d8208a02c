"""Properties of the pure decisions about places: which copy to read, where to write, what is owed."""

from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st

from property_tests.strategies import boards, latencies, locations, placement_sets, preferences
from replication.model import Board, LocationHealth, LocationState, Placement, Verdict
from replication.policy import debt
from replication.sources import VERDICT_ORDER, choose_sources, health_of, may_redirect, standing
from replication.targets import choose_targets

Placements = tuple[Placement, ...]
states = st.dictionaries(locations, st.sampled_from(LocationState))


def pairs(chosen: Placements) -> list[tuple[Placement, Placement]]:
    return [(a, b) for place, a in enumerate(chosen) for b in chosen[place + 1 :]]


@given(placement_sets, preferences, boards())
def test_all_copies_and_only_copies_are_sources(
    placements: Placements, preference: tuple[str, ...], board: Board
) -> None:
    """Every copy is returned once, and never a location that holds none."""
    assert sorted(choose_sources(placements, preference, board), key=lambda p: p.location) == list(placements)


@given(placement_sets, preferences, boards(), st.randoms())
def test_the_same_copies_in_any_order_give_the_same_answer(
    placements: Placements, preference: tuple[str, ...], board: Board, random: object
) -> None:
    """Same input, same answer, however the copies are listed."""
    shuffled = list(placements)
    random.shuffle(shuffled)  # type: ignore[attr-defined] # a random.Random in Hypothesis' hands
    assert choose_sources(shuffled, preference, board) == choose_sources(placements, preference, board)


@given(placement_sets, preferences, boards())
def test_suspect_copies_come_last(placements: Placements, preference: tuple[str, ...], board: Board) -> None:
    """No suspect copy stands before one that is not."""
    assert all(a.suspect <= b.suspect for a, b in pairs(choose_sources(placements, preference, board)))


@given(placement_sets, preferences, boards())
def test_healthy_before_degraded_before_down(placements: Placements, preference: tuple[str, ...], board: Board) -> None:
    """Among copies that are equally trusted, the better verdict goes first."""
    for a, b in pairs(choose_sources(placements, preference, board)):
        if a.suspect == b.suspect:
            first, second = health_of(board, a.location).verdict, health_of(board, b.location).verdict
            assert VERDICT_ORDER[first] <= VERDICT_ORDER[second]


@given(placement_sets, preferences, boards())
def test_preferred_before_other(placements: Placements, preference: tuple[str, ...], board: Board) -> None:
    """Among copies that are equally trusted and well, the preferred location's goes first, whatever the latency."""
    for a, b in pairs(choose_sources(placements, preference, board)):
        same = a.suspect == b.suspect and health_of(board, a.location).verdict is health_of(board, b.location).verdict
        assert not (same and b.location == preference[0])


@given(placement_sets, preferences, boards())
def test_near_before_far(placements: Placements, preference: tuple[str, ...], board: Board) -> None:
    """Among other copies that are equally trusted and well, the lower latency goes first; an unknown one is far."""
    for a, b in pairs(choose_sources(placements, preference, board)):
        first, second = health_of(board, a.location), health_of(board, b.location)
        if a.suspect == b.suspect and first.verdict is second.verdict and a.location != preference[0]:
            assert second.latency is None or (first.latency is not None and first.latency <= second.latency)


@given(placement_sets, preferences, boards(), locations)
def test_one_more_good_copy_never_makes_the_answer_worse(
    placements: Placements, preference: tuple[str, ...], board: Board, extra: str
) -> None:
    """Another good copy takes its place in the order, moves no two others, and can only better the first choice."""
    assume(all(p.location != extra for p in placements))
    before = choose_sources(placements, preference, board)
    after = choose_sources([*placements, Placement(extra, "r/extra")], preference, board)
    assert tuple(p for p in after if p.location != extra) == before
    assert after[0].location == extra or after[0] == before[0]


@given(placement_sets, preferences, boards(), st.floats(-20, 20))
def test_nobody_is_sent_to_a_store_that_is_not_known_to_be_well(
    placements: Placements, preference: tuple[str, ...], board: Board, now: float
) -> None:
    """A redirect needs a good latest probe that is not overdue, a location that is not down, and a copy that is not suspect."""
    for placement in choose_sources(placements, preference, board):
        health = health_of(board, placement.location)
        if may_redirect(placement, board, now):
            assert health.probe_good
            assert health.fresh_until >= now
            assert health.verdict is not Verdict.DOWN
            assert not placement.suspect
        elif health.verdict is Verdict.HEALTHY and not placement.suspect:
            assert not health.probe_good or health.fresh_until < now


@given(placement_sets, preferences, boards(), st.data())
def test_the_same_standing_gives_the_same_answer(
    placements: Placements, preference: tuple[str, ...], board: Board, data: st.DataObject
) -> None:
    """Of all that a board says, its standing decides who is read and where clients are sent, whatever the probes measured since."""
    later = {
        name: evolve(health, latency=data.draw(latencies), fresh_until=data.draw(st.floats(-10, 10)), probed_at=1.0)
        for name, health in board.items()
    }
    moments = data.draw(st.tuples(st.floats(-20, 20), st.floats(-20, 20)))
    assume(standing(board, preference, moments[0]) == standing(later, preference, moments[1]))
    known = tuple(placement for placement in placements if placement.location in board)
    assert choose_sources(known, preference, board) == choose_sources(known, preference, later)
    for placement in known:
        assert may_redirect(placement, board, moments[0]) == may_redirect(placement, later, moments[1])


@given(preferences, states, boards(), st.none() | st.sets(locations))
def test_targets_are_active_allowed_and_preferred(
    preference: tuple[str, ...], states: dict[str, LocationState], board: Board, allowed: set[str] | None
) -> None:
    """Exactly the active, allowed locations of the preference, once each; better verdicts first, then its order."""
    targets = choose_targets(preference, states, board, allowed)
    assert set(targets) == {
        name for name in preference if states.get(name) is LocationState.ACTIVE and (allowed is None or name in allowed)
    }
    assert len(set(targets)) == len(targets)
    ranks = [(VERDICT_ORDER[health_of(board, name).verdict], preference.index(name)) for name in targets]
    assert ranks == sorted(ranks)


sets_of = st.frozensets(locations)


@given(sets_of, sets_of)
def test_debt_is_required_minus_present(required: frozenset[str], present: frozenset[str]) -> None:
    """What is owed together with what is there covers what is required, and owes nothing twice."""
    owed = debt(required, present)
    assert owed | present >= required
    assert not owed & present


def test_a_store_far_away_serves_while_the_preferred_one_is_down() -> None:
    """The preferred location does not win over its own illness."""
    board = {"us": LocationHealth("us", Verdict.DOWN), "eu": LocationHealth("eu", Verdict.HEALTHY, latency=0.3)}
    both = (Placement("us", "1"), Placement("eu", "2"))
    assert [p.location for p in choose_sources(both, ("us", "eu"), board)] == ["eu", "us"]
