"""One turn under load: quiet, the faults, quiet again, until all has converged; then everything is pulled and looked at."""

import hashlib
from collections.abc import Collection, Sequence

import httpx
import trio
from attrs import define, field

from tests.cluster import Node
from tests.nemesis.checker import lost, violations
from tests.nemesis.client import PODMAN, Client
from tests.nemesis.faults import Spell, Turn
from tests.nemesis.ground import NO_TLS, REGIONS, Ground, until
from tests.nemesis.history import History, Operation
from tests.nemesis.images import version_of
from tests.nemesis.judge import Result, not_excused, summary
from tests.nemesis.workload import Workload, base_images, crowd_image
from tests.services import fetch_rows

QUIET, SETTLE = 2.0, 2.0
"""Seconds of load before the fault and after it."""
_END = 120.0
"""Seconds that clients may take to end what they are doing, with all their retries."""
_CONVERGE = 90.0

_STALLED_AFTER = 8
_OPEN = """
    SELECT (SELECT count(*) FROM task WHERE created_at < $1), (SELECT count(*) FROM task WHERE attempts >= $2),
        (SELECT count(*) FROM placement WHERE state <> 'present'),
        (SELECT count(*) FROM blob b, blob_required(b.id) AS r (location_id) WHERE b.created_at < $1 AND NOT EXISTS (
            SELECT FROM placement p WHERE p.blob_id = b.id AND p.location_id = r.location_id AND p.state = 'present'))
"""
_PLACED = """
    SELECT b.digest, l.name, p.key FROM blob b JOIN placement p ON p.blob_id = b.id JOIN location l ON l.id = p.location_id
    WHERE b.digest = ANY($1::text[])
"""


async def prepare(ground: Ground) -> None:
    """Push the base images and wait until they are everywhere."""
    history = History()
    client = Client(PODMAN, ground.doors["redirects"])
    for image in (*base_images(ground), crowd_image(ground)):
        with history.record(
            Operation("push", "base", "redirects", image.repository, "base", trio.current_time())
        ) as push:
            await client.push(push, image, "base")
    await client.close()
    assert all(operation.ok for operation in history.operations), history.operations
    problems: list[str] = []
    await _converged(ground, problems)
    assert not problems, problems


async def try_turn(ground: Ground, turn: Turn, seed: int, name: str) -> Result:
    """Let a turn's faults happen under load and return what came of it; `name` is of this trial alone."""
    wrong: list[str] = []
    await _pull_everywhere(ground, [(image.repository, image.digest) for image in base_images(ground)], wrong)
    load, ended = Workload(ground, name, seed), trio.Event()
    spells: list[Spell] = []

    async def run() -> None:
        await load.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(QUIET)
        async with trio.open_nursery() as happening:
            if any(fault.reach == "load" for fault in turn.faults):
                happening.start_soon(load.crowd)
            spells += await turn.happen(ground)
        mended = trio.current_time()
        converged = await _converged(ground, wrong, _CONVERGE + turn.seconds)
        await trio.sleep_until(mended + SETTLE)
        load.stop()
        with trio.move_on_after(_END):
            await ended.wait()
        nursery.cancel_scope.cancel()
    if not ended.is_set():
        wrong.append(f"clients did not end within {_END} s")
    wrong += violations(load.history.operations)
    wrong += not_excused(load.history, spells)
    wrong += await _afterwards(ground, load.history)
    return summary(turn.name, load.history, spells, mended, converged - mended, wrong)


async def _afterwards(ground: Ground, history: History) -> list[str]:
    """Pull all that was acknowledged from every node, and look at every object; return what is lost or wrong."""
    pushed = {(push.repository, push.digest or "") for push in history.of("push") if push.ok}
    pushed |= {(image.repository, image.digest) for image in base_images(ground)}
    wrong: list[str] = []
    pulled = await _pull_everywhere(ground, sorted(pushed), wrong)
    return [
        *wrong,
        *violations(pulled.operations),
        *lost(history.operations, pulled.operations),
        *await trio.to_thread.run_sync(wrong_objects, ground, pulled.looked_at),
    ]


async def _pull_everywhere(ground: Ground, images: Sequence[tuple[str, str]], problems: list[str]) -> "Pulled":
    """Pull images by digest from every node: from those first that look at the bytes themselves, then what they found is healed."""
    pulled = Pulled()

    for suffix in ("-2", ""):
        async with trio.open_nursery() as nursery:
            for region in REGIONS:
                nursery.start_soon(pull_all, pulled, ground.node(region + suffix), images)
        await _converged(ground, problems)
    return pulled


@define
class Pulled(History):
    """A history of pulls; `looked_at` has every blob that came with the location that the node began to read it from."""

    looked_at: set[tuple[str, str]] = field(factory=set)


async def pull_all(pulled: Pulled, node: Node, images: Sequence[tuple[str, str]]) -> None:
    """Pull images, repository and digest each, from one node as a client would, and note what came.

    A request that fails once is no loss: what is lost is still so when it is asked for again.
    """
    client = Client(PODMAN, node.url)
    for repository, digest in images:
        operation = Operation("pull", "last-reader", node.name, repository, None, trio.current_time(), digest=digest)
        with pulled.record(operation):
            manifest = await client.pull(operation, repository, digest)
            if manifest is not None:
                operation.version = version_of(manifest)
    pulled.looked_at |= client.looked_at
    await client.close()


def wrong_objects(ground: Ground, looked_at: Collection[tuple[str, str]]) -> list[str]:
    """Read the objects of these blobs from these locations' stores; return what has another digest, or is not there.

    Only what nodes have looked at: nobody can know of bytes that spoil while they are not read.
    """
    clients = {name: store.client() for name, store in ground.stores.items()}
    found = []
    for digest, location, key in fetch_rows(ground.database_uri, _PLACED, [digest for digest, _ in looked_at]):
        if (digest, location) not in looked_at:
            continue
        try:
            body = clients[location].get_object(Bucket=ground.stores[location].bucket, Key=key)["Body"].read()
        except clients[location].exceptions.NoSuchKey:
            found.append(f"{location} has no object {key} for {digest}")
            continue
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
            found.append(f"{location}: the object {key} is not {digest}")
    return found


async def _converged(ground: Ground, problems: list[str], seconds: float = _CONVERGE) -> float:
    """Wait until what is owed now is paid, nothing is suspect or stalled, and every node is well; return when that was so.

    Where it takes too long, `problems` gets what is missing.
    """
    (now,) = (await trio.to_thread.run_sync(fetch_rows, ground.database_uri, "SELECT clock_timestamp()"))[0]
    state: object = None

    async def well() -> bool:
        nonlocal state
        state = (await trio.to_thread.run_sync(fetch_rows, ground.database_uri, _OPEN, now, _STALLED_AFTER))[0]
        if any(state):
            return False
        for node in ground.cluster:
            answer = await client.get(f"{node.url}/api/v1/health/locations")
            lines = answer.json()["locations"]
            end_to_end = await client.get(f"{node.url}/health/endtoend")
            if end_to_end.status_code != 200 or not all(end_to_end.json()["data"]["services"].values()):
                state = end_to_end.text
                return False
            if any(line["verdict"] != "healthy" for line in lines):
                state = lines
                return False
        return True

    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=10) as client:
        try:
            await until(well, seconds)
        except AssertionError:
            problems.append(f"not converged within {seconds:.0f} s: {state}")
    return trio.current_time()
