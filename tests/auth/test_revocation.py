"""Rights that are taken away, databases that are away, logins that fail, and what all that costs."""

from collections import Counter
from functools import partial
from urllib.parse import urlencode

import bcrypt
import pytest
import trio

from node.auth.changes import ACCESS_CHANGED
from node.auth.model import Role
from node.auth.secrets import hash_secret
from node.records.accounts import create_robot, find_account, set_secret, update_account
from node.records.permissions import Grantee, Granting, remove_permission, set_permission, set_visibility
from node.records.postgres import Database, DatabaseUnavailable
from tests.auth.people import PASSWORD, ROBOT_SECRET, ROLES, TOKEN, Person, basic, bearing, settled, token_for
from tests.auth.test_table import BLOB, IMAGE, filled
from tests.registry.world import MakeWorld, Region, digest_of, until

READER, WRITER = Person("reader"), Person("writer")
TAG = "/v2/private/app/manifests/v1"


def away(monkeypatch: pytest.MonkeyPatch, region: Region) -> None:
    """Take the database away from a node."""

    async def lost(*_args: object, **_kwargs: object) -> object:
        raise DatabaseUnavailable("taken away by the test")

    database = region.registry.database
    monkeypatch.setattr(type(database), "fetch", lost)
    monkeypatch.setattr(type(database), "fetch_row", lost)


async def eventually(region: Region, status: int, target: str, headers: dict[str, str]) -> None:
    async def is_so() -> bool:
        return (await region.ask("GET", target, headers=headers)).status == status

    await until(is_so)


async def test_a_right_that_is_taken_away(world: MakeWorld) -> None:
    """What somebody may do no more they cannot do on any node at once, by Basic or by a token that says otherwise."""
    us, eu = await filled(world, "us", "us", metadata_staleness=3600.0)
    database = us.registry.database
    token = bearing(await token_for(us, READER, "repository:private/app:pull"))
    other = bearing(await token_for(us, WRITER, "repository:private/app:pull,push"))
    for region in (us, eu):
        for headers in (token, READER.basic, other):
            assert (await region.ask("GET", TAG, headers=headers)).status == 200
    await remove_permission(database, "private/app", Grantee("reader"))
    us.node.hints.publish(ACCESS_CHANGED)
    for region in (us, eu):
        await eventually(region, 401, TAG, token)
        reply = await region.ask("GET", TAG, headers=token)
        assert reply.headers["www-authenticate"].endswith('error="invalid_token"')
        assert (await region.ask("GET", TAG, headers=READER.basic)).status == 403
        anew = bearing(await token_for(region, WRITER, "repository:private/app:pull,push"))
        assert (await region.ask("GET", TAG, headers=anew)).status == 200, "whose rights are the same gets a new token"
    await set_permission(database, "private/app", Grantee("reader"), Role.READ)
    await eventually(us, 200, TAG, READER.basic)


async def test_what_may_be_mounted_no_more(world: MakeWorld) -> None:
    """A token that was given when its holder might pull from a repository mounts nothing from there once they may not."""
    (us,) = await filled(world, metadata_staleness=3600.0)
    database = us.registry.database
    tenant, mount = Person("tenant"), f"/v2/elsewhere/app/blobs/uploads/?mount={digest_of(BLOB)}&from=public/app"
    scopes = ("repository:elsewhere/app:pull,push", "repository:public/app:pull")
    token = bearing(await token_for(us, tenant, *scopes))
    await set_permission(database, "elsewhere/app", Grantee("reader"), Role.WRITE)
    writing = bearing(await token_for(us, READER, *scopes))
    await set_visibility(database, "public/app", public=False)
    us.node.hints.publish(ACCESS_CHANGED)
    await eventually(us, 401, "/v2/public/app/manifests/v1", token)
    refused = await us.ask("POST", mount, headers=token)
    assert refused.failure == (401, "UNAUTHORIZED")
    assert (
        'scope="repository:elsewhere/app:pull,push repository:public/app:pull"' in refused.headers["www-authenticate"]
    )
    assert refused.headers["www-authenticate"].endswith('error="invalid_token"')
    assert (await us.ask("POST", mount, headers=bearing(await token_for(us, tenant, *scopes)))).status == 202
    assert (await us.ask("POST", mount, headers=writing)).status == 401, "whose rights are the same gets a new token"
    assert (await us.ask("POST", mount, headers=bearing(await token_for(us, READER, *scopes)))).status == 201


@pytest.mark.parametrize("how", ["password", "disabled"])
async def test_an_account_that_ends(world: MakeWorld, how: str) -> None:
    """An account that is closed, or has another password, has no good token or login any more."""
    (us,) = await filled(world, metadata_staleness=3600.0)
    token = bearing(await token_for(us, READER, "repository:private/app:pull"))
    assert (await us.ask("GET", TAG, headers=READER.basic)).status == 200
    if how == "password":
        await set_secret(us.registry.database, "reader", None)
    else:
        await update_account(us.registry.database, "reader", enabled=False)
    us.node.hints.publish(ACCESS_CHANGED)
    await eventually(us, 401, TAG, token)
    assert (await us.ask("GET", TAG, headers=READER.basic)).status == 401


async def test_a_disabled_user_s_robots(world: MakeWorld) -> None:
    """A user who is disabled has no good robot any more, nor a good token of one, until they are enabled again."""
    (us,) = await filled(world, metadata_staleness=3600.0)
    database, robot = us.registry.database, Person("reader+ci", ROBOT_SECRET)
    assert await create_robot(database, "reader", "ci", hash_secret(ROBOT_SECRET))
    assert await set_permission(database, "private/app", Grantee(robot.name), Role.READ) is Granting.DONE
    token = bearing(await token_for(us, robot, "repository:private/app:pull"))
    login = await us.ask("GET", "/v2/auth?offline_token=true", headers=robot.basic)
    renewal = urlencode({"grant_type": "refresh_token", "refresh_token": login.json["refresh_token"]}).encode()
    for headers in (token, robot.basic):
        assert (await us.ask("GET", TAG, headers=headers)).status == 200
    await update_account(database, "reader", enabled=False)
    us.node.hints.publish(ACCESS_CHANGED)
    await eventually(us, 401, TAG, token)
    assert (await us.ask("GET", TAG, headers=robot.basic)).status == 401
    assert (await us.ask("POST", "/v2/auth", renewal)).status == 401
    others = Person("private+reader", ROBOT_SECRET)
    assert (await us.ask("GET", TAG, headers=others.basic)).status == 200, "whose owner may log in goes on"
    await update_account(database, "reader", enabled=True)
    assert (await us.ask("GET", TAG, headers=robot.basic)).status == 200


async def test_without_hints(world: MakeWorld) -> None:
    """Where no hint comes, a right is gone within METADATA_STALENESS."""
    (us,) = await filled(world, metadata_staleness=0.5)
    token = bearing(await token_for(us, None, "repository:public/app:pull"))
    assert (await us.ask("GET", "/v2/public/app/manifests/v1", headers=token)).status == 200
    await set_visibility(us.registry.database, "public/app", public=False)
    await eventually(us, 401, "/v2/public/app/manifests/v1", token)


async def test_what_a_pull_costs(world: MakeWorld) -> None:
    """A token costs no round trip: one for a tag, none for a warm digest or blob. Nor does Basic, once it is known."""
    (us,) = await filled(world, metadata_staleness=3600.0)
    by_token = bearing(await token_for(us, READER, "repository:private/app:pull"))
    digest = (await us.ask("GET", TAG, headers=by_token)).headers["docker-content-digest"]
    targets = ((1, TAG), (0, f"/v2/private/app/manifests/{digest}"), (0, f"/v2/private/app/blobs/{digest_of(BLOB)}"))
    for _, target in targets:
        assert (await us.ask("GET", target, headers=READER.basic)).status == 200
    for headers in (by_token, READER.basic):
        for expected, target in targets:
            trips, reply = await us.trips(partial(us.ask, "GET", target, headers=headers))
            assert (target, trips, reply.status) == (target, expected, 200)
    trips, _ = await us.trips(partial(token_for, us, Person("owner"), "repository:private/app:pull,push"))
    assert trips <= 2, "a token costs the look at the account and the one at its rights"


async def test_while_the_database_is_away(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is away tokens count, who was known is known, and who was not is told to come back."""
    (us,) = await filled(world)
    scope = "repository:private/app:pull"
    token = bearing(await token_for(us, READER, scope))
    digest = (await us.ask("GET", TAG, headers=token)).headers["docker-content-digest"]
    target = f"/v2/private/app/manifests/{digest}"
    assert (await us.ask("GET", target, headers=READER.basic)).status == 200
    away(monkeypatch, us)
    for headers in (token, READER.basic, bearing(await token_for(us, READER, scope))):
        assert (await us.ask("GET", target, headers=headers)).status == 200
    unknown = await us.ask("GET", "/v2/auth", headers=WRITER.basic)
    assert (unknown.status, unknown.headers["retry-after"]) == (503, "2")
    wrong = await us.ask("GET", "/v2/auth", headers={"authorization": basic("reader", "wrong password")})
    assert wrong.status == 503, "nobody can tell that it is wrong"


async def test_too_many_failures(world: MakeWorld) -> None:
    """After ten wrong passwords an account waits, whoever tries, and whether or not there is such an account; its tokens count."""
    (us,) = await settled(world)
    token = bearing(await token_for(us, READER))
    for name in ("reader", "nosuchuser"):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                wrong = {"authorization": basic(name, "wrong password")}
                nursery.start_soon(partial(us.ask, "GET", "/v2/auth", headers=wrong))
        reply = await us.ask("GET", "/v2/auth", headers={"authorization": basic(name, "wrong password")})
        assert (reply.status, reply.code) == (429, "TOOMANYREQUESTS")
        assert 1 <= int(reply.headers["retry-after"]) <= 300
        assert name not in reply.body.decode()
    assert (await us.ask("GET", "/v2/", headers=token)).status == 200
    assert (await us.ask("GET", "/v2/", headers=READER.basic)).status == 200, "what was proven a moment ago still is"
    assert (await us.ask("GET", "/v2/", headers=WRITER.basic)).status == 200


async def test_failures_that_come_at_once(world: MakeWorld) -> None:
    """Who tries many passwords at the same moment hears of ten of them, as one who tries one after the other."""
    (us,) = await settled(world)
    found = Counter[int]()

    async def guess(secret: str) -> None:
        headers = {"authorization": basic("reader", secret)}
        found[(await us.ask("GET", "/v2/auth", headers=headers)).status] += 1

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(guess, f"wrong password {number}")
    assert found == {401: 10, 429: 20}


async def test_nobody_holds_tokens_off(world: MakeWorld) -> None:
    """However often somebody shows a wrong application token, or a wrong secret for a robot, the right ones count."""
    (us,) = await settled(world)
    async with trio.open_nursery() as nursery:
        for name, secret in (("$app", "apt_wrong"), ("reader", "apt_wrong"), ("private+reader", "apr_wrong")):
            for _ in range(50):
                wrong = {"authorization": basic(name, secret)}
                nursery.start_soon(partial(us.ask, "GET", "/v2/auth", headers=wrong))
    for name, secret in (("$app", TOKEN), ("reader", TOKEN), ("private+reader", ROBOT_SECRET), ("reader", PASSWORD)):
        assert (await us.ask("GET", "/v2/auth", headers={"authorization": basic(name, secret)})).status == 200, name


async def test_passwords_do_not_hold_tokens_off(world: MakeWorld) -> None:
    """After a hundred wrong passwords from one address what can be guessed waits there, and what cannot does not."""
    (us,) = await settled(world)

    async def login(name: str, secret: str) -> int:
        return (await us.ask("GET", "/v2/auth", headers={"authorization": basic(name, secret)})).status

    async def guess(at_once: trio.CapacityLimiter, name: str) -> None:
        async with at_once:
            assert await login(name, "wrong password") == 401

    async with trio.open_nursery() as nursery:
        at_once = trio.CapacityLimiter(20)
        for number in range(100):
            nursery.start_soon(guess, at_once, f"somebody{number}")
    assert await login("reader", PASSWORD) == 429
    for name, secret in (("$app", TOKEN), ("reader", TOKEN), ("private+reader", ROBOT_SECRET)):
        assert await login(name, secret) == 200, name


async def test_quays_passwords(world: MakeWorld) -> None:
    """A hash of Quay's lets its owner in and becomes one of ours, and no token is void because of it."""
    (us,) = await settled(world)
    database: Database = us.registry.database
    quays = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    await database.fetch("UPDATE account SET secret = $1 WHERE name = 'reader'", quays)
    token = bearing(await token_for(us, READER))
    account = await find_account(database, "reader")
    assert account is not None
    assert account.secret is not None
    assert account.secret.startswith("$argon2id$")
    await us.node.access.open()
    assert (await us.ask("GET", "/v2/", headers=token)).status == 200


async def test_two_tenants(world: MakeWorld) -> None:
    """Two tenants who try everything against each other get nothing, and cannot tell what is there from what is not."""
    (us,) = await filled(world)
    mine, theirs = ROLES["organisation's admin"], Person("tenant")
    assert mine is not None
    digest = digest_of(BLOB)
    manifest = (await us.ask("GET", TAG, headers=mine.basic)).headers["docker-content-digest"]
    every = "repository:{0}/app:pull,push,delete,* repository:{0}/none:pull,push,delete,*"
    for attacker, victim in ((mine, "elsewhere"), (theirs, "private")):
        token = bearing(await token_for(us, attacker, every.format(victim)))
        for headers in (token, attacker.basic, {}):
            answers = []
            for name in ("app", "none"):
                there = []
                for method, path in (
                    *(
                        (method, f"{kind}")
                        for kind in (
                            "manifests/v1",
                            f"manifests/{manifest}",
                            f"blobs/{digest}",
                            "tags/list",
                            f"referrers/{manifest}",
                        )
                        for method in ("GET", "HEAD")
                    ),
                    ("DELETE", "manifests/v1"),
                    ("DELETE", f"manifests/{manifest}"),
                    ("DELETE", f"blobs/{digest}"),
                    ("PUT", "manifests/v1"),
                    ("POST", "blobs/uploads/"),
                    ("POST", f"blobs/uploads/?mount={digest}&from=public/app"),
                    ("POST", f"blobs/uploads/?digest={digest}"),
                ):
                    reply = await us.ask(
                        method, f"/v2/{victim}/{name}/{path}", BLOB if "?digest" in path else b"", headers
                    )
                    assert reply.status in (401, 403), (attacker.name, method, path, reply)
                    there.append((reply.status, reply.code, method, path))
                answers.append(there)
            assert answers[0] == answers[1], "the same whether or not there is such a repository"
        own = "private" if victim == "elsewhere" else "elsewhere"
        for what in (digest, digest_of(b"nobody has this")):
            reply = await us.ask(
                "POST", f"/v2/{own}/app/blobs/uploads/?mount={what}&from={victim}/app", headers=attacker.basic
            )
            assert reply.status == 202
        upload = reply.location.partition("?")[0].replace(f"/v2/{own}/", f"/v2/{victim}/")
        assert (await us.ask("PATCH", upload, b"x", attacker.basic)).status in (401, 403)
        listed = await us.ask("GET", "/v2/_catalog", headers=attacker.basic)
        assert f"{victim}/app" not in listed.json["repositories"]
    for repository in ("private/app", "elsewhere/app"):
        who = mine if repository.startswith("private") else theirs
        assert (await us.ask("GET", f"/v2/{repository}/manifests/v1", headers=who.basic)).status == 200
    assert IMAGE
