"""Images made from a number: every byte is known beforehand, so that a wrong one is noticed, and the number can be read back."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence

from attrs import frozen

KIB, MIB = 1 << 10, 1 << 20
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
VERSION = "test.version"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@frozen
class Image:
    """One version of an image. `blobs` by digest, the configuration first."""

    repository: str
    version: int
    blobs: Mapping[str, bytes]
    manifest: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def make_image(repository: str, version: int, layers: Sequence[int] = ()) -> Image:
    """Return a version: a small configuration and layers of these sizes, else two, every fourth time one of several parts."""
    source = random.Random(f"{repository} {version}")
    sizes = layers or [200 * KIB, 7 * MIB + 123 if version % 4 == 3 else 1500 * KIB + 1]
    config = json.dumps({"repository": repository, "version": version}).encode()
    contents = [source.randbytes(size) for size in sizes]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer) for layer in contents],
        "annotations": {VERSION: str(version)},
    }
    return Image(
        repository, version, {digest_of(blob): blob for blob in (config, *contents)}, json.dumps(manifest).encode()
    )


def version_of(manifest: bytes) -> int:
    """Return the version that a manifest of ours says."""
    return int(json.loads(manifest)["annotations"][VERSION])


def parts_of(manifest: bytes) -> list[tuple[str, int]]:
    """Return the digest and the size of every blob of a manifest."""
    parsed = json.loads(manifest)
    return [(blob["digest"], blob["size"]) for blob in (parsed["config"], *parsed["layers"])]


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
