"""Clients of the simulated cluster that push images, referrers and signatures, and move and delete tags."""

from random import Random

from property_tests.memory_tags import Manifest
from property_tests.memory_truth import Truth
from replication.policy import TagRule

NAMES = ("v1", "v2", "latest")


def random_rules(random: Random, locations: list[str]) -> tuple[TagRule, ...]:
    """Return tag rules: none, as often as not."""
    if random.random() < 0.4:
        return ()
    return (
        TagRule(random.choice(("v*", "latest", "*")), frozenset(random.sample(locations, random.choice((1, 1, 2))))),
    )


class Images:
    """Makes manifests out of blobs that are there, and tags that point to them."""

    def __init__(self, truth: Truth, random: Random) -> None:
        self._truth = truth
        self._random = random

    def act(self, namespace: str) -> None:
        """Do one thing in a namespace."""
        truth, random = self._truth, self._random
        here = [m for m in truth.tags.manifests.values() if m.namespace == namespace]
        blobs = [blob for blob, links in truth.links.items() if namespace in links]
        if len(here) > 6 or (here and random.random() < 0.2):
            truth.tags.delete(random.choice(here).digest)
        elif blobs:
            made = self._push(namespace, blobs, here)
            if random.random() < 0.6:
                self._tag(namespace, made, here)
        # What the commit adds to somebody's closure is owed with it.
        truth.owe_all()

    def _push(self, namespace: str, blobs: list[int], here: list[Manifest]) -> Manifest:
        truth, random = self._truth, self._random
        some = random.sample(blobs, min(len(blobs), random.randint(1, 3)))
        old = random.choice(here).digest if here else None
        kind = random.choice(("image", "image", "index", "referrer")) if old else "image"
        if kind == "index":
            return truth.tags.push(truth.serial(), namespace, children=(old,) if old else ())
        return truth.tags.push(truth.serial(), namespace, some, subject=old if kind == "referrer" else None)

    def _tag(self, namespace: str, made: Manifest, here: list[Manifest]) -> None:
        truth, random = self._truth, self._random
        name = random.choice(NAMES)
        if here and random.random() < 0.3:
            name = (
                f"sha256-{random.choice(here).digest.removeprefix('sha256:')}.{random.choice(('sig', 'att', 'sbom'))}"
            )
        truth.tags.point((namespace, name), made.digest, truth.policy(namespace))
