"""Hints within a process and their wire form: what subscribers get, what is bounded, what is said after a loss."""

import json

import pytest
import trio

from node.hint_hub import MOST_WAITING, Hub
from node.hint_wire import MOST_BYTES, BadMessage, decode, encode
from node.hints import open_hints
from replication.ports import Forget, Hint, Placed, Seen, Wake

DIGEST = "sha256:" + "a" * 64
EACH: tuple[Hint, ...] = (
    Wake(),
    Wake(("us", "eu")),
    Forget(),
    Forget("team/app"),
    Forget("team/app", DIGEST),
    Seen("eu", "down", "us-1"),
    Placed(DIGEST, "eu"),
)


def test_every_hint_survives_the_wire() -> None:
    """What is encoded is decoded to equal values, in order, with the sender."""
    (payload,) = encode("us-1", EACH)
    assert decode(payload).sender == "us-1"
    assert decode(payload).hints == EACH


def test_equal_hints_travel_once() -> None:
    """A batch has every hint once."""
    (payload,) = encode("us-1", [Wake(), Placed(DIGEST, "eu"), Wake(), Wake()])
    assert decode(payload).hints == (Wake(), Placed(DIGEST, "eu"))


def test_messages_stay_below_the_limit_of_notify() -> None:
    """Many hints become several messages of bounded size, and none is lost."""
    hints = [Placed(f"sha256:{number:064x}", "eu") for number in range(500)]
    payloads = list(encode("us-1", hints))
    assert max(len(payload.encode()) for payload in payloads) <= MOST_BYTES < 8000
    assert [hint for payload in payloads for hint in decode(payload).hints] == hints


def test_a_hint_too_long_for_a_message_is_widened() -> None:
    """A hint that fits no message becomes what it is a case of, never silence."""
    long = tuple(f"location-{number}" for number in range(2000))
    assert [hint for payload in encode("us", [Wake(long)]) for hint in decode(payload).hints] == [Wake()]
    assert [hint for payload in encode("us", [Forget("x" * 9000)]) for hint in decode(payload).hints] == [
        Forget(),
        Wake(),
    ]


def test_an_unknown_kind_of_hint_means_everything_changed() -> None:
    """A newer node's hint, whose kind this node does not know, forgets everything and wakes."""
    payload = json.dumps({"v": 1, "from": "eu", "hints": [["moved", DIGEST]]})
    assert decode(payload).hints == (Forget(), Wake())


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "hello",
        b"\xff\xfe",
        "[]",
        "null",
        "[" * 100_000,
        '{"v": 2, "from": "eu", "hints": []}',
        '{"v": 1, "from": 5, "hints": []}',
        '{"v": 1, "from": "eu", "hints": [5]}',
        '{"v": 1, "from": "eu", "hints": [["wake", [5]]]}',
        '{"v": 1, "from": "eu", "hints": [["placed", null, "eu"]]}',
    ],
)
async def test_what_cannot_be_parsed_is_counted_and_ignored(payload: str | bytes) -> None:
    """A foreign or broken message raises BadMessage when decoded, and a hub goes on after it."""
    with pytest.raises(BadMessage):
        decode(payload)
    hub = Hub("us", transport="redis")
    async with hub.subscribe() as subscription:
        hub.heard(payload)
        hub.publish(Wake())
        assert await anext(subscription) == Wake()
    assert hub.statistics().invalid == 1


async def test_local_delivery_is_immediate_and_once() -> None:
    """Subscribers of the process have a hint when publish returns, in order, and not again when it comes back."""
    hub = Hub("us", transport="redis")
    async with hub.subscribe() as one, hub.subscribe() as two:
        hub.publish(*EACH)
        for payload in encode("us", await hub.next_batch()):
            hub.heard(payload)
        hub.publish(Placed(DIGEST, "end"))
        for subscription in (one, two):
            assert [await anext(subscription) for _ in EACH] == list(EACH)
            assert await anext(subscription) == Placed(DIGEST, "end")
    assert hub.statistics().received == 0


async def test_a_subscription_ends_with_its_scope(autojump_clock: trio.testing.MockClock) -> None:
    """Iteration ends, also where somebody waits, when the subscription is closed; later hints go to the others only."""
    hub = Hub("us")
    got: list[Hint] = []
    async with trio.open_nursery() as nursery, hub.subscribe() as subscription:

        async def read() -> None:
            got.extend([hint async for hint in subscription])

        nursery.start_soon(read)
        hub.publish(Wake())
        await trio.sleep(1)
        subscription.close()
    hub.publish(Wake())
    assert got == [Wake()]
    assert hub.statistics().subscribers == 0


async def test_a_slow_subscriber_is_told_everything_instead(autojump_clock: trio.testing.MockClock) -> None:
    """A subscriber that does not keep up holds a bounded number of hints, and misses none unknowingly."""
    hub = Hub("us")
    async with hub.subscribe() as slow:
        for number in range(MOST_WAITING + 1):
            hub.publish(Placed(DIGEST, str(number)))
        assert [await anext(slow), await anext(slow)] == [Forget(), Wake()]
        with trio.move_on_after(1) as scope:
            await anext(slow)
        assert scope.cancelled_caught
    assert hub.statistics().overrun == 1


async def test_a_full_buffer_drops_counts_and_tells_everybody_later() -> None:
    """What the wire's buffer cannot take is dropped and counted, and the next batch begins with "everything"."""
    hub = Hub("us", transport="redis")
    for number in range(MOST_WAITING + 5):
        hub.publish(Placed(DIGEST, str(number)))
    statistics = hub.statistics()
    assert (statistics.waiting, statistics.dropped) == (MOST_WAITING, 5)
    batch = await hub.next_batch()
    assert batch[:2] == (Forget(), Wake())
    assert len(batch) == MOST_WAITING + 2
    hub.publish(Wake(("eu",)))
    assert await hub.next_batch() == (Wake(("eu",)),)


async def test_a_batch_that_was_lost_is_made_good() -> None:
    """A batch that the wire did not take is not repeated: everybody is told "everything" once."""
    hub = Hub("us", transport="redis")
    hub.publish(Placed(DIGEST, "eu"))
    hub.batch_lost(await hub.next_batch())
    assert await hub.next_batch() == (Forget(), Wake())
    assert hub.statistics().dropped == 1


async def test_after_a_gap_everything_comes_first() -> None:
    """When the line stands (again), subscribers get Forget() and Wake() before what they have not read yet."""
    hub = Hub("us", transport="redis")
    async with hub.subscribe() as subscription:
        hub.publish(Placed(DIGEST, "eu"))
        hub.line_stands()
        hub.line_lost("gone")
        hub.line_stands()
        assert [await anext(subscription) for _ in range(3)] == [Forget(), Wake(), Placed(DIGEST, "eu")]
    assert hub.statistics().gaps == 2


async def test_without_any_bus_hints_stay_in_the_process() -> None:
    """With neither Redis nor a database hints are delivered locally, and nothing is buffered for a wire."""
    async with open_hints(None, None, "us-1") as hints, hints.subscribe() as subscription:
        hints.publish(Wake(("us",)))
        assert await anext(subscription) == Wake(("us",))
        statistics = hints.statistics()
    assert (statistics.transport, statistics.connected, statistics.waiting) == ("local", True, 0)
