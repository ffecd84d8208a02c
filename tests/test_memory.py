"""What a node holds in memory when nothing happens and everything that it may remember is remembered."""

import os
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from node.cache import Freshness
from node.records.manifests import FoundManifest
from node.records.pulls import FoundBlob
from node.registry import _LINKS, _MANIFEST_BYTES, _SMALL_BLOB_BYTES, Memory
from replication.model import Blob, Placement
from replication.ports import Forget
from tests.cluster import START_SECONDS, StartCluster

MIB = 1 << 20


def digest(number: int) -> str:
    return "sha256:" + sha256(str(number).encode()).hexdigest()


def fill(memory: Memory) -> None:
    """Fill the caches with what production registries hold: manifests of 2 kB, configurations of 3, blobs in two places."""
    for number in range(_MANIFEST_BYTES // 2000):
        memory.manifest_bytes.keep(digest(number), os.urandom(2000), float(number))
    for number in range(_SMALL_BLOB_BYTES // 3000):
        memory.small_blobs.keep(digest(-number), os.urandom(3000), float(number))
    for number in range(_LINKS + 1000):
        repository, at = f"team-{number % 100}/application-{number}", float(number)
        key = f"registry/sha256/ab/{digest(number)}.{number:032x}"
        places = (Placement("us", f"{key}1"), Placement("eu", f"{key}2"))
        memory.manifests.keep((repository, digest(number)), FoundManifest(digest(number), "a/b", None), at)
        memory.blobs.keep((repository, digest(number)), FoundBlob(Blob(number, digest(number), 1), places), at)
        memory.last_digest.keep((repository, f"v{number}"), digest(number), at)


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def full_caches() -> int:
    """Return how many bytes a process holds for caches that are full: of one that does nothing else."""
    words = [sys.executable, "-m", "tests.test_memory"]
    root = Path(__file__).parent.parent
    with trio.fail_after(START_SECONDS):
        done = await trio.run_process(words, capture_stdout=True, cwd=root)
    return int(done.stdout)


async def test_idle_with_full_caches(start_cluster: StartCluster) -> None:
    """An idle node holds less than 150 MiB, also when its caches are full."""
    nodes = await start_cluster("us eu")
    idle = nodes["us"].resident_bytes
    caches = await full_caches()
    print(f"idle {idle / MIB:.0f} MiB, caches {caches / MIB:.0f} MiB")
    assert caches > 20 * MIB
    assert idle + caches < 150 * MIB


@contextmanager
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [100, 300, 2000])
def test_a_cache_of_bytes_holds_what_it_weighs(size: int) -> None:
    """A cache that is bounded in bytes holds no more of them than its bound, of small values as of large ones."""
    with traced():
        cache = Memory(Freshness(5.0)).manifest_bytes
        for number in range(_MANIFEST_BYTES // size):
            cache.keep(digest(number), os.urandom(size), float(number))
        held, _ = tracemalloc.get_traced_memory()
    assert 0.8 * _MANIFEST_BYTES < cache.statistics().weight <= _MANIFEST_BYTES
    assert 0.8 * cache.statistics().weight < held < 1.02 * cache.statistics().weight


def test_hints_cost_little() -> None:
    """What is remembered of a hint takes no more than 200 bytes, however long the names in it: a hundred thousand are kept."""
    with traced():
        freshness = Freshness(5.0, 3600.0)
        for number in range(20_000):
            freshness.note(Forget(f"some-team/with/a/long/name/{number}", digest(number)), 1.0 + number / 1e6)
        held, _ = tracemalloc.get_traced_memory()
    print(f"{held / 20_000:.0f} bytes each")
    assert held < 200 * 20_000


if __name__ == "__main__":
    before, held = resident(), Memory(Freshness(5.0))
    fill(held)
    print(resident() - before)
