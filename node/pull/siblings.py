"""What a client will ask for next: whoever pulls a blob of an image pulls the others too, so they are looked up with it."""

import json
from collections.abc import Mapping

from node.registry import Registry

MOST = 32
"""Blobs that are looked up with one."""
LONGEST = 64 * 1024
"""Bytes of a manifest that is looked into, of some 300 layers: every pull of a blob that is not in memory reads it anew, and one of
4 MB that somebody made for that takes seconds, in which the node does nothing else."""


def siblings(registry: Registry, repository: str, digest: str) -> tuple[str, ...]:
    """Return the blobs of the manifest that was pulled last there, if `digest` is one of them, that are not fresh in memory."""
    if not registry.settings.metadata_staleness:
        # None of them would be remembered.
        return ()
    memory, now = registry.memory, registry.now()
    manifest = memory.pulled.get(repository)
    body = memory.manifest_bytes.get(manifest) if manifest is not None else None
    listed = () if body is None else blobs_of(body)
    if digest not in listed:
        return ()
    stale = (
        one
        for one in listed[listed.index(digest) + 1 :] + listed[: listed.index(digest)]
        if memory.blobs.get((repository, one), memory.freshness.oldest(repository, one, now)) is None
    )
    return tuple(dict.fromkeys(stale))[:MOST]


def blobs_of(body: bytes) -> tuple[str, ...]:
    """Return the digests of an image's configuration and layers as its manifest lists them; none of an index or anything odd."""
    if len(body) > LONGEST:
        return ()
    try:
        manifest = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(manifest, Mapping):
        return ()
    layers = manifest.get("layers")
    listed = [manifest.get("config"), *(layers if isinstance(layers, list) else ())]
    digests = (one.get("digest") for one in listed if isinstance(one, Mapping))
    return tuple(digest for digest in digests if isinstance(digest, str) and digest.isprintable())
