"""Pulls that are answered at once are answered as they would be properly, and not at once when anything has changed."""

import secrets
from collections.abc import Callable
from time import time

import pytest
import trio
from attrs import evolve

from node.answers import Answer, Request
from node.routes import about_of
from replication.model import ClusterView, Drill, LocationState
from replication.ports import Forget, Placed
from tests.auth.people import Person, bearing, token_for
from tests.auth.test_table import filled
from tests.registry.world import MakeWorld, Region, digest_of, until

LARGE, SMALL = secrets.token_bytes(50_000), b"small"
ALL_WELL = ClusterView((), {"us": LocationState.ACTIVE}, {})


def at_once(region: Region, request: Request) -> Answer | None:
    return region.routes.at_once(request)


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
    """The audit log and the spot checks hear of it as often."""
    us, requests = await warm(world, repository)
    sent: list[str] = []
    monkeypatch.setattr(us.registry, "note_redirect", lambda _repository, digest, _placement: sent.append(digest))
    us.node.auditlog._pulls.clear()
    for request in requests.values():
        assert at_once(us, evolve(request, id="r-1", client="192.0.2.7"))
    assert sent == [digest_of(LARGE)]
    (line,) = us.node.auditlog._pulls
    assert (line.request, line.client, line.repository) == ("r-1", "192.0.2.7", repository)


def begin_drill(us: Region) -> None:
    us.node.scheduler.cluster = evolve(ALL_WELL, drills={"us": Drill(60.0)})
    us.node.scheduler.cluster_at = trio.current_time()


CHANGES: dict[str, tuple[Callable[[Region, str], object], set[str]]] = {
    "a manifest is deleted": (lambda us, name: us.registry.tell(Forget(name, None)), set()),
    "a copy is placed": (lambda us, _: us.registry.tell(Placed(digest_of(LARGE), "us")), {"manifest", "small"}),
    "no gate is free": (
        lambda us, _: setattr(us.registry.gates.pulls.places, "taken", us.registry.gates.pulls.places.share.places),
        set(),
    ),
    "a location is paused": (
        lambda us, _: setattr(us.node.scheduler, "cluster", evolve(ALL_WELL, states={"us": LocationState.PAUSED})),
        {"manifest"},
    ),
    "a drill begins": (
        lambda us, _: begin_drill(us),
        {"manifest", "small"},
    ),
    "a store lies": (lambda us, _: us.node.watcher.doubt("us"), {"manifest", "small"}),
    "a store fails": (lambda us, _: us.node.watcher.report("us", False), {"manifest", "small"}),
    "URLs are signed anew": (lambda us, _: setattr(us.registry, "clock", lambda: time() + 3600), {"manifest", "small"}),
    "bytes are pushed out": (lambda us, _: us.registry.memory.manifest_bytes._entries.clear(), {"redirect", "small"}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_changes(world: MakeWorld, repository: str, change: str) -> None:
    """What may have become another answer is not given at once any more, all else is."""
    us, requests = await warm(world, repository)
    make, left = CHANGES[change]
    make(us, repository)
    assert {what for what, request in requests.items() if at_once(us, request) is not None} == left


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
    answer = at_once(us, Request("GET", path, headers=token))
    assert answer is not None
    assert answer == await properly(us, Request("GET", path, headers=token))
    assert us.node.auditlog._pulls[-1].actor == us.node.auditlog._pulls[-2].actor == "reader"
    for headers in others:
        assert at_once(us, Request("GET", path, headers=headers)) is None, headers
    access = us.registry.access
    assert access.parts is not None
    tokens, changes = access.parts.tokens, access.parts.changes
    clock, tokens._clock = tokens._clock, lambda: time() + 86_400.0
    assert at_once(us, Request("GET", path, headers=token)) is None, "it has expired"
    tokens._clock = clock
    keys, tokens._keyring._public = tokens._keyring._public, {}
    assert at_once(us, Request("GET", path, headers=token)) is None, "its key was revoked"
    tokens._keyring._public = keys
    assert at_once(us, Request("GET", path, headers=token)) is not None
    changes._latest[True, "reader"] = changes.number + 1
    assert at_once(us, Request("GET", path, headers=token)) is None, "rights were taken away"
