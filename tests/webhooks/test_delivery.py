"""Events from a push to a real receiver that takes, fails, hangs and lies."""

import json
import secrets
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from node.api.frame import Problem
from node.api.webhooks import deliver_again, get_deliveries, get_webhook, get_webhooks, remove_webhook, set_webhook
from node.collector import Collector
from node.hooks.message import read_secret, sign
from node.hooks.secrets import open_secret
from node.records.collect import CollectRules
from node.records.deliveries import bound_deliveries, claim_deliveries
from node.records.removal import delete_repository
from replication.model import LocationHealth, Verdict
from tests.certificates import Authority
from tests.configurations import settings
from tests.registry.world import MakeWorld, Region, until
from tests.webhooks.conftest import QUICK, Receiver, Start, Subscribe, allow_here, means_of


async def waiting(us: Region, name: str = "hook", namespace: str | None = None) -> list[dict[str, Any]]:
    """Return what a webhook has not been told."""
    document = await get_deliveries(means_of(us), namespace, name)
    lines = document["deliveries"]
    assert isinstance(lines, list)
    return lines


async def test_a_push_is_told(us: Region, receiver: Receiver, subscribe: Subscribe, deliver: Start) -> None:
    """A push arrives at a webhook, signed with its secret; what was taken is not sent again."""
    secret = read_secret(await subscribe("hook", "pushed"))
    assert secret is not None
    digest = await us.push_image("team/app", "v1", b"layer")
    assert [line["kind"] for line in await waiting(us)] == ["pushed"]
    await deliver()
    (got,) = await receiver.requests(1)
    event = json.loads(got.body)
    assert event["type"] == "io.antipode.pushed"
    assert event["subject"] == "team/app:v1"
    assert event["source"] == "https://registry.test"
    assert event["data"]["digest"] == digest
    signed = sign(secret, event["id"], int(got.headers["webhook-timestamp"]), got.body)
    assert got.headers["webhook-signature"] == signed

    async def all_told() -> bool:
        return not await waiting(us)

    await until(all_told)
    await us.push_image("team/app", "v2", b"other")
    await receiver.requests(2)
    assert len({entry.headers["webhook-id"] for entry in receiver.got}) == 2


async def test_what_is_told(us: Region, subscribe: Subscribe) -> None:
    """Pushed is a tag that came or moved and a manifest without a tag; deleted what somebody deleted, not what is collected."""
    await subscribe("hook", "pushed", "deleted")
    first = await us.push_image("team/app", "v1", b"one")
    body = (await us.ask("GET", "/v2/team/app/manifests/v1")).body
    await us.push_manifest("team/app", "v1", body)
    second = await us.push_image("team/app", "v1", b"two")
    untagged = await us.push_image("team/app", "v3", b"three")
    assert (await us.ask("DELETE", "/v2/team/app/manifests/v3")).status == 202
    assert (await us.ask("DELETE", f"/v2/team/app/manifests/{second}")).status == 202
    rules = CollectRules(grace=0.0, retention=0.0, tag_expiration=0.0)
    await Collector(us.registry.database, lambda *_: None, rules).collect(gentle=False)
    assert await delete_repository(us.registry.database, "team/app")
    told = [(line["kind"], line["subject"], line["data"]["digest"]) for line in await waiting(us)]
    assert told == [
        ("pushed", "team/app:v1", first),
        ("pushed", "team/app:v1", second),
        ("pushed", "team/app:v3", untagged),
        ("deleted", "team/app:v3", untagged),
        ("deleted", f"team/app@{second}", second),
        ("deleted", "team/app:v1", second),
        ("deleted", "team/app", None),
    ]


async def test_a_namespace_hears_of_itself(us: Region, subscribe: Subscribe) -> None:
    """A namespace's webhook is told of its own repositories only, the registry's of all; one event has one id for both."""
    await subscribe("hook", "pushed", namespace="team")
    await subscribe("all", "pushed")
    await us.push_image("team/app", "v1")
    await us.push_image("other/app", "v1")
    own, every = await waiting(us, "hook", "team"), await waiting(us, "all")
    assert [line["subject"] for line in own] == ["team/app:v1"]
    assert [line["subject"] for line in every] == ["team/app:v1", "other/app:v1"]
    assert own[0]["event"] == every[0]["event"]


async def test_a_push_that_fails_tells_nothing(us: Region, subscribe: Subscribe) -> None:
    """What was not committed is not told."""
    await subscribe("hook", "pushed")
    reply = await us.ask(
        "PUT",
        "/v2/team/app/manifests/v1",
        json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2,
                                   "digest": "sha256:" + "0" * 64}]}).encode(),
        {"content-type": "application/vnd.oci.image.index.v1+json"},
    )  # fmt: skip
    assert reply.status == 404
    assert await waiting(us) == []


@pytest.mark.parametrize("mode", [500, "hang", "redirect", "nonsense"])
async def test_a_receiver_that_fails(
    us: Region, receiver: Receiver, subscribe: Subscribe, deliver: Start, mode: Any
) -> None:
    """What a receiver does not take is sent again, the same event; after the last attempt it is dead, and sent on request."""
    receiver.mode = mode
    await subscribe("hook", "pushed")
    if mode == "hang":
        us.node.courier.settings = evolve(QUICK, deadline=1.0)
    await us.push_image("team/app", "v1")
    await deliver()

    async def dead() -> bool:
        lines = await waiting(us)
        return bool(lines) and lines[0]["state"] == "dead"

    await until(dead, 120)
    (line,) = await waiting(us)
    assert (line["attempts"], line["due"]) == (QUICK.attempts, None)
    assert line["last_error"]
    came = len(receiver.got)
    assert came <= QUICK.attempts, "a redirect is not followed"
    # Not every request gets there within the second that is waited for a receiver that hangs.
    assert came == QUICK.attempts or mode == "hang"
    assert (await get_webhook(means_of(us), None, "hook"))["dead"] == 1
    receiver.mode, us.node.courier.settings = 204, QUICK
    assert (await deliver_again(means_of(us), None, "hook", None))["due"] == 1
    await receiver.requests(came + 1)
    assert len({entry.headers["webhook-id"] for entry in receiver.got}) == 1

    async def gone() -> bool:
        return not await waiting(us)

    await until(gone)


async def test_an_answer_without_end(us: Region, receiver: Receiver, subscribe: Subscribe, deliver: Start) -> None:
    """Of an answer only its status counts: one that never ends is taken, and not read."""
    receiver.mode = "endless"
    await subscribe("hook", "pushed")
    await us.push_image("team/app", "v1")
    await deliver()

    async def taken() -> bool:
        return not await waiting(us)

    await until(taken)
    assert len(receiver.got) == 1


async def test_one_that_hangs_holds_up_no_other(
    us: Region, receiver: Receiver, subscribe: Subscribe, deliver: Start
) -> None:
    """A receiver that hangs with many events waiting does not delay another's."""
    hanging = Receiver(mode="hang")
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, hanging.serve, 0, host="127.0.0.1"))
        hanging.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        await subscribe("slow", "pushed", url=hanging.url)
        us.node.courier.settings = type(QUICK)(poll=0.05, deadline=60.0)
        for number in range(20):
            await us.push_image("team/app", f"v{number}")
        await deliver()
        await hanging.requests(4)
        await subscribe("hook", "pushed")
        await us.push_image("team/app", "last")
        await receiver.requests(1)
        assert len(hanging.got) == 4, "of one webhook only a few are under way at once"
        nursery.cancel_scope.cancel()


async def test_a_name_that_leads_inside(us: Region, receiver: Receiver, subscribe: Subscribe, deliver: Start) -> None:
    """A name that is looked up to an address which is not allowed is never connected to, whatever it was before."""
    port = receiver.url.rsplit(":", 1)[1]
    await subscribe("hook", "pushed", url=f"http://localhost:{port}")
    us.node.settings = evolve(us.node.settings, webhook_networks=None)
    await us.push_image("team/app", "v1")
    await deliver()

    async def refused() -> bool:
        lines = await waiting(us)
        return bool(lines) and lines[0]["last_error"] is not None

    await until(refused)
    (line,) = await waiting(us)
    assert "not a public address" in line["last_error"]
    assert receiver.got == []


async def test_a_receiver_over_tls(
    us: Region, receiver: Receiver, subscribe: Subscribe, deliver: Start, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """A receiver whose certificate an authority of EXTRA_CA_CERTS vouches for is told; one that nobody vouches for is not."""
    known, stranger = Authority.make(tmp_path / "known"), Authority.make(tmp_path / "stranger")
    for name, authority in (("vouched", known), ("strange", stranger)):
        pair = authority.sign("receiver")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pair.certificate, pair.key)
        serve = partial(trio.serve_ssl_over_tcp, receiver.serve, 0, context, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.transport_listener.socket.getsockname()[1]
        await subscribe(name, "pushed", url=f"https://127.0.0.1:{port}/{name}")
    given = settings(EXTRA_CA_CERTS=str(known.own.certificate)).authorities
    us.node.settings = evolve(us.node.settings, authorities=given)
    await us.push_image("team/app", "v1")
    await deliver()
    await receiver.requests(1)

    async def refused() -> bool:
        lines = await waiting(us, "strange")
        return bool(lines) and lines[0]["last_error"] is not None

    await until(refused)
    assert "certificate" in (await waiting(us, "strange"))[0]["last_error"].lower()
    assert len(receiver.got) == 1


async def test_a_courier_that_dies(us: Region, subscribe: Subscribe) -> None:
    """Two nodes never have the same delivery at once; when one dies with it another gets it after the lease."""
    await subscribe("hook", "pushed")
    await us.push_image("team/app", "v1")
    database = us.registry.database
    (first,) = await claim_deliveries(database, most=10, each=10, lease=3600)
    assert list(await claim_deliveries(database, most=10, each=10, lease=3600)) == []
    await us.rows("UPDATE delivery SET due_at = due_at - interval '1 hour'")
    again = await claim_deliveries(database, most=10, each=10, lease=3600)
    assert [one.event for one in again] == [first.event]


async def test_two_nodes(world: MakeWorld, receiver: Receiver, nursery: trio.Nursery) -> None:
    """With couriers on two nodes each event arrives once."""
    us, eu = await world("us eu", "eu us")
    for region in (us, eu):
        allow_here(region)
    await set_webhook(means_of(us), None, "hook", {"url": receiver.url, "events": ["pushed"]})
    for number in range(12):
        await us.push_image("team/app", f"v{number}")
    for region in (us, eu):
        await nursery.start(region.node.courier.run)
    await receiver.requests(12)

    async def all_told() -> bool:
        return not await waiting(us)

    await until(all_told)
    assert len({entry.headers["webhook-id"] for entry in receiver.got}) == len(receiver.got) == 12


async def test_locations_that_go_and_come_back(
    us: Region, subscribe: Subscribe, deliver: Start, receiver: Receiver
) -> None:
    """A location that goes down is told once, and once when it is well again; one that was never down is not."""
    await subscribe("hook", "location_down", "location_up")
    courier = us.node.courier
    for verdict, reason in (
        (Verdict.HEALTHY, "answers"), (Verdict.DOWN, "refused"), (Verdict.DEGRADED, "slow"), (Verdict.DOWN, "refused"),
        (Verdict.DEGRADED, "answers"), (Verdict.HEALTHY, "answers"), (Verdict.HEALTHY, "answers"),
    ):  # fmt: skip
        courier.location_changed(LocationHealth("eu", verdict, reason=reason))
    await deliver()
    got = await receiver.requests(2)
    events = sorted((json.loads(entry.body) for entry in got), key=lambda event: str(event["type"]))
    assert [event["type"] for event in events] == ["io.antipode.location_down", "io.antipode.location_up"]
    assert events[0]["data"] == {"location": "eu", "node": us.node.name, "reason": "refused"}


async def test_the_outbox_is_bounded(us: Region, subscribe: Subscribe) -> None:
    """Of each webhook only so many events wait, and only so many dead ones are kept; the oldest go."""
    await subscribe("hook", "pushed")
    for number in range(6):
        await us.push_image("team/app", f"v{number}")
    database = us.registry.database
    assert await bound_deliveries(database, pending=4, dead=10, dead_seconds=60) == (2, 0)
    lines = await waiting(us)
    assert [line["state"] for line in lines] == ["dead", "dead", "pending", "pending", "pending", "pending"]
    assert await bound_deliveries(database, pending=4, dead=1, dead_seconds=60) == (0, 1)
    assert await bound_deliveries(database, pending=4, dead=1, dead_seconds=0) == (0, 1)
    assert len(await waiting(us)) == 4


async def test_webhooks_are_kept(us: Region, subscribe: Subscribe, receiver: Receiver) -> None:
    """A webhook is listed without its secret, keeps it when it is changed, and goes with what it was not told."""
    shown = await subscribe("hook", "pushed")
    again = await set_webhook(means_of(us), None, "hook", {"url": receiver.url, "events": ["deleted"]})
    assert "secret" not in again
    document = await get_webhooks(means_of(us), None)
    assert shown not in json.dumps(document)
    (row,) = await us.rows("SELECT secret, events FROM webhook")
    assert (open_secret(row["secret"], None), row["events"]) == (read_secret(shown), ["deleted"])
    await remove_webhook(means_of(us), None, "hook")
    with pytest.raises(Problem) as caught:
        await get_webhook(means_of(us), None, "hook")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("namespace", "change", "field", "found"),
    [
        (None, {"url": "http://127.0.0.1/"}, "url", '"http://127.0.0.1/"'),
        (None, {"events": ["pushed", "everything"]}, "events", '"everything"'),
        ("team", {"events": ["location_down"]}, "events", '"location_down"'),
        (None, {"events": []}, "events", "nothing"),
        (None, {"secret": "whsec_c2hvcnQ="}, "secret", "what is no secret"),
    ],
)
async def test_a_webhook_that_cannot_be_used(
    us: Region, namespace: str | None, change: dict[str, Any], field: str, found: str
) -> None:
    """What cannot be used is refused with its field and what it was, and nothing of a secret is in the answer."""
    body = {"url": "https://hooks.example.com", "events": ["pushed"], **change}
    with pytest.raises(Problem) as caught:
        await set_webhook(means_of(us), namespace, "hook", body)
    assert [(wrong.field, wrong.found) for wrong in caught.value.wrong] == [(field, found)]
    assert "c2hvcnQ" not in json.dumps(caught.value.document())


async def test_a_stalled_copy(world: MakeWorld) -> None:
    """A copy that has failed often enough to be stalled is told, once, to the namespaces that have its blob."""
    us, _ = await world("us eu", "eu us")
    allow_here(us)
    for namespace in ("team", "other"):
        body = {"url": "https://hooks.example.com", "events": ["stalled"]}
        await set_webhook(means_of(us), namespace, "hook", body)
    digest = await us.push_blob("team/app", secrets.token_bytes(100))
    await set_webhook(means_of(us), None, "hook", body)
    for attempts in (7, 8, 9):
        await us.rows("UPDATE task SET attempts = $1, last_error = 'refused'", attempts)
    (line,) = await waiting(us, "hook", "team")
    assert line["subject"] == digest
    assert line["data"]["location"] == "eu"
    assert "error" not in line["data"], "what a store says is the operator's"
    assert await waiting(us, "hook", "other") == []
    assert [(one["subject"], one["data"]["error"]) for one in await waiting(us)] == [(digest, "refused")]
    due = await claim_deliveries(us.registry.database, most=10, each=10, lease=60)
    assert sorted("error" in one.data for one in due) == [False, True]


async def test_replicated(world: MakeWorld, nursery: trio.Nursery, receiver: Receiver) -> None:
    """When a location has all of an image its webhook is told, once, and not before."""
    us, eu = await world("us eu", "eu us")
    for region in (us, eu):
        allow_here(region)
    await set_webhook(means_of(us), "team", "hook", {"url": receiver.url, "events": ["replicated"]})
    digest = await us.push_image("team/app", "v1", b"one", b"two")
    (before,) = await us.rows("SELECT settle_arrivals(100) AS told")
    assert before["told"] == 0
    assert await waiting(us, "hook", "team") == []
    await nursery.start(eu.node.scheduler.run)
    await nursery.start(us.node.courier.run)
    (got,) = await receiver.requests(1)
    data = json.loads(got.body)["data"]
    assert data == {"repository": "team/app", "tag": "v1", "digest": digest, "location": "eu"}
    assert await us.rows("SELECT * FROM awaited_arrival") == []
