"""Two tenants of one registry who know each other's names, digests and ids, and try what they can with them.

What a tenant may not do by name `tests/auth/test_table.py` and `tests/api/test_rights.py` hold, for every operation. Here somebody
reaches for what is another's from within what is their own, and nobody learns what is there from how they are refused.
"""

import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import trio
from attrs import frozen

from node.api.openapi import PREFIX
from node.api.operations import Right
from node.api.table import OPERATIONS
from node.api.tags import Means, restore_tag
from node.auth.linking import Where
from node.push.reading import OCI_INDEX, OCI_MANIFEST
from node.records.accounts import find_account
from node.records.reconcile import PostgresRounds
from replication.reconciler import ReconcilerSettings, backfill
from tests.api.conftest import MakeWaiters, make_waiters
from tests.api.test_rights import app_of, harmless
from tests.auth.people import ROLES, Person, bearing, settled, token_for
from tests.auth.test_oidc import settings_of
from tests.auth.test_table import ABSENT, BLOB, CONFIG, IMAGE, filled
from tests.registry.conftest import database, migrated_uri, world
from tests.registry.world import LAYER, Body, MakeWorld, Region, Reply, descriptor, digest_of, image, index

__all__ = ["database", "make_waiters", "migrated_uri", "world"]

OWNER, TENANT = Person("owner"), Person("tenant")
"""The first has private/app, the second elsewhere/app."""
SECRET = b"a layer that only private/app has"
PRIVATE = image(CONFIG, SECRET)
THEIRS = digest_of(json.dumps(PRIVATE).encode())


@frozen
class Api:
    """The API, asked by one person."""

    http: httpx.AsyncClient
    person: Person

    async def ask(self, method: str, path: str, status: int = 200, **body: Any) -> Any:
        answer = await self.http.request(
            method, PREFIX + path, json=body if method in ("PUT", "POST") else None, headers=self.person.basic
        )
        assert answer.status_code == status, (method, path, answer.text)
        return answer.json()


@pytest.fixture
async def us(world: MakeWorld) -> Region:
    """A registry where both have an image, and private/app one more, with a layer that nobody else has.

    It asks the database for nothing of its own accord while a test counts its statements.
    """
    (made,) = await filled(world, superusers=("chief",), metadata_staleness=3600.0)
    headers = await logged_in(made, OWNER, "private/app")
    target = f"/v2/private/app/blobs/uploads/?digest={digest_of(SECRET)}"
    assert (await made.ask("POST", target, SECRET, headers)).status == 201
    await made.push_manifest("private/app", "secret", PRIVATE, **headers)
    await made.node.access.open()
    return made


@pytest.fixture
async def http(us: Region) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as made:
        yield made


async def logged_in(region: Region, person: Person, *repositories: str) -> dict[str, str]:
    scopes = [f"repository:{name}:pull,push,delete" for name in repositories]
    return bearing(await token_for(region, person, *scopes))


def told(reply: Reply, *names: str) -> tuple[int, str]:
    """Return an answer without what it repeats of the request."""
    text = reply.body.decode()
    for name in names:
        text = text.replace(name, "X")
    return reply.status, text


@pytest.mark.parametrize("who", ["nobody", "stranger"])
async def test_refusals_tell_nothing(http: httpx.AsyncClient, who: str) -> None:
    """Every operation of the API is refused in the same words whether what it is about exists or not."""
    person = ROLES[who]
    different = []
    for operation in OPERATIONS:
        if operation.right in (Right.NOTHING, Right.USER):
            continue
        answers = set()
        for namespace, name in (("private", "app"), ("private", "none"), ("nowhere", "app")):
            path = harmless(operation).replace("private/app", f"{namespace}/{name}")
            path = path.replace("/private", f"/{namespace}")
            answer = await http.request(
                operation.method, path, content="no JSON", headers=person.basic if person else {}
            )
            document = {key: value for key, value in answer.json().items() if key != "request_id"}
            text = json.dumps(document).replace(f"{namespace}/{name}", "X").replace(namespace, "X")
            answers.add((answer.status_code, text))
        if len(answers) > 1:
            different.append((operation.id, answers))
    assert not different


async def test_blobs_that_are_warm(us: Region) -> None:
    """A digest that this node has just served from another's repository is as unknown in one's own as one that nobody has.

    The same words, for the same work: no memory of another's repository is looked at.
    """
    owner, tenant = await logged_in(us, OWNER, "private/app"), await logged_in(us, TENANT, "elsewhere/app")
    both = (digest_of(SECRET), ABSENT)
    for kind, known in (("blobs", both), ("manifests", (THEIRS, ABSENT))):
        for method in ("GET", "HEAD"):
            assert (await us.ask(method, f"/v2/private/app/{kind}/{known[0]}", headers=owner)).status == 200
            seen = []
            for digest in known:
                path = f"/v2/elsewhere/app/{kind}/{digest}"
                trips, reply = await us.trips(partial(us.ask, method, path, headers=tenant))
                seen.append((told(reply, digest), reply.outcome, trips))
            assert seen[0] == seen[1]
            assert seen[0][0][0] == 404
    for source in ("", "&from=elsewhere/app"):
        for digest in both:
            reply = await us.ask("POST", f"/v2/elsewhere/app/blobs/uploads/?mount={digest}{source}", headers=tenant)
            assert reply.status == 202


@pytest.mark.parametrize("durability", [None, "all"])
async def test_manifests_of_another_s_blobs(us: Region, durability: str | None) -> None:
    """A manifest or an index that names another's blobs or manifests is refused as one that names what nobody has."""
    tenant = await logged_in(us, TENANT, "elsewhere/app")
    waits: Mapping[str, str] = {} if durability is None else {"antipode-durability": durability}
    answers = []
    for digest in (digest_of(SECRET), ABSENT):
        document = image(CONFIG, BLOB)
        document["layers"].append({**descriptor(SECRET, LAYER), "digest": digest})
        body = json.dumps(document).encode()
        headers = {**tenant, **waits, "content-type": OCI_MANIFEST}
        answers.append(told(await us.ask("PUT", "/v2/elsewhere/app/manifests/v2", body, headers), digest))
    for digest in (THEIRS, ABSENT):
        child = {**descriptor(json.dumps(PRIVATE).encode(), OCI_MANIFEST), "digest": digest}
        body = json.dumps(index([child], OCI_INDEX)).encode()
        headers = {**tenant, **waits, "content-type": OCI_INDEX}
        answers.append(told(await us.ask("PUT", "/v2/elsewhere/app/manifests/v3", body, headers), digest))
    assert {status for status, _ in answers} == {404}
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]


async def test_what_is_attached(us: Region) -> None:
    """A signature on another's manifest is listed in one's own repository only, and theirs are not listed there."""
    owner, tenant = await logged_in(us, OWNER, "private/app"), await logged_in(us, TENANT, "elsewhere/app")
    subject = descriptor(json.dumps(PRIVATE).encode(), OCI_MANIFEST)
    attached = image(CONFIG, BLOB, subject=subject)
    mine = await us.push_manifest("elsewhere/app", "mine", attached, **tenant)
    other = await us.push_manifest("private/app", "other", {**attached, "annotations": {"by": "owner"}}, **owner)
    for name, headers, expected in (("elsewhere/app", tenant, mine), ("private/app", owner, other)):
        listed = await us.ask("GET", f"/v2/{name}/referrers/{THEIRS}", headers=headers)
        assert [line["digest"] for line in listed.json["manifests"]] == [expected]


async def test_another_s_upload(us: Region) -> None:
    """An upload is known in its own repository only, and there to those alone who may push."""
    owner, tenant = await logged_in(us, OWNER, "private/app"), await logged_in(us, TENANT, "elsewhere/app")
    begun = await us.ask("POST", "/v2/private/app/blobs/uploads/", headers=owner)
    upload = begun.location.rpartition("/")[2]
    nobody_s = "00000000-0000-0000-0000-000000000000"
    for method, body in (("GET", b""), ("PATCH", b"x"), ("PUT", b""), ("DELETE", b"")):
        answers = []
        for one in (upload, nobody_s):
            path, _, state = one.partition("?")
            query = f"?digest={digest_of(b'x')}" + (f"&{state}" if state else "")
            reply = await us.ask(method, f"/v2/elsewhere/app/blobs/uploads/{path}{query}", body, tenant)
            answers.append(told(reply, path))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404
    assert (await us.ask("PATCH", begun.location, b"still mine", owner)).status == 202


async def test_an_upload_that_another_writes(us: Region) -> None:
    """Whoever knows the id of another's upload does not cut off who writes it, by no request to a repository of their own."""
    owner, tenant = await logged_in(us, OWNER, "private/app"), await logged_in(us, TENANT, "elsewhere/app")
    begun = await us.ask("POST", "/v2/private/app/blobs/uploads/", headers=owner)
    upload = begun.location.partition("?")[0].rpartition("/")[2]
    arriving, answers = Body(b"still mine" * 100, chunk=100, pause_at=500), []

    async def write() -> None:
        answers.append(await us.ask("PATCH", begun.location, arriving, owner))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await arriving.paused.wait()
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            path = f"/v2/elsewhere/app/blobs/uploads/{upload}?digest={digest_of(b'x')}"
            assert (await us.ask(method, path, b"x" if method in ("PATCH", "PUT") else b"", tenant)).status == 404
        arriving.go_on.set()
    assert [answer.status for answer in answers] == [202]
    assert (await us.ask("PATCH", f"/v2/elsewhere/app/blobs/uploads/{upload}", b"x", tenant)).status == 404
    digest = digest_of(b"still mine" * 100)
    assert (await us.ask("PUT", f"{answers[0].location}&digest={digest}", headers=owner)).status == 201


async def test_tags_of_another(us: Region, http: httpx.AsyncClient) -> None:
    """History, restoring and waiting know one's own repository only, whatever digest is named."""
    tenant, owner = Api(http, TENANT), Api(http, OWNER)
    for digest in (THEIRS, ABSENT):
        await tenant.ask("POST", "/repository/elsewhere/app/tag/v1/restore", 404, digest=digest)
        await tenant.ask("GET", f"/repository/elsewhere/app/manifest/{digest}/replication?location=us", 404)
    await tenant.ask("GET", "/repository/elsewhere/app/tag/secret/history", 404)
    assert (await owner.ask("GET", "/repository/private/app/tag/secret/history"))["history"]
    assert (await owner.ask("GET", f"/repository/private/app/manifest/{THEIRS}/replication?location=us"))["blobs"] == 2


async def test_ids_of_another(us: Region, http: httpx.AsyncClient) -> None:
    """Tokens, default permissions, robots, teams, webhooks and deliveries of another's are not there in one's own namespace."""
    tenant, owner = Api(http, TENANT), Api(http, OWNER)
    token = await owner.ask("POST", "/namespace/owner/token", title="laptop")
    default = await owner.ask("POST", "/namespace/private/default-permission", role="read", team="writers")
    hook: dict[str, Any] = {"url": "https://hooks.example.com", "events": ["pushed"]}
    await owner.ask("PUT", "/namespace/private/webhook/theirs", **hook)
    await tenant.ask("PUT", "/namespace/elsewhere/webhook/mine", **hook)
    await us.push_manifest("private/app", "again", IMAGE, **await logged_in(us, OWNER, "private/app"))
    (delivery,) = (await owner.ask("GET", "/namespace/private/webhook/theirs/delivery"))["deliveries"]
    for method, path in (
        ("DELETE", f"/namespace/tenant/token/{token['id']}"),
        ("DELETE", f"/namespace/elsewhere/default-permission/{default['id']}"),
        ("POST", "/namespace/elsewhere/robot/writer/token"),
        ("DELETE", "/namespace/elsewhere/robot/writer"),
        ("DELETE", "/namespace/elsewhere/robot/private+writer"),
        ("GET", "/organization/elsewhere/team/writers/member"),
        ("PUT", "/organization/elsewhere/team/writers/member/tenant"),
        ("GET", "/namespace/elsewhere/webhook/theirs"),
        ("DELETE", "/namespace/elsewhere/webhook/theirs"),
        ("POST", f"/namespace/elsewhere/webhook/mine/redeliver?delivery={delivery['id']}"),
    ):
        await tenant.ask(method, path, 404)
    await tenant.ask("PUT", "/repository/elsewhere/app/permission/team/writers", 404, role="write")
    assert (await tenant.ask("GET", "/namespace/elsewhere/webhook/mine/delivery?after=0"))["deliveries"] == []
    assert (await tenant.ask("GET", "/namespace/elsewhere/webhook"))["webhooks"][0]["name"] == "mine"
    assert (await owner.ask("GET", "/namespace/private/webhook"))["webhooks"][0]["name"] == "theirs"
    assert len((await owner.ask("GET", "/namespace/owner/token"))["tokens"]) == 1
    assert len((await owner.ask("GET", "/namespace/private/default-permission"))["defaults"]) == 1


async def test_groups_of_another(world: MakeWorld) -> None:
    """Whoever may say which group decides in their own organisation says nothing in another's, and gets nothing there by it."""
    oidc = settings_of("https://i.test", group_claim="groups")
    (made,) = await settled(world, authentication_type="OIDC", oidc=oidc, team_syncing=True, admins_sync_teams=True)
    await made.node.access.open()
    async with httpx.AsyncClient(transport=app_of(made), base_url="http://registry.test") as client:
        tenant, owner = Api(client, TENANT), Api(client, OWNER)
        await owner.ask("PUT", "/organization/private/team/writers/syncing", group="theirs")
        for method, status in (("PUT", 403), ("DELETE", 403)):
            await tenant.ask(method, "/organization/private/team/writers/syncing", status, group="mine")
        for method in ("PUT", "DELETE"):
            await tenant.ask(method, "/organization/elsewhere/team/writers/syncing", 404, group="theirs")
        await tenant.ask("PUT", "/organization/elsewhere/team/mine")
        await tenant.ask("PUT", "/organization/elsewhere/team/mine/syncing", group="theirs")
        parts = made.node.access.parts
        assert parts is not None
        assert parts.sign_in is not None
        teams = parts.sign_in._teams
        account = await find_account(made.registry.database, "stranger")
        assert teams is not None
        assert account is not None
        await teams.follow(account, await teams.standing(account), {"mine"}, Where())
        assert (await owner.ask("GET", "/organization/private/team/writers/member"))["members"] == []
        await teams.follow(account, await teams.standing(account), {"theirs"}, Where())
        for api, organization, team in ((owner, "private", "writers"), (tenant, "elsewhere", "mine")):
            listed = await api.ask("GET", f"/organization/{organization}/team/{team}/member")
            assert [line["name"] for line in listed["members"]] == ["stranger"]
        theirs = (await tenant.ask("GET", "/namespace/elsewhere/audit"))["lines"]
        assert {line["namespace"] for line in theirs} == {"elsewhere"}


async def test_the_audit_log_of_another(us: Region, http: httpx.AsyncClient) -> None:
    """Pages and filters of the audit log never lead out of what one may read."""
    tenant, owner = Api(http, TENANT), Api(http, OWNER)
    theirs = (await owner.ask("GET", "/namespace/private/audit"))["lines"]
    assert theirs
    after = max(int(line["id"]) for line in theirs) + 1
    for path in ("/namespace/elsewhere/audit", "/repository/elsewhere/app/audit"):
        for query in (f"?before={after}&n=500", "?actor=owner", "?action=push"):
            lines = (await tenant.ask("GET", path + query))["lines"]
            assert {(line["namespace"], line["repository"]) for line in lines} <= {("elsewhere", "elsewhere/app")}
    assert (await tenant.ask("GET", "/namespace/elsewhere/audit?repository=private/app"))["lines"] == []
    await tenant.ask("GET", "/repository/elsewhere/app/audit?repository=private/app", 400)
    await tenant.ask("GET", "/namespace/elsewhere/audit?namespace=private", 400)


async def test_a_name_that_changes_hands(us: Region, http: httpx.AsyncClient) -> None:
    """Whoever gets the name of an organisation that is gone gets nothing of it: no webhook, no login, no line of the audit log."""
    tenant, owner = Api(http, TENANT), Api(http, OWNER)
    hook: dict[str, Any] = {"url": "https://hooks.example.com", "events": ["pushed"]}
    await tenant.ask("PUT", "/organization/acme")
    old = Person("acme+ci", (await tenant.ask("PUT", "/namespace/acme/robot/ci"))["token"])
    await tenant.ask("PUT", "/namespace/acme/webhook/theirs", **hook)
    await tenant.ask("PUT", "/namespace/acme/immutability", patterns=["*"])
    await tenant.ask(
        "PUT", "/namespace/acme/tag-expiration", tag_expiration=us.registry.settings.tag_expiration_options[0]
    )
    refresh = (await us.ask("GET", "/v2/auth?offline_token=true", headers=old.basic)).json["refresh_token"]
    form = urlencode({"grant_type": "refresh_token", "refresh_token": refresh})
    assert (await us.ask("POST", "/v2/auth", form.encode())).status == 200
    await tenant.ask("DELETE", "/organization/acme")
    await owner.ask("PUT", "/organization/acme")
    await owner.ask("PUT", "/namespace/acme/robot/ci")
    await us.node.access.open()
    assert (await us.ask("POST", "/v2/auth", form.encode())).status == 401
    assert (await us.ask("GET", "/v2/auth", headers=old.basic)).status == 401
    assert (await owner.ask("GET", "/namespace/acme/webhook"))["webhooks"] == []
    assert (await owner.ask("GET", "/namespace/acme/immutability"))["patterns"] == []
    assert (await owner.ask("GET", "/namespace/acme/tag-expiration"))["own"] is False
    for path in ("/namespace/acme/audit", "/repository/acme/app/audit"):
        assert {line["actor"] for line in (await owner.ask("GET", path))["lines"]} <= {"owner"}
    root = Api(http, Person("root"))
    assert {line["actor"] for line in (await root.ask("GET", "/namespace/acme/audit"))["lines"]} == {"owner", "tenant"}


async def test_limits_that_a_superuser_set(us: Region, http: httpx.AsyncClient) -> None:
    """Whoever owns a namespace may empty it, and is not rid of its quota and its policy by that; a superuser is."""
    tenant, root = Api(http, TENANT), Api(http, Person("root"))
    await root.ask("PUT", "/namespace/elsewhere/quota", reject="1GiB")
    await root.ask("PUT", "/namespace/elsewhere/policy", required=["us"])
    await tenant.ask("PUT", "/repository/elsewhere/app/immutability", patterns=["*"])
    hook: dict[str, Any] = {"url": "https://hooks.example.com", "events": ["deleted"]}
    await tenant.ask("PUT", "/namespace/elsewhere/webhook/mine", **hook)
    assert (await tenant.ask("DELETE", "/namespace/elsewhere"))["repositories"] == 1
    quota = await tenant.ask("GET", "/namespace/elsewhere/quota")
    assert (quota["reject_bytes"], quota["own"], quota["used_bytes"]) == (1 << 30, True, 0)
    assert (await tenant.ask("GET", "/namespace/elsewhere/policy"))["policy"] == {"required": ["us"]}
    assert (await tenant.ask("GET", "/namespace/elsewhere/webhook"))["webhooks"] == []
    await tenant.ask("DELETE", "/organization/elsewhere")
    await tenant.ask("PUT", "/organization/elsewhere")
    assert (await tenant.ask("GET", "/namespace/elsewhere/quota"))["own"] is True
    await root.ask("DELETE", "/namespace/elsewhere")
    await tenant.ask("GET", "/namespace/elsewhere/quota", 404)


async def test_names_that_only_superusers_give_away(us: Region, http: httpx.AsyncClient) -> None:
    """No tenant becomes the owner of all repository names of one component, or takes a superuser's name."""
    tenant, root = Api(http, TENANT), Api(http, Person("root"))
    for name in (us.registry.settings.library_namespace, "chief"):
        await tenant.ask("PUT", f"/organization/{name}", 403)
        await root.ask("PUT", f"/organization/{name}")
        await tenant.ask("PUT", f"/organization/{name}", 403)


async def test_copies_that_nobody_asks_for(us: Region, http: httpx.AsyncClient) -> None:
    """Of a public image anybody may know where it is; copies of it are made for those alone who have a name."""
    path = f"{PREFIX}/repository/public/app/manifest/v1/replication?location=us"
    stranger = ROLES["stranger"]
    assert stranger is not None
    anonymous = bearing(await token_for(us, None, "repository:public/app:pull"))
    for headers in ({}, anonymous):
        assert (await http.get(path, headers=headers)).status_code == 200
        assert (await http.get(f"{path}&request=true", headers=headers)).status_code == 401
    assert (await http.get(f"{path}&request=true", headers=stranger.basic)).status_code == 200


async def test_what_a_store_says(world: MakeWorld) -> None:
    """Why a copy fails is told in the store's own words to superusers alone: they name the store and its buckets."""
    us, _ = await filled(world, "us eu", "eu us", superusers_full_access=True)
    await us.node.access.open()
    await us.rows("UPDATE task SET attempts = 9, last_error = 'https://inside:7480/bucket', failing_since = now()")
    path = f"{PREFIX}/repository/public/app/manifest/v1/replication?location=eu"
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:
        for who, shown in (("nobody", None), ("admin", None), ("superuser", "https://inside:7480/bucket")):
            person = ROLES[who]
            answer = (await http.get(path, headers=person.basic if person else {})).json()
            assert (answer["status"], answer["last_error"]) == ("stalled", shown), who


async def test_children_of_another_s(make_waiters: MakeWaiters) -> None:
    """An index may name manifests that come later; one that comes to another's repository is not there for its own closure.

    Neither how many bytes it has is told, nor does a wish for copies copy them where their owner does not want them.
    """
    waiters = await make_waiters(sparse_index=True)
    us = waiters.us
    theirs = json.dumps(PRIVATE).encode()
    body = json.dumps(index([descriptor(theirs, OCI_MANIFEST)], OCI_INDEX)).encode()
    await us.push_manifest("mallory/app", "v1", body, **{"content-type": OCI_INDEX})
    before = await waiters.ask("mallory/app", "v1")
    await waiters.policy("alice", required=["us"])
    for blob in (CONFIG, SECRET):
        await us.push_blob("alice/app", blob)
    await us.push_manifest("alice/app", "v1", theirs)
    for more in ("", "referrers", "request"):
        answer = await waiters.ask("mallory/app", "v1", us, **({more: "true"} if more else {}))
        told = ("status", "reason", "blobs", "bytes", "missing_blobs", "absent_manifests", "last_error")
        assert {key: answer[key] for key in told} == {key: before[key] for key in told}
        assert (answer["blobs"], answer["absent_manifests"]) == (0, 1)
    with trio.fail_after(20):
        headers = {"content-type": OCI_INDEX, "antipode-durability": "all"}
        assert (await us.ask("PUT", "/v2/mallory/app/manifests/v2", body, headers)).status == 201
    assert await us.rows("SELECT FROM task") == []
    assert await us.rows("SELECT FROM wanted") == []
    assert (await us.ask("DELETE", "/v2/mallory/app/manifests/v1")).status == 202
    means = Means(us.registry.database, us.registry.settings, us.registry.hints.publish)
    await restore_tag(means, "mallory/app", "v1", {"digest": digest_of(body)})
    linked = "SELECT FROM repository_blob rb JOIN repository r ON r.id = rb.repository_id WHERE r.name = 'mallory/app'"
    assert await us.rows(linked) == []


async def test_copies_of_another_s(make_waiters: MakeWaiters) -> None:
    """A pattern of tags has copied what its own repository has: no child that came elsewhere, nothing that is attached elsewhere.

    Nor does a webhook wait for such. What comes to the repository itself is copied at once, also where others had it before.
    """
    us = (waiters := await make_waiters(sparse_index=True)).us
    await waiters.policy("alice", required=["us"])
    await waiters.policy("mallory", required=["us"], tags=[{"pattern": "v*", "locations": ["eu"]}])
    await us.rows(
        "INSERT INTO webhook (namespace_id, name, url, secret, events) "
        "SELECT id, 'hook', 'https://hooks.example.com', 'x', '{replicated}' FROM namespace WHERE name = 'mallory'"
    )
    common, before, after = (image(CONFIG, layer) for layer in (b"common", b"before", b"after"))
    sbom = image(CONFIG, b"sbom", subject=descriptor(json.dumps(common).encode(), OCI_MANIFEST))

    async def push(name: str, *layers: bytes, **manifests: Mapping[str, Any]) -> None:
        for blob in (CONFIG, *layers):
            await us.push_blob(name, blob)
        for tag, manifest in manifests.items():
            await us.push_manifest(name, tag, manifest)

    async def owed() -> set[str]:
        wide = await us.rows("SELECT b.digest FROM task t JOIN blob b ON b.id = t.blob_id")
        return {row["digest"] for row in wide}

    await push("alice/app", b"before", b"common", b"sbom", before=before, common=common, sbom=sbom)
    children = [descriptor(json.dumps(child).encode(), OCI_MANIFEST) for child in (before, after)]
    await us.push_manifest("mallory/app", "v1", index(children, OCI_INDEX))
    await push("alice/app", b"after", after=after)
    assert await us.rows("SELECT FROM awaited_arrival") == []
    await push("mallory/app", b"common", v2=common)
    # The other order: what is attached, and a child, come when the tag is there.
    await us.push_manifest("alice/app", "again", {**sbom, "annotations": {"by": "alice"}})
    everybody_s = {digest_of(CONFIG), digest_of(b"common")}
    assert await owed() == everybody_s
    rounds = PostgresRounds(us.registry.database)
    assert (await backfill(rounds, us.registry.hints.publish, ReconcilerSettings())).owed == 0
    await push("mallory/app", b"before", before=before)
    assert await owed() == {*everybody_s, digest_of(b"before")}
    await push("mallory/app", b"after", after=after)
    assert await owed() == {*everybody_s, digest_of(b"before"), digest_of(b"after")}
    found = await backfill(rounds, us.registry.hints.publish, ReconcilerSettings())
    assert (found.owed, found.struck) == (0, 0)
