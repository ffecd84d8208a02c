"""Fixtures for tests against real services; `tests/services.py` says how they are used."""

import gc
import logging
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from tests.cluster import Cluster, StartCluster, configuration
from tests.faults import FaultyStore, MakeFaulty
from tests.services import Store, all_stores, fresh_database, fresh_storage_path, required

_REGIONS = ("us", "eu")

_MINUTES = (
    "tests/api/test_schemathesis.py",
    "tests/auth/test_dex.py",
    "tests/auth/test_login_processes.py",
    "tests/crash/",
    "tests/edge/test_over_tls.py",
    "tests/outage/",
    "tests/nemesis/test_real_clients.py",
    "tests/security/test_clients_by_tokens.py",
    "tests/test_store_dies.py",
    "tests/test_under_systemd.py",
)
"""Rehearsals that take minutes each: they run with `./scripts/test --long`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what belongs into the long run."""
    for item in items:
        if item.path.relative_to(config.rootpath).as_posix().startswith(_MINUTES):
            item.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    """Exempt what is there before the first test from every later look of the collector."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """What a file's tests leave open fails these, and not whichever test the collector finds it under."""
    yield
    gc.collect()


@pytest.fixture
def database_uri() -> Iterator[str]:
    """A fresh, empty database, dropped after the test."""
    with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
        yield uri


@pytest.fixture(scope="session")
def redis_uri() -> str:
    """The Redis that all tests share."""
    return required("ANTIPODE_TEST_REDIS")


@pytest.fixture(scope="session")
def s3_stores() -> dict[str, Store]:
    """The object stores, by name: us, eu, us-tls, eu-tls."""
    return all_stores()


@pytest.fixture
def storage_path(s3_stores: dict[str, Store]) -> Iterator[str]:
    """A fresh prefix, emptied in every store after the test."""
    path = fresh_storage_path()
    yield path
    _empty(s3_stores, path)


@pytest.fixture
def repository() -> str:
    """A repository name that no other test uses."""
    return f"test-{secrets.token_hex(4)}/image"


@pytest.fixture(scope="session")
def cluster(redis_uri: str, s3_stores: dict[str, Store], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two running nodes, `us` and `eu`, that all tests of the session share."""
    path = fresh_storage_path()
    regions = {name: s3_stores[name] for name in _REGIONS}
    with ExitStack() as stack:
        stack.callback(_empty, s3_stores, path)
        uri = stack.enter_context(fresh_database(required("ANTIPODE_TEST_POSTGRES")))
        file = configuration(uri, redis_uri, regions, path)
        nodes = Cluster(tmp_path_factory.mktemp("cluster"), file, ["us eu", "eu us"])
        stack.callback(nodes.end)
        nodes.start_now()
        yield nodes


@pytest.fixture
async def start_cluster(
    database_uri: str, redis_uri: str, s3_stores: dict[str, Store], storage_path: str, tmp_path: Path
) -> AsyncIterator[StartCluster]:
    """A function that starts nodes for this test alone."""
    started: list[Cluster] = []

    async def start(
        *preferences: str, stores: Mapping[str, Store] | None = None, launch: bool = True, **settings: Any
    ) -> Cluster:
        regions = {**{name: s3_stores[name] for name in _REGIONS}, **(stores or {})}
        file = configuration(database_uri, redis_uri, regions, storage_path, **settings)
        folder = tmp_path / f"cluster-{len(started)}"
        folder.mkdir()
        started.append(Cluster(folder, file, preferences))
        if launch:
            await trio.to_thread.run_sync(started[-1].start_now)
        return started[-1]

    yield start
    for nodes in started:
        await trio.to_thread.run_sync(nodes.end)


@pytest.fixture
async def faulty_store(s3_stores: dict[str, Store]) -> AsyncIterator[MakeFaulty]:
    """A function that puts a proxy which breaks on command in front of a store."""
    async with trio.open_nursery() as nursery:

        async def make(name: str) -> FaultyStore:
            proxy = FaultyStore(s3_stores[name])
            await nursery.start(partial(proxy.serve))
            return proxy

        yield make
        nursery.cancel_scope.cancel()


def _empty(stores: Mapping[str, Store], path: str) -> None:
    for name in _REGIONS:
        stores[name].empty(path)


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """A command sets up the logs of its process, which is this one here."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
