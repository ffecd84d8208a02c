"""Idempotency-Key with Antipode-Durability: the repetition of a push that waits for copies waits, too; one moves the tag."""

from functools import partial

import trio

from tests.api.conftest import Waiters, beside
from tests.api.test_durability import LAYER, asked, prepare, put, tagged
from tests.registry.world import digest_of, until


async def test_a_repetition_waits_too(waiters: Waiters, nursery: trio.Nursery) -> None:
    """The first waits on one node and its repetition on another; the tag moves once, and never again by this key."""
    us, eu = waiters.us, waiters.eu
    body, other = await prepare(us, LAYER), await prepare(us, b"other")
    push = partial(put, body=body, antipode_durability="all", idempotency_key="key-1")
    first = beside(nursery, partial(push, us))
    await asked(us, body)
    second = beside(nursery, partial(push, eu))

    async def it_waits() -> bool:
        return eu.registry.durable.waiters > 0

    await until(it_waits)
    assert (first.done.is_set(), second.done.is_set(), await tagged(us)) == (False, False, None)
    await waiters.copy()
    answers = await first.get(), await second.get()
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].headers == answers[1].headers
    assert await tagged(us) == digest_of(body)
    moves = await us.rows(
        "SELECT action FROM audit WHERE repository = 'ns/app' AND action IN ('push', 'moveTags') ORDER BY id"
    )
    assert [row["action"] for row in moves] == ["push", "moveTags"]
    await put(us, other)
    again = await push(eu)
    assert (again.status, again.headers) == (201, answers[0].headers)
    assert await tagged(us) == digest_of(other)


async def test_the_first_was_too_late(waiters: Waiters) -> None:
    """A push whose time was up has not moved its tag: with the same key it goes on, and then it is done."""
    us, eu = waiters.us, waiters.eu
    body, other = await prepare(us, LAYER), await prepare(us, b"other")
    late = await put(us, body, antipode_durability="all", antipode_durability_timeout="1ms", idempotency_key="key-1")
    assert (late.status, await tagged(us)) == (503, None)
    await waiters.copy()
    assert (await put(eu, body, antipode_durability="all", idempotency_key="key-1")).status == 201
    assert await tagged(us) == digest_of(body)
    await put(us, other)
    assert (await put(us, body, antipode_durability="all", idempotency_key="key-1")).status == 201
    assert await tagged(us) == digest_of(other)


async def test_the_first_comes_back_from_its_wait_late(waiters: Waiters, nursery: trio.Nursery) -> None:
    """A push that has waited for its copies while another try moved the tag, and the tag moved on, moves nothing."""
    us, eu = waiters.us, waiters.eu
    body, other = await prepare(us, LAYER), await prepare(us, b"other")
    first = beside(nursery, partial(put, us, body, antipode_durability="all", idempotency_key="key-1"))
    await asked(us, body)
    # A policy, or its header, may ask for less when the other try comes.
    assert (await put(eu, body, idempotency_key="key-1")).status == 201
    assert await tagged(us) == digest_of(body)
    await put(eu, other)
    await waiters.copy()
    assert (await first.get()).status == 201
    assert await tagged(us) == digest_of(other)


async def test_a_policy_that_came_later(waiters: Waiters) -> None:
    """A push that was done without waiting is not waited for by its repetition, whatever the policy asks for by then."""
    us, eu = waiters.us, waiters.eu
    body, other = await prepare(us, LAYER), await prepare(us, b"other")
    assert (await put(us, body, idempotency_key="key-1")).status == 201
    await put(us, other)
    await waiters.policy("ns", durability="all")
    for region in (us, eu):
        again = await put(region, body, idempotency_key="key-1")
        assert again.status == 201
    assert await tagged(us) == digest_of(other)
