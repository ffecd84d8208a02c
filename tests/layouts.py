"""OCI layouts of images of any number of layers, and the clients that push one of more than docker makes, by plain HTTP."""

import gzip
import io
import json
import secrets
import tarfile
from pathlib import Path

from attrs import frozen

from node.push.reading import OCI_MANIFEST
from tests.registry.world import descriptor, digest_of
from tests.security.clients import CTR

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@frozen
class Pusher:
    """How a client of tests/security/clients.py pushes a layout, in words of its own."""

    client: str
    prepare: str
    push: str


PUSHERS = (
    Pusher("skopeo", "true", "skopeo --insecure-policy copy --dest-tls-verify=false oci:{layout}:v1 docker://{ref}"),
    Pusher(
        "containerd (ctr)",
        "tar -C {layout} -cf {home}/image.tar . "
        f"&& {CTR} images import --base-name antipode --digests --no-unpack {{home}}/image.tar",
        f"{CTR} images push --plain-http {{ref}} antipode@{{manifest}}",
    ),
)


def write_layout(folder: Path, layers: int) -> bytes:
    """Write a layout whose tag v1 is an image of so many layers, ten of which differ; return its manifest."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def store(data: bytes) -> bytes:
        (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
        return data

    parts = [_tar(f"file-{number}") for number in range(10)] * (layers // 10)
    rootfs = {"type": "layers", "diff_ids": [digest_of(part) for part in parts]}
    config = store(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode())
    packed = [store(gzip.compress(part, 1, mtime=0)) for part in parts]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, _CONFIG),
        "layers": [descriptor(part, _LAYER) for part in packed],
    }
    body = store(json.dumps(manifest, separators=(",", ":")).encode())
    named = {**descriptor(body, OCI_MANIFEST), "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return body


def _tar(name: str) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        data = secrets.token_bytes(100)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return whole.getvalue()
