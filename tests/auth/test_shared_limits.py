"""Failed logins counted in the real Redis: together for all nodes, for as long as a window, and without it at once not at all."""

import secrets
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import structlog
import trio

from node.auth import shared_limits
from node.auth.limits import WINDOW, Failures, Limits
from node.auth.shared_limits import SharedCounts, shared_counts
from node.config.settings import RedisSettings
from node.errors import RegistryError
from scripts.services.processes import free_ports
from tests.registry.world import until
from tests.services import required

NOBODY = "192.0.2.1"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> RedisSettings:
    """The Redis that is there, which is not taken for one that is away because the machine is busy."""
    monkeypatch.setattr(shared_limits, "_SECONDS", 30.0)
    parts = urlsplit(required("ANTIPODE_TEST_REDIS"))
    return RedisSettings(parts.hostname or "", parts.port or 6379)


@pytest.fixture
def key() -> str:
    return f"account:{secrets.token_hex(8)}"


async def test_nodes_count_together(settings: RedisSettings, key: str) -> None:
    """Each node gets the number that all have counted, for each key by itself; the first of a window alone says when it ends."""
    us, eu = shared_counts(settings), shared_counts(settings)
    assert await us.count([key, f"{key}-b"], 300) == [1, 1]
    assert await eu.count([key], 30) == [2]
    assert await us.count([f"{key}-b", key], 30) == [2, 3]
    with redis.Redis(host=settings.host, port=settings.port) as client:
        assert 30 < client.ttl(f"antipode_failed_logins:{key}") <= 300


async def test_a_window_ends(settings: RedisSettings, key: str) -> None:
    """After its window a count begins anew."""
    counts = shared_counts(settings)
    assert await counts.count([key], 1) == [1]

    async def anew() -> bool:
        return await counts.count([key], 1) == [1]

    await until(anew, 30)


async def test_who_goes_from_node_to_node_is_refused(settings: RedisSettings, key: str) -> None:
    """What failed on one node counts on another from its first failure there."""
    us, eu = (
        Failures(trio.current_time, shared_counts(settings).count, Limits(account=3, address=1000)) for _ in range(2)
    )
    for _ in range(3):
        us.check(key, NOBODY)
        await us.note(key, NOBODY)
    eu.check(key, NOBODY)
    await eu.note(key, NOBODY)
    for node in (us, eu):
        with pytest.raises(RegistryError):
            node.check(key, NOBODY)


async def test_redis_is_away(key: str) -> None:
    """Without a Redis nobody waits long, and the node counts alone."""
    away: SharedCounts = shared_counts(RedisSettings("127.0.0.1", free_ports(1)[0]))
    with trio.fail_after(10):
        assert await away.count([key], 300) is None


async def test_an_address_that_is_held_off_is_told_of_once(autojump_clock: trio.testing.MockClock) -> None:
    """The log says which address may try no more, once in a window, and what to do if that is everybody's."""
    failures = Failures(trio.current_time, limits=Limits(account=1000, address=3))

    async def fail(times: int) -> list[Any]:
        with structlog.testing.capture_logs() as logged:
            for number in range(times):
                await failures.note(f"somebody{number}", NOBODY)
        return [line for line in logged if line["event"] == "one address is held off"]

    assert await fail(2) == []
    (line,) = await fail(5)
    assert (line["address"], line["after"], line["seconds"]) == (NOBODY, "3 failed logins", 300)
    assert "TRUSTED_PROXY_CIDR" in line["hint"]
    await trio.sleep(WINDOW)
    assert await fail(2) == []
    assert len(await fail(1)) == 1
