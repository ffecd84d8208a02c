"""The table of permissions: every operation of the registry, by everybody, on private, public and missing repositories."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from attrs import frozen

from node.push.reading import OCI_MANIFEST
from tests.auth.people import ACCOUNTS, ROLES, bearing, settle, token_for
from tests.registry.world import LAYER, MakeWorld, Region, Reply, descriptor, digest_of, image

BLOB, SPARE, CONFIG = b"a layer", b"another layer", b'{"architecture": "amd64", "os": "linux"}'
IMAGE = image(CONFIG, BLOB)
ABSENT = digest_of(b"nobody has this")

PULL, PUSH, DELETE = "pull", "push", "delete"
RIGHTS: Mapping[str, frozenset[str]] = {
    "reader": frozenset({PULL}),
    "reader's application token": frozenset({PULL}),
    "application token by itself": frozenset({PULL}),
    "robot that may read": frozenset({PULL}),
    "writer": frozenset({PULL, PUSH, DELETE}),
    "member of a team that may write": frozenset({PULL, PUSH, DELETE}),
    "robot that may write": frozenset({PULL, PUSH, DELETE}),
    "admin": frozenset({PULL, PUSH, DELETE}),
    "organisation's admin": frozenset({PULL, PUSH, DELETE}),
}
"""What the roles may do to private/app and public/app; everybody may pull from the second."""
MAKERS = {"organisation's admin": frozenset({PULL, PUSH, DELETE}), "creator": frozenset({PULL, PUSH, DELETE})}
"""Who may do what to a repository of these organisations that is not there: pushing makes it."""


@frozen
class Operation:
    """An operation: what it needs, how it is asked, and what those get who may, by whether there is a repository."""

    name: str
    need: str
    method: str
    path: str
    there: int
    missing: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


def operations() -> Iterator[Operation]:
    blob, manifest = digest_of(BLOB), "v1"
    for method in ("GET", "HEAD"):
        yield Operation(f"{method} manifest by tag", PULL, method, f"manifests/{manifest}", 200, 404)
        yield Operation(f"{method} blob", PULL, method, f"blobs/{blob}", 200, 404)
        yield Operation(f"{method} blob that nobody has", PULL, method, f"blobs/{ABSENT}", 404, 404)
        yield Operation(f"{method} tags", PULL, method, "tags/list", 200, 404)
        yield Operation(f"{method} referrers", PULL, method, f"referrers/{ABSENT}", 200, 200)
    yield Operation("begin an upload", PUSH, "POST", "blobs/uploads/", 202, 202)
    yield Operation("upload in one", PUSH, "POST", f"blobs/uploads/?digest={digest_of(SPARE)}", 201, 201, SPARE)
    upload = "blobs/uploads/00000000-0000-0000-0000-000000000000"
    for method in ("GET", "PATCH", "DELETE"):
        yield Operation(f"{method} an upload that is not there", PUSH, method, upload, 404, 404)
    yield Operation("PUT an upload that is not there", PUSH, "PUT", f"{upload}?digest={ABSENT}", 404, 404)
    yield Operation("PUT manifest", PUSH, "PUT", "manifests/bad", 400, 400, b"{}", {"content-type": OCI_MANIFEST})
    yield Operation("DELETE tag that is not there", DELETE, "DELETE", "manifests/none", 404, 404)
    yield Operation("DELETE manifest that is not there", DELETE, "DELETE", f"manifests/{ABSENT}", 404, 404)
    yield Operation("DELETE blob that is not there", DELETE, "DELETE", f"blobs/{ABSENT}", 404, 404)


OPERATIONS = tuple(operations())


def rights(role: str, repository: str) -> frozenset[str]:
    """Return what a role may do to a repository, by the rule and not by the program."""
    organization, _, name = repository.partition("/")
    if organization not in ("private", "public"):
        return frozenset()
    if name == "none":
        return MAKERS.get(role, frozenset())
    return RIGHTS.get(role, frozenset()) | (frozenset({PULL}) if organization == "public" else frozenset())


def expected(role: str, operation: Operation, repository: str, *, by_token: bool) -> int:
    """Return the status that the table has."""
    if operation.need in rights(role, repository):
        return operation.missing if repository.endswith("/none") else operation.there
    return 401 if by_token or role == "nobody" else 403


async def filled(world: MakeWorld, *regions: str, **settings: Any) -> list[Region]:
    """Assemble a registry whose repositories have an image, v1."""
    made = await world(*(regions or ("us",)), **{**ACCOUNTS, "proxy_storage": True, **settings})
    await settle(made[0].registry.database)
    root = made[0]
    for repository in ("private/app", "public/app", "elsewhere/app"):
        who = "tenant" if repository.startswith("elsewhere") else "owner"
        token = await token_for(root, type(ROLES["reader"])(who), f"repository:{repository}:pull,push")  # type: ignore[misc]
        headers = bearing(token)
        for blob in (CONFIG, BLOB):
            target = f"/v2/{repository}/blobs/uploads/?digest={digest_of(blob)}"
            assert (await root.ask("POST", target, blob, headers)).status == 201
        await root.push_manifest(repository, "v1", IMAGE, **headers)
    return made


def told(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.code if reply.status >= 400 and reply.body else ""


@pytest.mark.parametrize("by_token", [False, True], ids=["basic", "token"])
async def test_the_table(world: MakeWorld, by_token: bool) -> None:
    """Everybody may do what their role allows to repositories of each kind, and nothing else, by a token as by Basic."""
    (us,) = await filled(world)
    wrong, lines = [], 0
    for role, person in ROLES.items():
        for repository in (
            "private/app",
            "public/app",
            "elsewhere/app",
            "private/none",
            "elsewhere/none",
            "nowhere/app",
        ):
            headers = {} if person is None else dict(person.basic)
            for operation in OPERATIONS:
                if by_token:
                    scope = f"repository:{repository}:pull,push,delete"
                    headers = bearing(await token_for(us, person, scope))
                reply = await us.ask(
                    operation.method,
                    f"/v2/{repository}/{operation.path}",
                    operation.body,
                    {**headers, **operation.headers},
                )
                wanted = expected(role, operation, repository, by_token=by_token)
                lines += 1
                if reply.status != wanted:
                    wrong.append(f"{role}: {operation.name} of {repository}: {told(reply)}, not {wanted}")
                if repository.endswith("/none"):
                    await us.registry.database.fetch("DELETE FROM repository WHERE name = $1", repository)
                    us.routes._made = type(us.routes._made)(100)
                    await us.node.access.open()
    assert not wrong, "\n".join(wrong)
    assert lines == len(ROLES) * 6 * len(OPERATIONS)


async def test_superusers_who_may_do_anything(world: MakeWorld) -> None:
    """A superuser administers the registry; what is in its repositories is theirs only where that was configured."""
    (us,) = await filled(world)
    (eu,) = await world("us", **{**ACCOUNTS, "superusers_full_access": True, "proxy_storage": True})
    root = ROLES["superuser"]
    assert root is not None
    for region, status in ((us, 403), (eu, 200)):
        assert (await region.ask("GET", "/v2/private/app/manifests/v1", headers=root.basic)).status == status
    token = await token_for(eu, root, "repository:private/app:pull,push")
    assert (await eu.ask("POST", "/v2/private/app/blobs/uploads/", headers=bearing(token))).status == 202
    assert await catalog(us, root.basic) == ["public/app"]
    assert await catalog(eu, root.basic) == ["elsewhere/app", "private/app", "public/app"]


async def catalog(region: Region, headers: Mapping[str, str]) -> list[str]:
    reply = await region.ask("GET", "/v2/_catalog", headers=headers)
    assert reply.status == 200, reply
    return list(reply.json["repositories"])


async def test_the_catalog(world: MakeWorld) -> None:
    """The catalog has what somebody may pull, by Basic and by a token that was asked for it."""
    (us,) = await filled(world)
    both = ["private/app", "public/app"]
    for role, person in ROLES.items():
        names = both if PULL in RIGHTS.get(role, frozenset()) else ["public/app"]
        token = await token_for(us, person, "registry:catalog:*")
        assert await catalog(us, bearing(token)) == names, role
        if person is not None:
            assert await catalog(us, person.basic) == names, role
    other = await us.ask("GET", "/v2/_catalog", headers=bearing(await token_for(us, ROLES["reader"])))
    assert other.status == 401
    assert 'scope="registry:catalog:*"' in other.headers["www-authenticate"]
    reply = await us.ask("GET", "/v2/_catalog?n=1&last=private/app", headers=ROLES["reader"].basic)  # type: ignore[union-attr]
    assert reply.json["repositories"] == ["public/app"]


async def test_mounts(world: MakeWorld) -> None:
    """A blob is mounted by who may pull it where it is; others upload it, and nobody learns whether it is there."""
    (us,) = await filled(world)
    writer = ROLES["writer"]
    assert writer is not None
    own = "repository:public/app:pull,push"
    digest = digest_of(b"only private/app has this")
    token = await token_for(us, writer, "repository:private/app:pull,push")
    target = f"/v2/private/app/blobs/uploads/?digest={digest}"
    assert (await us.ask("POST", target, b"only private/app has this", bearing(token))).status == 201

    def mount(source: str, what: str = digest) -> str:
        return f"/v2/public/app/blobs/uploads/?mount={what}&from={source}"

    narrow = await us.ask("POST", mount("private/app"), headers=bearing(await token_for(us, writer, own)))
    assert narrow.status == 401, "the token was not asked for the source"
    assert f'scope="{own} repository:private/app:pull"' in narrow.headers["www-authenticate"]
    foreign = await token_for(us, writer, own, "repository:elsewhere/app:pull")
    for what in (digest_of(CONFIG), digest, ABSENT):
        assert (await us.ask("POST", mount("elsewhere/app", what), headers=bearing(foreign))).status == 202
        assert (await us.ask("POST", mount("elsewhere/app", what), headers=writer.basic)).status == 202
    wide = await token_for(us, writer, f"{own} repository:private/app:pull")
    assert (await us.ask("POST", mount("private/app"), headers=bearing(wide))).status == 201
    assert (await us.ask("HEAD", f"/v2/public/app/blobs/{digest}", headers=writer.basic)).status == 200


async def test_what_is_pushed_belongs_to_somebody(world: MakeWorld) -> None:
    """Who makes a repository by a push administers it, and it is as public as the configuration says."""
    (us,) = await filled(world)
    creator = ROLES["creator"]
    assert creator is not None
    token = await token_for(us, creator, "repository:private/mine:pull,push")
    for _ in range(2):
        reply = await us.ask("POST", "/v2/private/mine/blobs/uploads/", headers=bearing(token))
        assert reply.status == 202
    assert await us.rows(
        "SELECT a.name, p.role FROM permission p JOIN account a ON a.id = p.account_id "
        "JOIN repository r ON r.id = p.repository_id WHERE r.name = 'private/mine' AND NOT r.public"
    ) == [{"name": "creator", "role": 3}]
    taken = await token_for(us, creator, "repository:private/taken:pull,push")
    owner = bearing(await token_for(us, ROLES["organisation's admin"], "repository:private/taken:pull,push"))
    assert (await us.ask("POST", "/v2/private/taken/blobs/uploads/", headers=owner)).status == 202
    refused = await us.ask("POST", "/v2/private/taken/blobs/uploads/", headers=bearing(taken))
    assert refused.status == 401, "somebody else made it meanwhile"
    assert descriptor(BLOB, LAYER)
