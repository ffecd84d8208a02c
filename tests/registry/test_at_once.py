"""Pulls that are answered at once are answered as they would be properly, and not at once when anything has changed."""

import secrets
from collections.abc import Callable
from math import inf
from time import time

import pytest
import trio
from attrs import evolve

from node.answers import Answer, Asker, Lasting, Request
from node.pull.blobs import blob_at_once
from node.pull.lasting import LONGEST
from node.pull.manifests import manifest_at_once
from node.routes import about_of
from replication.model import ClusterView, Drill, LocationState
from replication.ports import Forget, Placed
from tests.auth.people import Person, bearing, token_for
from tests.auth.test_table import filled
from tests.registry.world import MakeWorld, Region, digest_of, until

LARGE, SMALL = secrets.token_bytes(50_000), b"small"
ASKER = Asker("192.0.2.8", {})
ALL_WELL = ClusterView((), {"us": LocationState.ACTIVE}, {})


def at_once(region: Region, request: Request) -> Answer | None:
    lasting = region.routes.at_once(request)
    return None if lasting is None else lasting.answer


async def properly(region: Region, request: Request) -> Answer:
    about = about_of(request.path)
    assert about is not None
    return await region.routes._answer_about(request, region.routes._table[about.kind][request.method], about)


async def warm(world: MakeWorld, repository: str) -> tuple[Region, dict[str, Request]]:
    """Return a region in whose memory an image is, and what can be answered from there."""
    (us,) = await world("us", ceph=True, metadata_staleness=3600.0)
    us.node.scheduler.cluster = ALL_WELL
    digest = await us.push_image(repository, "v1", LARGE, SMALL)
    paths = {
        "manifest": f"/v2/{repository}/manifests/{digest}",
        "redirect": f"/v2/{repository}/blobs/{digest_of(LARGE)}",
        "small": f"/v2/{repository}/blobs/{digest_of(SMALL)}",
    }
    requests = {what: Request("GET", path) for what, path in paths.items()}
    await remember(us, requests)
    return us, requests


async def remember(us: Region, requests: dict[str, Request]) -> None:
    """See that all of them are answered at once, and as always."""

    async def alike() -> bool:
        # The push's own hints come by way of the database, and until then make everything out of date.
        answers = [(await properly(us, request), await properly(us, request))[1] for request in requests.values()]
        return [at_once(us, request) for request in requests.values()] == answers

    await until(alike)


async def test_requests(world: MakeWorld, repository: str) -> None:
    """Whatever is asked in whichever way: the same answer, or none at once."""
    us, requests = await warm(world, repository)
    etag = f'"{requests["manifest"].path.rpartition("/")[2]}"'
    seen = set()
    for request in requests.values():
        for method in ("GET", "HEAD"):
            for headers in ({}, {"range": "bytes=1-2"}, {"if-none-match": etag}, {"accept": "text/plain"}):
                asked = evolve(request, method=method, headers=headers)
                answer = at_once(us, asked)
                seen.add((method, answer is not None))
                assert answer is None or answer == await properly(us, asked)
    assert seen == {("GET", True), ("GET", False), ("HEAD", True), ("HEAD", False)}
    for path in (f"/v2/{repository}/manifests/v1", f"/v2/{repository}x/blobs/{digest_of(SMALL)}", "/v2/A/tags/list"):
        assert at_once(us, Request("GET", path)) is None


async def test_what_is_noted(world: MakeWorld, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit log hears of every pull, the spot checks of every decision to send somebody away."""
    us, requests = await warm(world, repository)
    sent: list[str] = []
    monkeypatch.setattr(us.registry, "note_redirect", lambda _repository, digest, _placement: sent.append(digest))
    us.node.auditlog._pulls.clear()
    for request in requests.values():
        lasting = us.routes.at_once(evolve(request, id="r-1", client="192.0.2.7"))
        assert lasting is not None
        assert lasting.again(ASKER, "r-2", trio.current_time()) is not None
    assert sent == [digest_of(LARGE)]
    lines = [(line.request, line.client, line.repository) for line in us.node.auditlog._pulls]
    assert lines == [("r-1", "192.0.2.7", repository), ("r-2", "192.0.2.8", repository)]


def begin_drill(us: Region) -> None:
    us.node.scheduler.cluster = evolve(ALL_WELL, drills={"us": Drill(60.0)})
    us.node.scheduler.cluster_at = trio.current_time()


ALL = {"manifest", "redirect", "small"}
CHANGES: dict[str, tuple[Callable[[Region, str], object], set[str], set[str]]] = {
    # what is answered at once afterwards, and what without deciding again
    "a manifest is deleted": (lambda us, name: us.registry.tell(Forget(name, None)), set(), set()),
    "a copy is placed": (lambda us, _: us.registry.tell(Placed(digest_of(LARGE), "us")), {"manifest", "small"}, set()),
    "no gate is free": (
        lambda us, _: setattr(us.registry.gates.pulls.places, "taken", us.registry.gates.pulls.places.share.places),
        set(),
        set(),
    ),
    "a location is paused": (
        lambda us, _: setattr(us.node.scheduler, "cluster", evolve(ALL_WELL, states={"us": LocationState.PAUSED})),
        {"manifest"},
        set(),
    ),
    "a drill begins": (lambda us, _: begin_drill(us), {"manifest", "small"}, set()),
    "a store lies": (lambda us, _: us.node.watcher.doubt("us"), {"manifest", "small"}, set()),
    "a transfer fails": (lambda us, _: us.node.watcher.report("us", False), ALL, set()),
    "a transfer is slow": (lambda us, _: us.node.watcher.report("us", True, 1.5), ALL, ALL),
    "a heartbeat says the same": (
        lambda us, _: setattr(us.node.scheduler, "cluster", evolve(ALL_WELL, states=dict(ALL_WELL.states))),
        ALL,
        ALL,
    ),
    "URLs are signed anew": (lambda us, _: setattr(us.registry, "clock", lambda: time() + 3600), ALL, ALL),
    "a manifest is pushed out": (
        lambda us, _: us.registry.memory.manifest_bytes._entries.clear(),
        {"redirect", "small"},
        {"redirect", "small"},
    ),
    "a blob is pushed out": (
        lambda us, _: us.registry.memory.small_blobs._entries.clear(),
        {"redirect", "manifest"},
        {"redirect", "manifest"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_changes(world: MakeWorld, repository: str, change: str) -> None:
    """What may have become another answer is decided again, or asked for properly, all else is given again as it was."""
    us, requests = await warm(world, repository)
    make, at_once_then, again_then = CHANGES[change]

    def lasting() -> dict[str, Lasting]:
        found = {what: us.routes.at_once(request) for what, request in requests.items()}
        return {what: each for what, each in found.items() if each is not None}

    def given(them: dict[str, Lasting]) -> dict[str, bytes]:
        found = {what: each.again(ASKER, "r-2", trio.current_time()) for what, each in them.items()}
        return {what: body for what, body in found.items() if body is not None}

    before = lasting()
    assert given(before) == {what: each.answer.body for what, each in before.items()}
    assert set(before) == ALL
    make(us, repository)
    assert set(given(before)) == again_then
    now = lasting()
    assert set(now) == at_once_then
    for what, each in now.items():
        assert each.answer == await properly(us, requests[what])


async def test_how_long(world: MakeWorld, repository: str) -> None:
    """For a few seconds, and not for longer than what it was decided by may be old, or than a URL is given."""
    us, requests = await warm(world, repository)
    memory = us.registry.memory
    lifetime = us.registry.settings.presign_lifetime
    for staleness, lives in ((3600.0, lifetime), (3600.0, 40), (0.25, lifetime)):
        memory.freshness.staleness = staleness
        us.registry.settings = evolve(us.registry.settings, presign_lifetime=lives)
        for what, decide in {"manifest": manifest_at_once, "redirect": blob_at_once}.items():
            await properly(us, requests[what])
            digest = requests[what].path.rpartition("/")[2]
            decided, now = decide(us.registry, requests[what], repository, digest), trio.current_time()
            assert decided is not None
            key = (repository, digest)
            asked_at = memory.manifests.asked_at(key) if what == "manifest" else memory.blobs.asked_at(key)
            longest = min(LONGEST, lives / 20) if what == "redirect" else LONGEST
            assert decided.until == pytest.approx(min(now + longest, asked_at + staleness), abs=0.1)
            assert decided.until <= asked_at + staleness
    lasting = us.routes.at_once(requests["manifest"])
    assert lasting is not None

    async def over() -> bool:
        return lasting.again(ASKER, "r-3", trio.current_time()) is None

    await until(over)


async def test_asked_again(world: MakeWorld, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been asked for anew, and says the same, lets an answer hold; anything else has it decided again."""
    us, requests = await warm(world, repository)
    registry, sent = us.registry, list[str]()
    memory = registry.memory
    monkeypatch.setattr(registry, "note_redirect", lambda _repository, digest, _placement: sent.append(digest))
    digest, small = (requests[what].path.rpartition("/")[2] for what in ("redirect", "small"))
    decided = {
        key: decide(registry, requests[what], repository, requests[what].path.rpartition("/")[2])
        for key, what, decide in (
            (digest, "redirect", blob_at_once),
            (small, "small", blob_at_once),
            ("manifest", "manifest", manifest_at_once),
        )
    }
    holds = {key: each.renewed for key, each in decided.items() if each is not None}
    assert set(holds) == set(decided)
    now = trio.current_time()
    sent.clear()
    assert all(renewed(now) > now for renewed in holds.values())
    assert sent == [digest]
    later = now + 2 * memory.freshness.staleness
    assert all(renewed(later) == -inf for renewed in holds.values())
    for key in (digest, small):
        found = memory.blobs.get((repository, key))
        assert found is not None
        memory.blobs.keep((repository, key), evolve(found, stays=1.0), later)
        assert holds[key](later) == min(later + LONGEST, later + memory.freshness.staleness)
        suspect = evolve(found, placements=tuple(evolve(copy, suspect=True) for copy in found.placements))
        memory.blobs.keep((repository, key), suspect, later)
        assert holds[key](later) == -inf
        memory.blobs.keep((repository, key), found, later)
    monkeypatch.setattr(registry, "clock", lambda: time() + registry.settings.presign_lifetime)
    assert holds[digest](later) == -inf
    assert holds[small](later) > later


async def test_what_is_asked_for_otherwise(world: MakeWorld, repository: str) -> None:
    """Part of a blob, or a manifest unless it is the same: that is another question."""
    us, requests = await warm(world, repository)
    etag = f'"{requests["manifest"].path.rpartition("/")[2]}"'
    for what, header in {"manifest": "if-none-match", "redirect": "range", "small": "range"}.items():
        lasting = us.routes.at_once(requests[what])
        assert lasting is not None
        assert lasting.again(Asker("", {header: etag}), "r-4", trio.current_time()) is None
        assert lasting.again(Asker("", {"accept": "x/y"}), "r-4", trio.current_time()) is not None
    known = us.routes.at_once(evolve(requests["manifest"], headers={"if-none-match": etag}))
    assert known is not None
    assert known.answer.status == 304
    assert known.again(ASKER, "r-5", trio.current_time()) is None


async def test_nothing_is_remembered(world: MakeWorld, repository: str) -> None:
    """With METADATA_STALENESS 0 every pull is asked properly."""
    (us,) = await world("us", metadata_staleness=0.0)
    digest = await us.push_image(repository, "v1", SMALL)
    for path in (f"manifests/{digest}", f"blobs/{digest_of(SMALL)}"):
        request = Request("GET", f"/v2/{repository}/{path}")
        assert (await properly(us, request)).status == 200
        assert at_once(us, request) is None


async def test_rights(world: MakeWorld) -> None:
    """At once only for a good token that was seen before, that says so for this repository, and that nothing has revoked."""
    (us,) = await filled(world, metadata_staleness=3600.0)
    reader, stranger = Person("reader"), Person("stranger")
    tag = await us.ask("GET", "/v2/private/app/manifests/v1", headers=reader.basic)
    path = f"/v2/private/app/manifests/{tag.headers['docker-content-digest']}"
    token = bearing(await token_for(us, reader, "repository:private/app:pull"))
    others = [
        {},
        reader.basic,
        {"authorization": "Bearer x"},
        {"authorization": "what"},
        bearing(await token_for(us, reader, "repository:public/app:pull")),
        bearing(await token_for(us, stranger, "repository:private/app:pull")),
    ]
    assert at_once(us, Request("GET", path, headers=token)) is None, "it was never verified"
    for headers in (token, *others):
        await us.ask("GET", path, headers=headers)
    us.node.scheduler.cluster = ALL_WELL
    asked = Request("GET", path, headers=token)

    def decided() -> Lasting:
        lasting = us.routes.at_once(asked)
        assert lasting is not None
        return lasting

    lasting = decided()
    given = [lasting.again(Asker("", headers), "r-1", trio.current_time()) is not None for headers in (token, *others)]
    assert given == [True, *[False] * len(others)]
    assert lasting.answer == await properly(us, asked)
    assert [pull.actor for pull in us.node.auditlog._pulls][-3:] == ["reader"] * 3
    for headers in others:
        assert at_once(us, Request("GET", path, headers=headers)) is None, headers
    access = us.registry.access
    assert access.parts is not None
    tokens, changes = access.parts.tokens, access.parts.changes
    clock, keys, latest = tokens._clock, tokens._keyring._public, changes._latest.copy()

    def nothing(why: str) -> None:
        assert at_once(us, asked) is None, why
        assert lasting.again(Asker("", token), "r-2", trio.current_time()) is None, why

    lasting, tokens._clock = decided(), lambda: time() + 86_400.0
    nothing("it has expired")
    tokens._clock = clock
    lasting, tokens._keyring._public = decided(), {}
    nothing("its key was revoked")
    tokens._keyring._public = keys
    lasting, changes._latest[True, "reader"] = decided(), changes.number + 1
    nothing("rights were taken away")
    changes._latest = latest
    assert decided().again(Asker("", token), "r-3", trio.current_time()) is not None
