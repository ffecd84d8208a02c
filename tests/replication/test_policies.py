"""Policies change: what a change will copy and trim is said before, done after, and a *never* is obeyed by everything."""

from uuid import UUID

import pytest

from node.api.debts import residency, stalled_copies
from node.api.frame import Problem
from node.api.policies import Request, get_policies, get_policy, set_policy
from node.policies import Amount, preview
from node.records.debt import list_stalled, list_stuck
from node.records.ledger import PostgresLedger
from node.records.locations import Change, apply_defaults, list_locations
from node.records.members import Membership, agree_on_defaults, default_locations, heartbeat, sign_off
from node.records.reconcile import PostgresRounds, look_at_round
from replication.macs import PieceProofs
from replication.model import LocationState
from replication.plan import STALLED_AFTER
from replication.policy import NO_POLICY, parse_policy
from replication.ports import CopyOutcome, Forget
from replication.reconciler import ReconcilerSettings, backfill
from tests.copies import finish_copy
from tests.replication.world import LOCATIONS, NoHints, World, digest_of
from tests.rounds_contract import fill

_LEDGER = Membership(UUID(int=1), ("us",), ("us",), "test")


async def _pay(world: World) -> dict[str, int]:
    """Pay every task; return the blobs copied by location."""
    rows = await world.database.fetch(
        """
        WITH gone AS (DELETE FROM task RETURNING blob_id, location_id),
        made AS (INSERT INTO placement (blob_id, location_id, key) SELECT blob_id, location_id, 'c' || blob_id FROM gone)
        SELECT l.name, count(*) AS blobs FROM gone JOIN location l ON l.id = gone.location_id GROUP BY 1
        """
    )
    return {row["name"]: row["blobs"] for row in rows}


async def test_a_preview_is_what_then_happens(world: World) -> None:
    """What a policy would copy and trim, by location, is what the reconciler then does, shared blobs and tags included."""
    for n in range(4):
        await world.blob(f"own{n}", ["team/a"], ["us", "eu"], size=100 + n)
    await world.blob("shared", ["team/a", "other/b"], ["us", "eu"], size=7)
    await world.blob("layer", ["team/a"], ["us", "eu"], size=1)
    await world.manifest("image", "team/a", blobs=["layer"], tag="v1")
    rules = {"required": ["eu"], "never": ["us"], "tags": [{"pattern": "v*", "locations": ["ap"]}]}
    policy = parse_policy(rules, LOCATIONS)
    shown = await preview(world.database, "team", policy, replicate=True)
    assert shown.blobs == 6
    assert shown.copies == {"ap": Amount(1, 1)}
    assert shown.trims == {"us": Amount(5, 100 + 101 + 102 + 103 + 1)}
    assert await world.placed("own0") == {"us": "present", "eu": "present"}

    await world.policy("team", **rules)
    await fill(world)
    assert await _pay(world) == {"ap": 1}
    await fill(world)
    assert set(await world.placed("own3")) == {"eu"}
    assert set(await world.placed("layer")) == {"eu", "ap"}
    assert set(await world.placed("shared")) == {"us", "eu"}
    nothing = await preview(world.database, "team", policy, replicate=True)
    assert (nothing.copies, nothing.trims) == ({}, {})

    back = await preview(world.database, "team", NO_POLICY, replicate=True)
    assert back.copies == {"us": Amount(5, 407)}
    assert back.trims == {"ap": Amount(1, 1)}


async def test_a_policy_is_set_read_and_removed(world: World) -> None:
    """A policy is checked against the locations there are, versioned, and its change makes the nodes reconcile at once."""
    hints = NoHints()
    await world.blob("b", ["team/a"], ["us"])

    async def change(document: object | None, **more: object) -> dict[str, object]:
        request = Request("team", document, **more)  # type: ignore[arg-type] # as the test gives it
        return await set_policy(world.database, hints.publish, request, replicate=True)

    with pytest.raises(Problem) as caught:
        await change({"required": ["us", "mars"], "never": 3})
    assert caught.value.status == 400
    assert len(caught.value.wrong) == 2
    for rules in ({"durability": "quorum:4"}, {"durability": "quorum:3", "never": ["ap"]}):
        with pytest.raises(Problem, match="the policy cannot be obeyed") as caught:
            await change(rules)
        assert [wrong.field for wrong in caught.value.wrong] == ["durability"], "every push would be refused"
    assert (await change({"durability": "quorum:3"}, dry_run=True))["policy"] == {"durability": "quorum:3"}
    dry = await change({"required": ["ap"]}, dry_run=True)
    assert dry["copies"] == {"ap": {"blobs": 1, "bytes": 1000}}
    assert (await get_policy(world.database, "team"))["version"] == 0
    assert not hints.sent
    made = await change({"required": ["ap"]})
    assert made["version"] == 1
    assert Forget() in hints.sent
    assert (await look_at_round(world.database)).hurry
    with pytest.raises(Problem, match="the policy has changed"):
        await change({"required": ["us"]}, expected=7)
    assert await get_policies(world.database) == {
        "policies": [{"namespace": "team", "policy": {"required": ["ap"]}, "version": 1}]
    }
    assert (await change(None))["policy"] == {}
    with pytest.raises(Problem, match="not a namespace"):
        await get_policy(world.database, "a/b")


async def test_tags_that_exist_are_compiled_anew(world: World) -> None:
    """A change of a policy's patterns reaches the tags that are there, and what is attached to their images."""
    await world.blob("layer", ["team/a"], ["us", "eu"])
    await world.blob("sbom", ["team/a"], ["us", "eu"])
    await world.manifest("image", "team/a", blobs=["layer"], tag="v1")
    await world.manifest("attached", "team/a", blobs=["sbom"], subject="image")
    await world.policy("team", tags=[{"pattern": "v*", "locations": ["ap"]}])
    await fill(world)
    assert await world.tasks("layer") == await world.tasks("sbom") == {"ap"}
    await world.policy("team", tags=[{"pattern": "w*", "locations": ["ap"]}])
    await fill(world)
    assert await world.tasks("layer") == await world.tasks("sbom") == set()


@pytest.mark.parametrize("suffix", ["sig", "att", "sbom"])
async def test_what_is_attached_to_a_tag_goes_with_it(world: World, suffix: str) -> None:
    """A pattern of tags takes the closure, its referrers and its sha256-<hex>.sig|att|sbom tags along, at once, in any order."""
    await world.policy("team", required=["us"], tags=[{"pattern": "v*", "locations": ["ap"]}])
    for name in ("layer", "child", "referrer", "attached", "other"):
        await world.blob(name, ["team/a"], ["us"])
    await world.manifest("child", "team/a", blobs=["child"])
    await world.manifest("image", "team/a", blobs=["layer"], children=["child"], tag="v1")
    await world.manifest("other", "team/a", blobs=["other"], tag="latest")
    await backfill(PostgresRounds(world.database), NoHints().publish, ReconcilerSettings())
    assert await world.tasks("layer") == await world.tasks("child") == {"ap"}
    await world.manifest("statement", "team/a", blobs=["referrer"], subject="image")
    assert await world.tasks("referrer") == {"ap"}
    name = f"sha256-{digest_of('manifest image').removeprefix('sha256:')}.{suffix}"
    await world.manifest("attached", "team/a", blobs=["attached"])
    assert await world.tasks("attached") == set()
    await world.tag("attached", "team/a", name)
    assert await world.tasks("attached") == {"ap"}
    assert await world.tasks("other") == set()
    found = await backfill(PostgresRounds(world.database), NoHints().publish, ReconcilerSettings())
    assert (found.owed, found.struck) == (0, 0)


async def test_nothing_is_copied_to_where_it_is_forbidden(world: World) -> None:
    """A task for a forbidden location, whoever scheduled it, is struck off instead of being claimed."""
    await world.policy("team", never=["ap"])
    await world.blob("own", ["team/a"], ["us"])
    await world.blob("shared", ["team/a", "other/b"], ["us"])
    for blob in ("own", "shared"):
        await world.owe(blob, "ap")
    ledger = PostgresLedger(database=world.database, member=_LEDGER)
    (task,) = await ledger.claim_copies("ap", "p/", 10, 30)
    assert task.blob.digest == digest_of("shared")
    assert await world.tasks("own") == set()


async def test_nothing_is_claimed_for_a_location_that_is_out_of_service(world: World) -> None:
    """Copies into a paused or draining location are not begun, and the debt stays."""
    await world.blob("b", ["team/a"], ["us"])
    await world.owe("b", "eu")
    ledger = PostgresLedger(database=world.database, member=_LEDGER)
    for state in (LocationState.PAUSED, LocationState.DRAINING):
        await world.state("eu", state)
        assert await ledger.claim_copies("eu", "p/", 10, 30) == []
    await world.state("eu", LocationState.ACTIVE)
    assert len(await ledger.claim_copies("eu", "p/", 10, 30)) == 1


async def test_a_copy_whose_task_was_struck_is_not_placed(world: World) -> None:
    """A copy that ends after the reconciler removed its task becomes a dead object: its key may be buried already."""
    await world.blob("b", ["team/a"], ["us", "eu"])
    await world.owe("b", "ap")
    ledger = PostgresLedger(database=world.database, member=_LEDGER)
    (task,) = await ledger.claim_copies("ap", "p/", 10, 30)
    await world.database.fetch("UPDATE task SET lease_until = now() - interval '1 second'")
    await fill(world)
    assert await world.tasks("b") == set()
    assert await finish_copy(ledger, task, PieceProofs()) is CopyOutcome.SUPERSEDED
    assert set(await world.placed("b")) == {"us", "eu"}
    assert await world.dead() == {task.key}


async def test_a_residency_report_names_what_is_shared(world: World) -> None:
    """A blob that is in a location only because another namespace allows it is named, with both of them."""
    await world.policy("strict", never=["us"])
    await world.blob("shared", ["strict/a", "other/b"], ["us", "eu"])
    await world.blob("leaving", ["strict/a"], ["us"])
    await world.blob("free", ["other/b"], ["us"])
    for name in ("us", "strict"):
        document = await residency(world.database, name)
        blobs = document["blobs"]
        assert isinstance(blobs, list)
        assert [(blob["digest"], blob["location"], blob["allowing"], blob["reason"]) for blob in blobs] == [
            (digest_of("shared"), "us", ("other",), "shared"),
            (digest_of("leaving"), "us", (), "until another copy is good"),
        ]
        assert "PostgreSQL" in str(document["note"])
    assert (await residency(world.database, "eu"))["blobs"] == []
    assert (await residency(world.database, "us", most=1))["next"] is not None
    with pytest.raises(Problem):
        await residency(world.database, "nobody")


async def test_stalled_copies_are_listed_with_reason_and_age(world: World) -> None:
    """What failed often enough is listed, longest first, with its last error and since when; what did not is not."""
    await world.blob("bad", ["team/a"], ["us"])
    await world.blob("slow", ["team/a"], ["us"])
    await world.owe("bad", "eu", failures=STALLED_AFTER)
    await world.owe("slow", "eu", failures=STALLED_AFTER - 1)
    (line,) = await list_stalled(world.database, None, 10)
    assert (line.digest, line.location, line.error, line.repository) == (digest_of("bad"), "eu", "it burns", "team/a")
    assert line.failing_for >= 60
    assert (await stalled_copies(world.database, "us", 10)) == {"stalled": []}


async def test_what_nothing_can_move_is_told_from_what_may_yet_go(world: World) -> None:
    """A blob keeps a location when no copy is trusted and every way out is stalled, or all are closed; not while one is open."""
    await world.policy("team", never=["eu", "ap"])
    for name, repositories, placed in (
        ("damaged", ["other/b", "other/c"], {"us": "suspect", "ap": "suspect"}),
        ("shut in", ["team/a"], {"us": "suspect"}),
        ("sound and shut in", ["team/a"], {"us": "present"}),
        ("tried", ["other/b"], {"us": "suspect"}),
        ("running", ["other/b"], {"us": "suspect"}),
        ("found", ["other/b"], {"us": "suspect"}),
        ("half tried", ["other/b"], {"us": "suspect"}),
        ("healable", ["other/b"], {"us": "suspect", "eu": "present"}),
        ("sound", ["other/b"], {"us": "present"}),
        ("unlinked", [], {"us": "suspect"}),
    ):
        await world.blob(name, repositories, placed)
        if name not in ("shut in", "sound and shut in", "found"):
            leased = name == "running"
            await world.owe(name, "eu", failures=STALLED_AFTER - (name == "tried"), leased=leased)
    # Nothing is copied into a location that is being emptied, so what is owed there says nothing.
    await world.owe("damaged", "us")
    await world.owe("half tried", "ap")
    assert [line.stuck_blobs for line in await list_locations(world.database)] == [0, 0, 0]
    assert (await world.change("us", LocationState.DRAINING)).outcome is Change.DONE
    assert {line.name: line.stuck_blobs for line in await list_locations(world.database)} == {"us": 3, "eu": 0, "ap": 0}
    damaged, shut_in, sound = await list_stuck(world.database, "us", 10)
    assert (damaged.digest, damaged.repositories, damaged.error) == (
        digest_of("damaged"),
        ("other/b", "other/c"),
        "it burns",
    )
    assert damaged.failing_for is not None
    assert damaged.failing_for >= 60
    assert (shut_in.digest, shut_in.failing_for) == (digest_of("shut in"), None)
    assert (sound.digest, sound.error) == (
        digest_of("sound and shut in"),
        "policies forbid every other active location",
    )
    assert len(await list_stuck(world.database, "us", 1)) == 1


async def test_apply_makes_the_file_count(world: World) -> None:
    """`policy apply` makes this file's default locations the database's at once."""
    assert await apply_defaults(world.database, ["us", "ap"])
    assert set(await default_locations(world.database)) == {"us", "ap"}
    assert not await apply_defaults(world.database, ["us", "ap"])


async def _say(world: World, node: int, *defaults: str) -> None:
    member = Membership(UUID(int=node), ("us",), defaults, "test")
    # A node's list is as its row was made: another list is another start.
    await sign_off(world.database, member)
    await heartbeat(world.database, member, draining=False, forget_after=60.0)


async def test_a_file_counts_when_all_live_nodes_have_changed_to_it(world: World) -> None:
    """What is made the default beside the files stays while nodes go on saying what they said, also when they start again."""
    for node in (1, 2):
        await _say(world, node, "us", "eu")
    await apply_defaults(world.database, ["us", "eu", "ap"])
    assert await agree_on_defaults(world.database, 10.0) is None
    await _say(world, 1, "eu", "us")
    assert await agree_on_defaults(world.database, 10.0) is None
    assert set(await default_locations(world.database)) == {"us", "eu", "ap"}

    await _say(world, 1, "us")
    assert await agree_on_defaults(world.database, 10.0) is None, "the other says something else"
    await _say(world, 2, "us")
    assert await agree_on_defaults(world.database, 10.0) == ("us",)
    assert await default_locations(world.database) == ("us",)
    assert await agree_on_defaults(world.database, 10.0) is None
    for node in (1, 2):
        await _say(world, node, "us", "eu")
    assert await agree_on_defaults(world.database, 10.0) == ("eu", "us"), "back by the files, too"
