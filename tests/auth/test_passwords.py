"""Passwords are hashed a few at a time, whatever asks for it."""

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from node.api.frame import Problem
from node.api.operations import Call
from node.api.table import OPERATIONS
from node.auth import passwords
from node.auth.credentials import NotProven
from node.auth.model import ANYBODY
from node.auth.secrets import hash_secret
from node.records.bootstrap import offer_bootstrap
from tests.auth.people import ACCOUNTS, Person, settled
from tests.registry.world import MakeWorld

PASSWORD = "correct horse"


class Gauge:
    """How many run at once, and how many have run."""

    def __init__(self) -> None:
        self.lock, self.now, self.most, self.all = threading.Lock(), 0, 0, 0

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*given: Any) -> Any:
            with self.lock:
                self.now, self.all = self.now + 1, self.all + 1
                self.most = max(self.most, self.now)
            try:
                return work(*given)
            finally:
                with self.lock:
                    self.now -= 1

        return measured


async def test_one_bound_for_all_that_hash(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logins, users that are made and the first user together never hash more than two passwords at once: the memory is bounded."""
    gauge = Gauge()
    for name in ("hash_now", "verify_now"):
        monkeypatch.setattr(passwords, name, gauge.around(getattr(passwords, name)))
    (us,) = await world("us", **ACCOUNTS)
    registry = us.registry
    assert await offer_bootstrap(registry.database, hash_secret("once"), 60)
    operations = {operation.id: operation.handle for operation in OPERATIONS}
    first = {"token": "once", "username": "root", "password": PASSWORD}

    async def initialize() -> None:
        with suppress(Problem):  # all but one: the token is good once
            await operations["initialize"](Call(registry, ANYBODY, {}, {}, first))

    async def set_user(name: str) -> None:
        await operations["setUser"](Call(registry, ANYBODY, {"user": name}, {}, {"password": PASSWORD}))

    async def log_in(name: str) -> None:
        assert registry.access.parts is not None
        with pytest.raises(NotProven):
            await registry.access.parts.credentials.check(name, PASSWORD, "192.0.2.1")

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(initialize)
            nursery.start_soon(set_user, f"user{number}")
            nursery.start_soon(log_in, f"nobody{number}")
    assert gauge.all >= 9
    assert gauge.most == 2


async def test_a_crowd_with_one_password(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come at once with one name and password, as a fleet whose node has just started, all get in by few hashes."""
    gauge = Gauge()
    (us,) = await settled(world)
    monkeypatch.setattr(passwords, "verify_now", gauge.around(passwords.verify_now))
    found = Counter[int]()

    async def log_in() -> None:
        found[(await us.ask("GET", "/v2/auth", headers=Person("reader").basic)).status] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(log_in)
    assert found == {200: 100}
    assert gauge.all <= 4
