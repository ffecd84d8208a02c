"""Images to pull and push: 8 to 12 layers whose sizes follow what production registries were seen to hold."""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import exp, log
from random import Random

from attrs import field, frozen

MIB = 1 << 20
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

# Sizes of distinct blobs, bytes, by cumulative share: 999 GETs of one data centre of IBM's registry (Anwar et al., FAST'18,
# the traces that the authors published).
_SIZES = (
    (0.0, 100), (0.05, 141), (0.10, 214), (0.20, 575), (0.30, 1_500), (0.40, 6_800), (0.50, 15_000), (0.60, 100_000),
    (0.65, 858_000), (0.70, 1_900_000), (0.75, 5_300_000), (0.80, 11_000_000), (0.85, 22_500_000), (0.90, 31_100_000),
    (0.95, 54_400_000), (0.99, 137_000_000), (1.0, 690_000_000),
)  # fmt: skip


@frozen
class Blob:
    """Bytes with their digest."""

    data: bytes = field(repr=False)
    digest: str


@frozen
class Image:
    """An image under one tag of its own repository."""

    repository: str
    tag: str
    config: Blob
    layers: tuple[Blob, ...]
    manifest: Blob

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """The configuration and the layers."""
        return (self.config, *self.layers)

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(len(blob.data) for blob in self.blobs)


def blob_of(data: bytes) -> Blob:
    """Return bytes with their digest."""
    return Blob(data, "sha256:" + hashlib.sha256(data).hexdigest())


def layer_size(share: float, most: int) -> int:
    """Return the size below which `share` of all blobs are, at most `most` bytes."""
    at = max(1, bisect_left(_SIZES, (share, 0)))
    (low, small), (high, large) = _SIZES[at - 1], _SIZES[at]
    return min(most, round(exp(log(small) + (log(large) - log(small)) * (share - low) / (high - low))))


def make_image(number: int, seed: str, most: int) -> Image:
    """Return image `number` of a series; layers are incompressible and its own, at most `most` bytes each."""
    random = Random(f"{seed} {number}")  # noqa: S311 - filler, the same in every run
    sizes = [layer_size(random.random(), most) for _ in range(random.randint(8, 12))]
    layers = tuple(blob_of(random.randbytes(size)) for size in sizes)
    config = blob_of(
        json.dumps({"architecture": "amd64", "os": "linux", "history": random.randbytes(600).hex()}).encode()
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": _CONFIG, "size": len(config.data), "digest": config.digest},
        "layers": [{"mediaType": _LAYER, "size": len(layer.data), "digest": layer.digest} for layer in layers],
    }
    return Image(f"bench/{seed}-{number}", "v1", config, layers, blob_of(json.dumps(manifest, indent=2).encode()))


def popularity(count: int, exponent: float = 0.8) -> Sequence[float]:
    """Return cumulative weights of a Zipf distribution over `count` images, as `random.choices` takes them."""
    return list(accumulate(1 / rank**exponent for rank in range(1, count + 1)))
