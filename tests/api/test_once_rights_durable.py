"""Keys that stand for one request only, rights, and Antipode-Durability: a token may run out while its push waits for copies."""

import json
from functools import partial
from time import time

import pytest
import trio

from node.auth.tokens import LEEWAY
from tests.api.conftest import MakeWaiters, beside
from tests.api.test_durability import CONFIG, LAYER, asked, put, tagged
from tests.auth.people import ACCOUNTS, Person, bearing, settle, token_for
from tests.registry.world import digest_of, image, until

NAME = "private/app"
PUSHES = f"repository:{NAME}:pull,push"
LEFT = 4.0
"""Seconds that the token is good for."""


@pytest.mark.parametrize("stood", [0.0, 3600.0], ids=["all the time", "long ago"])
async def test_a_token_that_runs_out_meanwhile(make_waiters: MakeWaiters, nursery: trio.Nursery, stood: float) -> None:
    """A push whose token runs out while it waits for copies moves its tag; not one that stood still for longer than it may wait."""
    waiters = await make_waiters(**ACCOUNTS)
    us, writer = waiters.us, Person("writer")
    await settle(us.registry.database)
    body = json.dumps(image(CONFIG, LAYER)).encode()
    for blob in (CONFIG, LAYER):
        target = f"/v2/{NAME}/blobs/uploads/?digest={digest_of(blob)}"
        assert (await us.ask("POST", target, blob, writer.basic)).status == 201
    tokens, longest = us.registry.access.parts, us.node.settings.token_lifetime + LEEWAY
    assert tokens is not None
    tokens.tokens._clock = lambda: time() - longest + LEFT
    headers = bearing(await token_for(us, writer, PUSHES))
    ends = time() + LEFT
    us.registry.clock = lambda: time() - stood
    push = beside(
        nursery, partial(put, us, body, name=NAME, antipode_durability="all", idempotency_key="once-1", **headers)
    )
    await asked(us, body)
    # It goes on, after it had stood still.
    us.registry.clock = time

    async def has_run_out() -> bool:
        return time() > ends

    await until(has_run_out)
    await waiters.copy()
    answer = await push.get()
    assert answer.status == (401 if stood else 201)
    assert await tagged(us, name=NAME) == (None if stood else digest_of(body))
