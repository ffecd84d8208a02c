"""The rules of placement twice: what SQL says of registries that Hypothesis makes up is what plain sets say.

Closures with nested and sparse indexes, referrers and signature tags, several repositories and namespaces that share blobs and
manifests, policies that require, forbid and go by tags.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from attrs import frozen
from hypothesis import HealthCheck, Phase, given, settings

from engines.crossing import open_bridge
from node.records.closures import read_closure
from node.records.migrate import migrate
from node.records.postgres import Database, open_database
from node.records.residency import list_shared_blobs
from node.records.risk import risk_totals, tags_at_risk
from replication.arrival import arrival
from replication.model import LocationHealth, LocationState, Verdict
from replication.policy import NO_POLICY, Policy, TagRule
from tests.replication.plain import Manifest, blob_digest, blob_size, manifest_digest, namespace_of
from tests.replication.twins import Twins
from tests.replication.world import LOCATIONS
from tests.services import fresh_database, required

_EXAMPLES = 50 if os.environ.get("CI") == "true" else 25
REPOSITORIES = ("a/x", "a/y", "b/x", "c/x")
NAMESPACES = ("a", "b", "c")
BLOBS = 5
MANIFESTS = 6


@frozen(repr=False)
class Step:
    """A call of one of the twins' methods."""

    method: Callable[..., Awaitable[None]]
    arguments: tuple[Any, ...]

    async def take(self, twins: Twins) -> None:
        await self.method(twins, *self.arguments)

    def __repr__(self) -> str:
        return f"{self.method.__name__}{self.arguments}"


_ATTACHED = [f"sha256-{manifest_digest(n)[7:]}.{suffix}" for n in range(4) for suffix in ("sig", "att", "txt")]
_TAGS = st.sampled_from(["v1", "v1", "v2", "latest"]) | st.sampled_from(_ATTACHED)
_AT = st.sampled_from(LOCATIONS)
# Most of it in one repository, so that things meet.
_IN = st.sampled_from([*["a/x"] * 6, *REPOSITORIES])
_BLOB = st.integers(0, BLOBS - 1)
_MANIFEST = st.integers(0, MANIFESTS - 1)


@st.composite
def _manifests(draw: st.DrawFn) -> list[Manifest]:
    """Each names what has a lower number, as digests force it to."""
    made = []
    for number in range(MANIFESTS):
        lower = st.sets(st.integers(0, number - 1), max_size=2) if number else st.just(set())
        subject = st.none() | st.integers(0, number - 1) if number else st.none()
        made.append(
            Manifest(
                frozenset(draw(st.sets(_BLOB, max_size=2))),
                frozenset(draw(lower)),
                draw(subject),
            )
        )
    return made


@st.composite
def _policies(draw: st.DrawFn) -> Policy:
    never = frozenset(draw(st.sets(_AT, max_size=1)))
    others = st.sampled_from([at for at in LOCATIONS if at not in never])
    required = draw(st.none() | st.frozensets(others, min_size=1))
    places = st.frozensets(_AT, min_size=1, max_size=2)
    rules = st.builds(TagRule, st.sampled_from(["v*", "v*", "latest", "*", "sha256-*"]), places)
    return Policy(required, never, tuple(draw(st.lists(rules, max_size=2))))


def _step(method: Callable[..., Awaitable[None]], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.builds(Step, st.just(method), st.tuples(*arguments))


_TAGGED = st.sampled_from([None, None, "v1", "v1", "latest"]) | st.none() | _TAGS
_STATES = st.sampled_from([LocationState.ACTIVE, LocationState.ACTIVE, LocationState.PAUSED, LocationState.DRAINING])
_OTHER = st.lists(
    st.one_of(
        _step(Twins.put, _IN, _MANIFEST, _TAGGED),
        _step(Twins.put, _IN, _MANIFEST, _TAGGED),
        _step(Twins.push_blob, _IN, _BLOB, _AT),
        _step(Twins.mount, _IN, _IN, _BLOB),
        _step(Twins.delete_tag, _IN, _TAGS),
        _step(Twins.delete_manifest, _IN, _MANIFEST),
        _step(Twins.policy, st.sampled_from(NAMESPACES), _policies() | st.just(NO_POLICY)),
        _step(Twins.state, _AT, _STATES),
        _step(Twins.suspect, _BLOB, _AT),
        _step(Twins.pay, _AT),
        _step(Twins.wish, _IN, _MANIFEST, _AT, st.booleans()),
    ),
    max_size=15,
)


@st.composite
def _steps(draw: st.DrawFn) -> list[Step]:
    """A policy; then every manifest into one repository in any order, with anything between."""
    puts = [Step(Twins.put, ("a/x", number, draw(_TAGGED))) for number in range(MANIFESTS)]
    return [Step(Twins.policy, ("a", draw(_policies()))), *draw(st.permutations([*puts, *draw(_OTHER)]))]


async def check_debt_is_owed(twins: Twins) -> None:
    """What must be somewhere and is not is owed by the very step that made it so: no crash loses a replica's job."""
    rows = await twins.database.fetch("SELECT t.blob_id, l.name FROM task t JOIN location l ON l.id = t.location_id")
    owed = {(row["blob_id"], row["name"]) for row in rows}
    debt = {(twins.blobs[number], at) for number, at in twins.plain.debt()}
    assert debt <= owed, debt - owed


async def check_facts(twins: Twins) -> None:
    """Where every blob must be, and may not be, and which tags it belongs to."""
    plain = twins.plain
    for number, blob in twins.blobs.items():
        rows = await twins.database.fetch(
            "SELECT l.name, l.id IN (SELECT blob_required($1)) AS required, blob_forbidden($1, l.id) AS forbidden FROM location l",
            blob,
        )
        assert {row["name"] for row in rows if row["required"]} == plain.required(number), number
        assert {row["name"] for row in rows if row["forbidden"]} == plain.forbidden(number), number
        rows = await twins.database.fetch(
            "SELECT r.name AS repository, t.name FROM blob_tags($1) t JOIN repository r ON r.id = t.repository_id", blob
        )
        assert {(row["repository"], row["name"]) for row in rows} == plain.tags_of(number), number


async def check_residency(twins: Twins) -> None:
    """The report of what is where a namespace forbids it, whole and by location and namespace."""
    numbers = {blob_digest(number): number for number in twins.blobs}
    shared = twins.plain.shared()
    for at, namespace in [(None, None), *((at, None) for at in LOCATIONS), *((None, name) for name in NAMESPACES)]:
        page = await list_shared_blobs(twins.database, at, namespace, (0, 0), 100)
        found = {(numbers[b.digest], b.location, frozenset(b.forbidding), frozenset(b.allowing)) for b in page.blobs}
        assert len(found) == len(page.blobs)
        assert found == {
            line for line in shared if (at is None or line[1] == at) and (namespace is None or namespace in line[2])
        }


async def check_waits(twins: Twins) -> None:
    """What the wait API says of every manifest and tag in every location: the same blobs, what is missing, and the status."""
    plain = twins.plain
    board = {at: LocationHealth(at, Verdict.HEALTHY) for at in LOCATIONS}
    named = [(home, number, manifest_digest(number)) for home, number in plain.held]
    for home, number, reference in [*named, *((home, number, name) for (home, name), number in plain.tags.items())]:
        for referrers in (False, True):
            closure = await read_closure(twins.database, home, reference, referrers=referrers, replicate=True)
            assert closure is not None
            assert closure.digest == manifest_digest(number)
            blobs = plain.closure_blobs(home, number, referrers=referrers)
            assert {blob.digest for blob in closure.blobs} == {blob_digest(blob) for blob in blobs}
            assert closure.absent == len(plain.absent(home, number, referrers=referrers))
            for at in LOCATIONS:
                missing = {blob for blob in blobs if at not in plain.good(blob)}
                said = arrival(closure, at, board, 0.0)
                assert said.status is plain.status(home, number, at, referrers=referrers), (home, number, at, referrers)
                assert (said.missing_blobs, said.missing_bytes) == (len(missing), sum(map(blob_size, missing)))
                for blob in closure.lacking(at):
                    (lacking,) = [n for n in missing if blob_digest(n) == blob.digest]
                    # What the namespace forbids is not asked about blob by blob.
                    if at not in plain.policy(namespace_of(home)).never:
                        assert blob.needs[at].required == (at in plain.required(lacking))


async def check_risks(twins: Twins) -> None:
    """What would be lost with each location, from counts that are kept: the same as from scratch."""
    plain = twins.plain
    for total in await risk_totals(twins.database):
        sole = plain.sole(total.location)
        assert (total.blobs, total.size) == (len(sole), sum(map(blob_size, sole)))
        page = await tags_at_risk(twins.database, total.location, 100)
        assert {(tag.repository, tag.tag): tag.digest for tag in page.tags} == {
            tag: manifest_digest(number)
            for tag, number in plain.tags.items()
            if plain.closure_blobs(tag[0], number, referrers=True) & sole
        }


async def check_arrivals(twins: Twins) -> None:
    """Whether an image has arrived somewhere, as webhooks are told."""
    for home, number in twins.plain.held:
        blobs = twins.plain.closure_blobs(home, number, referrers=False)
        rows = await twins.database.fetch(
            "SELECT l.name, image_arrived(r.id, m.id, l.id) AS arrived FROM repository r, manifest m, location l "
            "WHERE r.name = $1 AND m.digest = $2",
            home,
            manifest_digest(number),
        )
        assert {row["name"] for row in rows if row["arrived"]} == {
            at for at in LOCATIONS if all(at in twins.plain.good(blob) for blob in blobs)
        }


async def check_all(twins: Twins) -> None:
    await check_facts(twins)
    await check_residency(twins)
    await check_waits(twins)
    await check_risks(twins)
    await check_arrivals(twins)
    await twins.reconcile()
    rows = await twins.database.fetch("SELECT t.blob_id, l.name FROM task t JOIN location l ON l.id = t.location_id")
    # A blob that may stay nowhere it is may be owed elsewhere besides.
    owed = {(row["blob_id"], row["name"]) for row in rows}
    assert {(twins.blobs[number], at) for number, at in twins.plain.debt()} <= owed


async def play(database: Database, manifests: list[Manifest], steps: list[Step]) -> None:
    twins = await Twins.make(database, manifests)
    for step in steps:
        await step.take(twins)
        await check_debt_is_owed(twins)
    await check_all(twins)


async def _run(uri: str, manifests: list[Manifest], steps: list[Step]) -> None:
    async with open_bridge(), open_database(uri) as database:
        await migrate(database)
        await play(database, manifests, steps)


_LAYERS = [frozenset({number}) for number in range(3)]
_LATE: dict[str, list[Manifest]] = {
    "child": [Manifest(_LAYERS[0]), Manifest(children=frozenset({0})), Manifest(children=frozenset({1}))],
    "referrer": [Manifest(_LAYERS[0]), Manifest(_LAYERS[1], subject=0), Manifest(_LAYERS[2], subject=1)],
    "signature": [Manifest(_LAYERS[0]), Manifest(_LAYERS[1], subject=0), Manifest(_LAYERS[2])],
}
"""Of each the second one joins the two others, whichever way they hang together."""


@pytest.mark.parametrize("case", _LATE)
def test_what_comes_late_brings_along_what_was_there(database_uri: str, case: str) -> None:
    """A manifest that joins a tag's closure owes what only hangs on it: children, referrers, signatures of it that came before."""
    top = 2 if case == "child" else 0
    last = f"sha256-{manifest_digest(1)[7:]}.sig" if case == "signature" else None
    steps = [
        Step(Twins.policy, ("a", Policy(frozenset({"us"}), tags=(TagRule("v*", frozenset({"ap"})),)))),
        Step(Twins.put, ("a/x", top, "v1")),
        Step(Twins.put, ("a/x", 2 - top, last)),
        Step(Twins.put, ("a/x", 1, None)),
    ]
    trio.run(_run, database_uri, _LATE[case], steps)


def test_sql_says_what_plain_sets_say() -> None:
    """Whatever was pushed, tagged, deleted, distrusted, copied and decreed."""
    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(_manifests(), _steps())
        def examples(manifests: list[Manifest], steps: list[Step]) -> None:
            trio.run(_run, uri, manifests, steps)

        examples()
