"""The audit log: what it has, that nothing of a push or delete is lost, and that a pull waits for nothing."""

import json
import time
from functools import partial
from typing import Any, cast

import httpx
import pytest
import trio
from attrs import evolve

from node.answers import Request
from node.api.auditlog import get_audit, read_time
from node.auditlog import AuditLog, AuditSettings
from node.config.values import Unfit
from node.push.reading import OCI_INDEX
from node.records.auditlog import Filter, Line, drop_lines, read_lines, write_lines
from node.records.postgres import Database, DatabaseUnavailable
from tests.auth.people import ROLES, bearing, settled, token_for
from tests.cluster import Cluster, program
from tests.registry.conftest import us
from tests.registry.world import MakeWorld, Region, digest_of, until

__all__ = ["us"]

QUICK = AuditSettings(waiting=5, every=0.01, again=0.01, drop_every=0.01)


async def lines(region: Region, **wanted: Any) -> list[Line]:
    found = await read_lines(region.registry.database, Filter(**wanted), None, 1000)
    return [kept.line for kept in found][::-1]


async def ask(region: Region, method: str, path: str, who: str = "alice") -> int:
    """Ask as somebody, from somewhere."""
    request = Request(method, path, headers={}, client="192.0.2.7", id="r-1", who=who)
    return (await region.routes.answer(request)).status


async def test_pushes_and_deletes(us: Region) -> None:
    """A push, a delete of a tag, of a manifest and of a blob have a line each: who, what, where from, through which node."""
    first = await us.push_image("team/app", "v1", b"one")
    second = await us.push_image("team/app", "v2", b"two")
    await us.push_blob("team/app", b"alone")
    blob = digest_of(b"alone")
    for path in (f"manifests/{second}", f"blobs/{blob}", "manifests/v1"):
        assert await ask(us, "DELETE", f"/v2/team/app/{path}") == 202
    found = await lines(us)
    assert [
        (line.action, line.detail.get("digest"), line.detail.get("tag") or line.detail.get("tags")) for line in found
    ] == [
        ("push", first, ["v1"]),
        ("push", second, ["v2"]),
        ("deleteManifest", second, None),
        ("deleteBlob", blob, None),
        ("deleteTag", None, "v1"),
    ]
    last = found[-1]
    assert (last.actor, last.namespace, last.repository) == ("alice", "team", "team/app")
    assert (last.client, last.node, last.request) == ("192.0.2.7", us.node.name, "r-1")


async def test_what_was_not_done_has_no_line(us: Region) -> None:
    """A push that is refused and a delete of nothing leave no line."""
    await us.push_image("team/app", "v1", b"one")
    refused = await us.ask("PUT", "/v2/team/app/manifests/v2", json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "a/b", "size": 1, "digest": "sha256:" + "0" * 64}, "layers": [],
    }).encode(), {"content-type": "application/vnd.oci.image.manifest.v1+json"})  # fmt: skip
    gone = await us.ask("DELETE", "/v2/team/app/manifests/v9")
    assert (refused.status, gone.status) == (404, 404)
    assert [line.action for line in await lines(us)] == ["push"]


async def test_a_push_and_its_line_are_one(us: Region) -> None:
    """The line of a push costs no round trip of its own."""
    await us.push_image("team/app", "v1", b"one")
    body = (await us.ask("GET", "/v2/team/app/manifests/v1")).body
    trips, _ = await us.trips(partial(us.push_manifest, "team/app", "v2", body))
    assert trips == 1
    trips, _ = await us.trips(partial(us.ask, "DELETE", "/v2/team/app/manifests/v2"))
    assert trips == 1
    assert [line.action for line in await lines(us)] == ["push", "push", "deleteTag"]


async def test_pulls(us: Region, nursery: trio.Nursery) -> None:
    """Pulls of manifests are written in batches, with their own times, and a pull costs no round trip more for it."""
    us.node.auditlog.settings = QUICK
    digest = await us.push_image("team/app", "v1", b"one")
    assert (await us.ask("GET", f"/v2/team/app/manifests/{digest}")).status == 200
    trips, _ = await us.trips(partial(us.ask, "GET", f"/v2/team/app/manifests/{digest}"))
    assert trips <= 1
    assert await lines(us, action="pull") == []
    assert (await us.ask("HEAD", "/v2/team/app/manifests/v1")).status == 200
    await nursery.start(us.node.auditlog.run)

    async def written() -> bool:
        return len(await lines(us, action="pull")) == 2

    await until(written)
    (line, _) = await lines(us, action="pull")
    assert line.detail == {"reference": digest, "digest": digest}
    assert (line.actor, line.namespace, line.repository, line.node) == ("", "team", "team/app", us.node.name)
    us.node.settings = evolve(us.node.settings, audit_pulls=False)
    await us.ask("GET", "/v2/team/app/manifests/v1")
    assert await lines(us, action="pull") == [line, line]


async def test_a_full_queue(us: Region, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]) -> None:
    """What finds the queue full is dropped, counted and said in the log; a pull does not wait."""
    log = us.node.auditlog
    log.settings = QUICK
    await us.push_image("team/app", "v1", b"one")
    for _ in range(8):
        assert (await us.ask("GET", "/v2/team/app/manifests/v1")).status == 200
    assert log.dropped == 3
    await nursery.start(log.run)

    async def said() -> bool:
        return "the audit log lost pulls" in capsys.readouterr().out

    await until(said)
    assert len(await lines(us, action="pull")) == 5


class Away:
    """A database that is away until it is not."""

    def __init__(self, inner: Database) -> None:
        self.inner = inner
        self.here = False

    async def fetch(self, *arguments: Any, **more: Any) -> Any:
        if not self.here:
            raise DatabaseUnavailable("away")
        return await self.inner.fetch(*arguments, **more)


async def test_a_database_that_is_away(us: Region, nursery: trio.Nursery) -> None:
    """While the database is away lines wait; what waits when the node stops is written if that can be done soon."""
    away = Away(us.registry.database)
    log = AuditLog(cast("Database", away), lambda: us.node.settings, "node", settings=QUICK)
    await log.record(Line("setQuota", "alice"))
    log.pulled(Request("GET", "", who="bob"), "team/app", "v1", "sha256:1")
    scope = trio.CancelScope()
    ended = trio.Event()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await log.run(task_status=task_status)
        ended.set()

    await nursery.start(run)
    await trio.sleep(0.05)  # some tries: nothing may be lost by them
    assert await lines(us) == []
    away.here = True
    scope.cancel()
    await ended.wait()
    assert [line.action for line in await lines(us)] == ["setQuota", "pull"]


async def test_retention(us: Region) -> None:
    """Lines go when they are older than is kept, in batches, and no others."""
    database = us.registry.database

    now = time.time()
    await write_lines(database, [Line("old")] * 3 + [Line("new")], [now - 100, now - 100, now - 100, now - 1])
    assert await drop_lines(database, 50, 2) == 2
    assert await drop_lines(database, 50, 2) == 1
    assert await drop_lines(database, 50, 2) == 0
    assert [line.action for line in await lines(us)] == ["new"]


async def test_pages_and_filters(us: Region) -> None:
    """Lines are read in pages, the latest first, by namespace, repository, actor, action and time; no line twice, none left out."""
    database = us.registry.database
    made = [Line(f"a{n % 3}", f"u{n % 2}", "team", f"team/{n % 5}", {"n": n}) for n in range(20)]
    await write_lines(database, made, [1_700_000_000.0 + n for n in range(20)])
    seen: list[int] = []
    before: int | None = None
    while True:
        document: Any = await get_audit(database, Filter(namespace="team"), before, 7)
        seen += [line["detail"]["n"] for line in document["lines"]]
        if document["next"] is None:
            break
        before = int(document["next"])
    assert seen == list(range(19, -1, -1))
    for wanted, expected in (
        (Filter(actor="u1"), {n for n in range(20) if n % 2}),
        (Filter(action="a2", repository="team/0"), {n for n in range(20) if n % 3 == 2 and n % 5 == 0}),
        (Filter(since=1_700_000_005.0, until=1_700_000_007.0), {5, 6}),
        (Filter(namespace="other"), set()),
    ):
        assert {kept.line.detail["n"] for kept in await read_lines(database, wanted, None, 100)} == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-26", "2026-11-26T10:00:00", "9999999-01-01T00:00:00Z"])
def test_a_time_that_cannot_be_used(text: str) -> None:
    """A time needs its zone."""
    with pytest.raises(Unfit):
        read_time(text)


async def test_the_api_and_the_command_line(cluster: Cluster, repository: str) -> None:
    """A change by the API and one by the command line have a line, without secrets; both show them."""
    namespace = repository.partition("/")[0]
    secret = "whsec_" + "c2VjcmV0" * 4
    hook = {"url": "https://hooks.example.com", "events": ["pushed"], "secret": secret}
    async with httpx.AsyncClient(base_url=cluster["us"].url, trust_env=False, timeout=60) as http:
        assert (await http.put(f"/api/v1/namespace/{namespace}/webhook/ci", json=hook)).status_code == 200
        assert (await http.put(f"/api/v1/namespace/{namespace}/quota", json={"reject": "much"})).status_code == 400
        answer = (await http.get(f"/api/v1/namespace/{namespace}/audit")).json()
    (line,) = answer["lines"]
    assert (line["action"], line["detail"]["webhook"], line["detail"]["url"]) == (
        "setNamespaceWebhook",
        "ci",
        hook["url"],
    )
    assert secret not in json.dumps(answer)
    words = (*program(), "quota", "set", namespace, "--reject", "1GiB", "--config", str(cluster.configuration_file))
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    command = (
        *program(),
        "audit",
        "--action",
        "quota set",
        "--output",
        "json",
        "--config",
        str(cluster.configuration_file),
    )
    done = await trio.run_process(command, capture_stdout=True)
    assert json.loads(done.stdout)["lines"][0]["detail"]["arguments"] == ["quota", "set", namespace, "--reject", "1GiB"]


async def test_who_it_was(world: MakeWorld) -> None:
    """With accounts a line has the account, also where a token speaks for it, and a refused request has none."""
    (us,) = await settled(world)
    await us.node.access.open()
    writer, reader = ROLES["writer"], ROLES["reader"]
    assert writer is not None
    assert reader is not None
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    target, kind = "/v2/private/app/manifests/v1", {"content-type": OCI_INDEX}
    assert (await us.ask("PUT", target, body, {**kind, **reader.basic})).status in (401, 403)
    assert (await us.ask("PUT", target, body, {**kind, **writer.basic})).status == 201
    token = bearing(await token_for(us, writer, "repository:private/app:pull,push,delete"))
    assert (await us.ask("DELETE", target, headers=token)).status == 202
    assert [(line.action, line.actor) for line in await lines(us)] == [("push", "writer"), ("deleteTag", "writer")]
