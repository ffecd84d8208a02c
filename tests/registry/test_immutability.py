"""Tags that never move: held against pushes, deletes, restores and races; and what the API lists of repositories and tags."""

import json
import re
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.api.frame import Problem
from node.api.immutability import expression, get_immutability, set_immutability
from node.api.repositories import get_repositories, get_tags, remove_tag
from node.api.tags import Means, restore_tag
from node.push.reading import OCI_MANIFEST
from node.records.removal import delete_repository
from node.web.failures import answer_to
from tests.cluster import Cluster, program
from tests.registry.world import MakeWorld, Region, digest_of, image

LOCKED = (409, "TAG_IMMUTABLE")


def means_of(region: Region) -> Means:
    return Means(region.registry.database, region.node.settings, region.registry.hints.publish)


async def lock(us: Region, name: str, *patterns: str) -> None:
    """Make tags of a namespace, or of a repository, immutable."""
    await set_immutability(
        means_of(us), {"patterns": list(patterns)}, namespace=name, repository=name if "/" in name else None
    )


async def put(us: Region, name: str, tag: str, body: bytes) -> Any:
    return await us.ask("PUT", f"/v2/{name}/manifests/{tag}", body, {"content-type": json.loads(body)["mediaType"]})


async def test_a_tag_that_never_moves(us: Region) -> None:
    """A tag that matches stays where it is: no push, delete or delete of its manifest changes it; the same push again is fine."""
    digest = await us.push_image("team/app", "v1", b"one")
    other = await us.push_image("team/app", "latest", b"two")
    one, two = [(await us.ask("GET", f"/v2/team/app/manifests/{which}")).body for which in (digest, other)]
    await lock(us, "team", "v*")
    assert (await put(us, "team/app", "v1", two)).failure == LOCKED
    assert (await us.ask("DELETE", "/v2/team/app/manifests/v1")).failure == LOCKED
    assert (await us.ask("DELETE", f"/v2/team/app/manifests/{digest}")).failure == LOCKED
    assert (await us.ask("GET", "/v2/team/app/manifests/v1")).headers["docker-content-digest"] == digest
    assert (await put(us, "team/app", "v1", one)).status == 201
    assert (await put(us, "team/app", "v2", two)).status == 201
    assert (await put(us, "team/app", "latest", one)).status == 201
    await lock(us, "team")
    assert (await put(us, "team/app", "v1", two)).status == 201


async def test_nothing_of_a_refused_push_stays(us: Region) -> None:
    """A push of several tags of which one never moves changes none of them, and is not in the audit log."""
    await us.push_image("team/app", "v1", b"one")
    other = await us.push_image("team/app", "latest", b"two")
    body = (await us.ask("GET", f"/v2/team/app/manifests/{other}")).body
    await lock(us, "team/app", "v1")
    before = await us.rows("SELECT count(*) FROM audit")
    reply = await us.ask(
        "PUT",
        f"/v2/team/app/manifests/{other}?tag=new&tag=v1",
        body,
        {"content-type": "application/vnd.oci.image.manifest.v1+json"},
    )
    assert reply.failure == LOCKED
    assert "v1" in reply.json["errors"][0]["message"]
    assert (await us.ask("HEAD", "/v2/team/app/manifests/new")).status == 404
    assert await us.rows("SELECT count(*) FROM audit") == before


async def test_patterns_come_before_the_first_push(us: Region) -> None:
    """After a rescue, and in a new organisation, they are set before clients may push; a name that none can have is refused."""
    await lock(us, "new", "v*")
    await us.push_image("new/app", "v1", b"one")
    moved = await us.push_image("new/app", "latest", b"two")
    body = (await us.ask("GET", f"/v2/new/app/manifests/{moved}")).body
    assert (await put(us, "new/app", "v1", body)).failure == LOCKED
    with pytest.raises(Problem) as refused:
        await lock(us, "Not A Name", "v*")
    assert refused.value.status == 400
    with pytest.raises(Problem) as refused:
        await lock(us, "none/such", "v*")
    assert refused.value.status == 404
    assert not await us.rows("SELECT FROM namespace WHERE name = 'none'")


async def test_patterns_of_a_repository_are_its_own(us: Region) -> None:
    """A repository's patterns hold there and nowhere else, beside those of its namespace."""
    for name in ("team/a", "team/b"):
        await us.push_image(name, "v1", b"one")
        await us.push_image(name, "w1", b"one")
    await lock(us, "team/a", "v*")
    await lock(us, "team", "w*")
    moved = {
        (name, tag): (await us.ask("DELETE", f"/v2/{name}/manifests/{tag}")).status
        for name in ("team/a", "team/b")
        for tag in ("v1", "w1")
    }
    assert moved == {("team/a", "v1"): 409, ("team/a", "w1"): 409, ("team/b", "v1"): 202, ("team/b", "w1"): 409}
    assert (await get_immutability(means_of(us), repository="team/a"))["patterns"] == ["v*"]


async def test_a_restore_does_not_move_it(us: Region) -> None:
    """What was restored is a move like any other."""
    first = await us.push_image("team/app", "v1", b"one")
    await us.push_image("team/app", "v1", b"two")
    await lock(us, "team", "*")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what the edge makes of it is what counts
        await restore_tag(means_of(us), "team/app", "v1", {"digest": first})
    assert answer_to(caught.value, "").status == 409


async def test_a_repository_goes_with_its_tags(us: Region) -> None:
    """A repository with immutable tags can be deleted whole."""
    await us.push_image("team/app", "v1", b"one")
    await lock(us, "team", "*")
    assert await delete_repository(us.registry.database, "team/app")


async def test_of_two_first_pushes_one_counts(world: MakeWorld) -> None:
    """Of two pushes of the same new tag at once, on two nodes, one counts and the other is refused."""
    us, eu = await world("us eu", "eu us")
    await us.push_image("team/app", "one", b"one")
    await us.push_image("team/app", "two", b"two")
    bodies = [(await us.ask("GET", f"/v2/team/app/manifests/{tag}")).body for tag in ("one", "two")]
    await lock(us, "team", "v*")
    for number in range(5):
        statuses: list[int] = []

        async def push(region: Region, body: bytes, tag: str, found: list[int]) -> None:
            found.append((await put(region, "team/app", tag, body)).status)

        async with trio.open_nursery() as nursery:
            for region, body in zip((us, eu), bodies, strict=True):
                nursery.start_soon(push, region, body, f"v{number}", statuses)
        assert sorted(statuses) == [201, 409]


@given(st.text("ab.*?-_", min_size=1, max_size=8), st.text("abc.-_", min_size=1, max_size=8))
def test_patterns(pattern: str, tag: str) -> None:
    """A star is any text, a question mark one character, and everything else itself."""

    def matches(left: str, right: str) -> bool:
        if not left:
            return not right
        if left[0] == "*":
            return matches(left[1:], right) or (bool(right) and matches(left, right[1:]))
        return bool(right) and left[0] in ("?", right[0]) and matches(left[1:], right[1:])

    assert (re.search(expression(pattern), tag) is not None) == matches(pattern, tag)


async def test_the_database_reads_patterns_alike(us: Region) -> None:
    """PostgreSQL takes a pattern for what Python takes it for."""
    for pattern, tag, expected in (
        ("v?.*", "v1.2", True), ("v?.*", "v1x2", False), ("v1", "v1.0", False), ("*-rc", "v1-rc", True), ("a.b", "axb", False),
    ):  # fmt: skip
        (row,) = await us.rows("SELECT $1::text ~ $2::text AS found", tag, expression(pattern))
        assert row["found"] is expected


@pytest.mark.parametrize("patterns", [["v 1"], ["[ab]"], [""], ["x" * 129], [f"t{n}" for n in range(51)]])
async def test_patterns_that_cannot_be_used(us: Region, patterns: list[str]) -> None:
    """What is no pattern, and too many of them, are refused by name."""
    with pytest.raises(Problem) as caught:
        await set_immutability(means_of(us), {"patterns": patterns}, namespace="team")
    assert caught.value.status == 400


async def test_lists(us: Region) -> None:
    """Repositories and tags are listed by name, in pages; a tag says whether it can move; one that is deleted is gone."""
    for name in ("team/a", "team/b", "other/c"):
        await us.push_image(name, "v1", b"one")
    await us.push_image("team/a", "v2", b"two")
    await lock(us, "team", "v1")
    first: Any = await get_repositories(means_of(us), None, "", 2)
    second: Any = await get_repositories(means_of(us), None, first["next"], 2)
    assert [line["name"] for line in (*first["repositories"], *second["repositories"])] == [
        "other/c",
        "team/a",
        "team/b",
    ]
    assert second["next"] is None
    own: Any = await get_repositories(means_of(us), "team", "", 10)
    assert [(line["name"], line["tags"]) for line in own["repositories"]] == [("team/a", 2), ("team/b", 1)]
    tags: Any = await get_tags(means_of(us), "team/a", "", 10)
    assert [(line["name"], line["immutable"]) for line in tags["tags"]] == [("v1", True), ("v2", False)]
    await remove_tag(means_of(us), "team/a", "v2")
    tags = await get_tags(means_of(us), "team/a", "v1", 10)
    assert tags["tags"] == []


async def test_the_command_line(cluster: Cluster, repository: str) -> None:
    """The command line locks tags, lists them, and says in one line that one of them cannot be deleted."""
    async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=30) as http:
        await http.post(f"/v2/{repository}/blobs/uploads/?digest={digest_of(b'{}')}", content=b"{}")
        body = json.dumps(image(b"{}"))
        kind = {"content-type": OCI_MANIFEST}
        assert (await http.put(f"/v2/{repository}/manifests/v1", content=body, headers=kind)).status_code == 201

    async def run(*words: str) -> tuple[int, str]:
        command = (*program(), *words, "--config", str(cluster.configuration_file))
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        return done.returncode, (done.stdout or done.stderr).decode()

    assert (await run("immutability", "set", repository, "v*"))[0] == 0
    code, shown = await run("tag", "list", repository, "--output", "json")
    assert (code, [line["immutable"] for line in json.loads(shown)["tags"]]) == (0, [True])
    assert await run("tag", "delete", repository, "v1") == (1, "the tag v1 can be neither moved nor deleted\n")
    assert (await run("immutability", "set", repository))[0] == 0
    assert (await run("tag", "delete", repository, "v1"))[0] == 0
