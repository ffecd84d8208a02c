"""Pushes of the simulated cluster that wait for copies before they count, as `node/push/durability.py` does it."""

from collections.abc import Collection

from node.shares import NOBODY
from node.waiting import Subject, Vanished
from property_tests.cluster import Node, PromiseBroken
from property_tests.memory_truth import COUNTING
from replication.closure import Closure
from replication.durable import refusal, required_by, satisfies, targets
from replication.plan import DEMANDED
from replication.policy import Durability
from replication.ports import LedgerUnavailable, Wake

KEPT = 400.0
"""Seconds that copies count as wanted which no policy requires: longer than any of these pushes waits."""


async def push_durably(
    node: Node, namespace: str, name: str, blobs: Collection[int], durability: Durability, seconds: float
) -> bool | None:
    """Push an image of blobs that are there, under a tag that moves when it is as durable as asked; return whether it moved.

    None: it was refused, because it could never be had.
    """
    truth = node.world.truth
    if refusal(durability, truth.states, truth.policy(namespace).never) is not None:
        return None
    made = truth.tags.push(truth.serial(), namespace, blobs)
    truth.owe_all()
    patterns = truth.policy(namespace).for_tag(name)

    def done(facts: Closure) -> bool:
        return satisfies(facts, durability, required_by(facts, patterns))

    subject = Subject(namespace, made.digest, whole=False)
    try:
        facts = await node.durable.until(subject, done, 0.0, NOBODY)
        if not done(facts):
            _ask(node, facts, blobs, targets(durability, required_by(facts, patterns), facts.places))
            facts = await node.durable.until(subject, done, seconds, NOBODY)
    except (Vanished, LedgerUnavailable):
        return False
    if not done(facts):
        return False
    _check(node, made.digest, blobs, durability)
    if made.digest in truth.tags.manifests:
        truth.tags.point((namespace, name), made.digest, truth.policy(namespace))
        truth.owe_all()
    return True


def _ask(node: Node, facts: Closure, blobs: Collection[int], locations: Collection[str]) -> None:
    truth = node.world.truth
    for at in locations:
        place = facts.places[at]
        if truth.states[at] not in COUNTING or place.forbidden:
            continue
        for blob in sorted(truth.blobs.keys() & blobs):
            if not place.required:
                truth.wishes[blob, at] = max(truth.wishes.get((blob, at), 0.0), truth.now() + KEPT)
            if at not in truth.good(blob):
                truth.owe(blob, at)
                task = truth.tasks[blob, at]
                task.priority = max(task.priority, DEMANDED)
    node.world.hints.publish(Wake(tuple(locations)))


def _check(node: Node, digest: str, blobs: Collection[int], durability: Durability) -> None:
    """What was asked for was there when the database was asked: the stores had the right bytes of each blob so many times."""
    stores, required = node.seen[digest]
    for blob in blobs:
        had = stores[blob]
        if len(had) < durability.copies or (durability.every and not required <= had):
            raise PromiseBroken(f"{digest} was acknowledged as {durability}: blob {blob} was in {sorted(had)} only")
