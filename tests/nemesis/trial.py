"""One fault under load: quiet, the fault, quiet again, until all has converged; then what clients saw, and what was not allowed."""

import hashlib
from collections.abc import Collection, Sequence

import httpx
import trio
from attrs import define, field, frozen

from tests.cluster import Node
from tests.nemesis.checker import lost, violations
from tests.nemesis.client import BARE, PODMAN, Client
from tests.nemesis.faults import Fault
from tests.nemesis.ground import NO_TLS, REDIRECT_BOUND, REGIONS, Ground, until
from tests.nemesis.history import History, Operation
from tests.nemesis.images import version_of
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
_FAIL_OVER_OF_A_BALANCER = 3.0
"""Seconds until haproxy has left a node that is gone: two probes, a second apart, and the time they may take."""
_QUICKLY = 20.0
"""Seconds within which every request ends, well or not."""


@frozen
class Result:
    """One line of the table, and everything that was wrong."""

    fault: Fault
    seconds: float
    pulls: int
    pushes: int
    streamed_errors: int
    """Requests of pulls through nodes that stream, by clients that do not retry, that failed."""
    redirected_errors: int
    """The same through nodes that redirect."""
    retried: int
    """Requests of clients that do retry, that failed."""
    failed_commands: int
    """Commands that failed after all their retries."""
    worst_latency: float
    """Seconds that the longest command took, its retries included."""
    fail_over: float
    """Seconds from the fault to the last request that began and failed while it lasted."""
    converge: float
    """Seconds from the end of the fault until nothing was owed, suspect or ill any more."""
    wrong: list[str] = field(factory=list)
    """What no fault of this kind excuses."""
    errors: list[str] = field(factory=list)
    """Reasons of failures, for people."""


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


async def try_fault(ground: Ground, fault: Fault, seconds: float, seed: int, name: str) -> Result:
    """Let a fault of `seconds` happen under load and return what came of it; `name` is of this trial alone."""
    wrong: list[str] = []
    await _pull_everywhere(ground, [(image.repository, image.digest) for image in base_images(ground)], wrong)
    load, ended = Workload(ground, name, seed), trio.Event()

    async def run() -> None:
        await load.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(QUIET)
        began = trio.current_time()
        async with fault.make(ground):
            if fault.reach == "load":
                await load.crowd()
            await trio.sleep_until(began + seconds)
            stopped = trio.current_time()
        mended = trio.current_time()
        converged = await _converged(ground, wrong)
        await trio.sleep_until(mended + SETTLE)
        load.stop()
        with trio.move_on_after(_END):
            await ended.wait()
        nursery.cancel_scope.cancel()
    if not ended.is_set():
        wrong.append(f"clients did not end within {_END} s")
    wrong += violations(load.history.operations)
    wrong += _not_allowed(load.history, fault, began, stopped)
    wrong += await _afterwards(ground, load.history)
    return _summary(load.history, fault, began, stopped, converged - mended, wrong)


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
    """Pull images, repository and digest each, from one node and note what came."""
    client = Client(BARE, node.url)
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


async def _converged(ground: Ground, problems: list[str]) -> float:
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
            await until(well, _CONVERGE)
        except AssertionError:
            problems.append(f"not converged within {_CONVERGE} s: {state}")
    return trio.current_time()


def _not_allowed(history: History, fault: Fault, began: float, stopped: float) -> list[str]:
    """Return the failures that a fault of this kind does not excuse."""
    found = []
    for operation in history.operations:
        who = f"{operation.client} ({operation.door})"
        found += [
            f"{who} waited {failure.ended - failure.began:.1f} s for: {failure.reason}"
            for failure in operation.failures
            if failure.ended - failure.began > _QUICKLY
        ]
        if operation.ok:
            continue
        if not operation.retries:
            last = operation.failures[-1].began if operation.failures else operation.began
            if not _bare_may_fail(operation, fault, last - began):
                found.append(f"{who} failed {last - began:.1f} s after the fault: {operation.error}")
        elif not _command_may_fail(operation, fault, stopped):
            found.append(
                f"{who} gave up a {operation.kind} {operation.ended - began:.1f} s after the fault: {operation.error}"
            )
    return found


def _bare_may_fail(operation: Operation, fault: Fault, after: float) -> bool:
    """Say whether a client that does not try again may see its request fail, so many seconds after the fault began."""
    if fault.reach in ("node", "region"):
        return 0 <= after <= _FAIL_OVER_OF_A_BALANCER
    if operation.door == "redirects" and fault.reach in ("store", "bytes"):
        # What was sent to the store itself is out of the registry's hands; nobody fails over there.
        return fault.reach == "bytes" or 0 <= after <= REDIRECT_BOUND
    return False


def _command_may_fail(operation: Operation, fault: Fault, stopped: float) -> bool:
    """Say whether a command may fail after all its retries."""
    if fault.reach == "database":
        return operation.began < stopped + 1
    return fault.reach == "bytes" and operation.kind == "pull" and operation.door == "redirects"


def _summary(history: History, fault: Fault, began: float, stopped: float, converge: float, wrong: list[str]) -> Result:
    failures = [(operation, failure) for operation in history.operations for failure in operation.failures]

    def count(door: str) -> int:
        return sum(1 for operation, _ in failures if not operation.retries and operation.door == door)

    longest = max(history.operations, key=lambda operation: operation.seconds)
    during = [failure.began for _, failure in failures if began <= failure.began <= stopped]
    return Result(
        fault=fault,
        seconds=stopped - began,
        pulls=len(history.of("pull", "look")),
        pushes=len(history.of("push", "delete")),
        streamed_errors=count("streams"),
        redirected_errors=count("redirects"),
        retried=sum(1 for operation, _ in failures if operation.retries),
        failed_commands=sum(1 for operation in history.operations if operation.retries and not operation.ok),
        worst_latency=longest.seconds,
        fail_over=max(during, default=began) - began,
        converge=converge,
        wrong=wrong,
        errors=[
            f"{failure.began - began:+.2f} s ({failure.ended - failure.began:.2f} s) {operation.client}: {failure.reason[:700]}"
            for operation, failure in failures
        ]
        + [f"{longest.began - began:+.2f} s ({longest.seconds:.2f} s) longest: {longest.kind} of {longest.client}"],
    )
