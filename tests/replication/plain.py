"""A registry as plain sets, and what the words of the rules say about it: where a blob must be, may be, and would be lost.

No statement of the database's is repeated here: closures, requirements and risks are found the plainest way, over everything.
"""

import re
from collections.abc import Iterator, Sequence

from attrs import define, field, frozen

from replication.arrival import Status
from replication.model import LocationState
from replication.policy import NO_POLICY, Policy
from tests.replication.world import digest_of

STAYING = (LocationState.ACTIVE, LocationState.PAUSED)
_ATTACHED = re.compile(r"sha256-([0-9a-f]{64})\.(sig|att|sbom)")

Tag = tuple[str, str]
"""Repository and name."""


def manifest_digest(number: int) -> str:
    return digest_of(f"manifest {number}")


def blob_digest(number: int) -> str:
    return digest_of(f"blob {number}")


def blob_size(number: int) -> int:
    return 1000 + number


def namespace_of(repository: str) -> str:
    return repository.partition("/")[0]


@frozen
class Manifest:
    """What a manifest names, by number: blobs, manifests that were there or will come, and what it refers to."""

    blobs: frozenset[int] = frozenset()
    children: frozenset[int] = frozenset()
    subject: int | None = None


@define(eq=False)
class Plain:
    """`manifests` are all that there may ever be; the rest is what is there."""

    manifests: Sequence[Manifest]
    states: dict[str, LocationState]
    defaults: frozenset[str]
    policies: dict[str, Policy] = field(factory=dict)
    links: set[tuple[str, int]] = field(factory=set)
    """(repository, blob)"""
    held: set[tuple[str, int]] = field(factory=set)
    """(repository, manifest)"""
    tags: dict[Tag, int] = field(factory=dict)
    copies: dict[tuple[int, str], bool] = field(factory=dict)
    """(blob, location) -> whether it is good."""
    wishes: set[tuple[int, str]] = field(factory=set)

    def policy(self, namespace: str) -> Policy:
        return self.policies.get(namespace, NO_POLICY)

    def blobs(self) -> set[int]:
        return {blob for _, blob in self.links}

    def namespaces(self, blob: int) -> set[str]:
        return {namespace_of(repository) for repository, linked in self.links if linked == blob}

    def closure(self, home: str, root: int, *, referrers: bool) -> set[int]:
        """Everything that a manifest needs, or with `referrers` has attached to it, as far as its repository holds it."""
        found, todo = {root}, [root]
        while todo:
            for near in self._near(home, todo.pop(), referrers=referrers):
                if (home, near) in self.held and near not in found:
                    found.add(near)
                    todo.append(near)
        return found

    def _near(self, home: str, number: int, *, referrers: bool) -> Iterator[int]:
        yield from self.manifests[number].children
        if not referrers:
            return
        yield from (other for other, manifest in enumerate(self.manifests) if manifest.subject == number)
        for (repository, name), target in self.tags.items():
            match = _ATTACHED.fullmatch(name)
            if repository == home and match and f"sha256:{match[1]}" == manifest_digest(number):
                yield target

    def closure_blobs(self, home: str, root: int, *, referrers: bool) -> set[int]:
        closure = self.closure(home, root, referrers=referrers)
        return {blob for number in closure for blob in self.manifests[number].blobs}

    def absent(self, home: str, root: int, *, referrers: bool) -> set[int]:
        closure = self.closure(home, root, referrers=referrers)
        return {child for n in closure for child in self.manifests[n].children if (home, child) not in self.held}

    def tags_of(self, blob: int) -> set[Tag]:
        """The tags whose closure, with what is attached, has a blob."""
        return {tag for tag, root in self.tags.items() if blob in self.closure_blobs(tag[0], root, referrers=True)}

    def namespace_required(self, namespace: str) -> frozenset[str]:
        policy = self.policy(namespace)
        return (self.defaults if policy.required is None else policy.required) - policy.never

    def forbids(self, blob: int) -> dict[str, set[str]]:
        """The namespaces that link a blob and say *never*, by location."""
        return {at: {n for n in self.namespaces(blob) if at in self.policy(n).never} for at in self.states}

    def forbidden(self, blob: int) -> set[str]:
        """Where nobody who links a blob allows it. What nobody links is nobody's to forbid."""
        linking = self.namespaces(blob)
        return {at for at, forbidding in self.forbids(blob).items() if linking and forbidding == linking}

    def required(self, blob: int) -> set[str]:
        wanted = {at for namespace in self.namespaces(blob) for at in self.namespace_required(namespace)}
        for repository, name in self.tags_of(blob):
            wanted |= self.policy(namespace_of(repository)).for_tag(name)
        wanted |= {at for wished, at in self.wishes if wished == blob}
        return {at for at in wanted - self.forbidden(blob) if self.states[at] in STAYING}

    def good(self, blob: int) -> set[str]:
        return {at for (copied, at), good in self.copies.items() if copied == blob and good}

    def debt(self) -> set[tuple[int, str]]:
        return {(blob, at) for blob in self.blobs() for at in self.required(blob) - self.good(blob)}

    def sole(self, location: str) -> set[int]:
        return {blob for blob in self.blobs() if self.good(blob) == {location}}

    def shared(self) -> set[tuple[int, str, frozenset[str], frozenset[str]]]:
        """Every blob that is where one of its namespaces forbids it, with who forbids and who allows that."""
        found = set()
        for blob, at in self.copies:
            forbidding = self.forbids(blob)[at]
            if forbidding:
                found.add((blob, at, frozenset(forbidding), frozenset(self.namespaces(blob) - forbidding)))
        return found

    def status(self, home: str, root: int, location: str, *, referrers: bool) -> Status:
        """What can be said of an image in a location while all stores are well and nothing has failed."""
        blobs = self.closure_blobs(home, root, referrers=referrers)
        missing = {blob for blob in blobs if location not in self.good(blob)}
        if location in self.policy(namespace_of(home)).never:
            return Status.IMPOSSIBLE
        if not missing:
            return Status.PRESENT
        if any(not [at for copied, at in self.copies if copied == blob] for blob in missing):
            return Status.IMPOSSIBLE
        if any(location not in self.required(blob) for blob in missing):
            return Status.NOT_REQUIRED
        if self.states[location] is LocationState.PAUSED or any(not self.good(blob) for blob in missing):
            return Status.STALLED
        return Status.PENDING
