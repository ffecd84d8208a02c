"""Manifests and tags in memory: what a closure is, referrers and attached tags included, and where tag patterns require it."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from attrs import define, field, frozen

from replication.policy import NO_POLICY, Policy

_ATTACHED = re.compile(r"sha256-([0-9a-f]{64})\.(?:sig|att|sbom)")

Tag = tuple[str, str]
"""Namespace and name: the simulation has one repository in each namespace."""


@frozen
class Manifest:
    """A manifest of a namespace. Its digest is not that of any bytes: nobody reads them here."""

    digest: str
    namespace: str
    blobs: frozenset[int] = frozenset()
    children: tuple[str, ...] = ()
    subject: str | None = None


@define(eq=False)
class Tags:
    """`places` are the locations that patterns give to tags, as they were compiled last."""

    manifests: dict[str, Manifest] = field(factory=dict)
    tags: dict[Tag, str] = field(factory=dict)
    places: dict[Tag, frozenset[str]] = field(factory=dict)

    def push(
        self,
        serial: int,
        namespace: str,
        blobs: Iterable[int] = (),
        children: tuple[str, ...] = (),
        subject: str | None = None,
    ) -> Manifest:
        """Make a manifest."""
        digest = f"sha256:{hashlib.sha256(str(serial).encode()).hexdigest()}"
        made = self.manifests[digest] = Manifest(digest, namespace, frozenset(blobs), children, subject)
        return made

    def point(self, tag: Tag, digest: str, policy: Policy) -> None:
        """Point a tag to a manifest, compiled with its namespace's policy."""
        self.tags[tag] = digest
        self.places[tag] = policy.for_tag(tag[1])

    def delete(self, digest: str) -> None:
        """Take a manifest out with its tags; what names it names nothing then."""
        del self.manifests[digest]
        for tag in [tag for tag, at in self.tags.items() if at == digest]:
            del self.tags[tag], self.places[tag]

    def compile(self, policies: Mapping[str, Policy]) -> frozenset[int]:
        """Give every tag what its policy says now; return the blobs of those that changed."""
        touched: set[int] = set()
        for tag, digest in self.tags.items():
            places = policies.get(tag[0], NO_POLICY).for_tag(tag[1])
            if places != self.places[tag]:
                self.places[tag] = places
                touched |= self.blobs(digest)
        return frozenset(touched)

    def stale(self, policies: Mapping[str, Policy]) -> bool:
        """Return whether a tag's places are not what its policy says."""
        return any(policies.get(tag[0], NO_POLICY).for_tag(tag[1]) != places for tag, places in self.places.items())

    def closure(self, root: str) -> frozenset[str]:
        """Return a manifest with its children, what refers to any of them, and what is attached to any by a tag."""
        found, todo = {root}, [root]
        while todo:
            new = set(self._next(todo.pop())) - found
            found |= new
            todo += sorted(new)
        return frozenset(found & self.manifests.keys())

    def _next(self, digest: str) -> Iterator[str]:
        known = self.manifests.get(digest)
        if known is None:
            return
        yield from known.children
        yield from (other.digest for other in self.manifests.values() if other.subject == digest)
        for (namespace, name), at in self.tags.items():
            match = _ATTACHED.fullmatch(name)
            if match and digest == f"sha256:{match[1]}" and namespace == known.namespace:
                yield at

    def blobs(self, root: str) -> frozenset[int]:
        """Return the blobs of a closure."""
        return frozenset().union(*(self.manifests[digest].blobs for digest in self.closure(root)))

    def wanted(self, blob: int) -> frozenset[str]:
        """Return where patterns of tags require a blob."""
        return frozenset().union(
            *(places for tag, places in self.places.items() if places and blob in self.blobs(self.tags[tag]))
        )

    def uses(self, blob: int) -> bool:
        """Return whether a manifest has a blob."""
        return any(blob in manifest.blobs for manifest in self.manifests.values())
